"""Which student indexes a user's corpus, and which stages such a run has."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.artifacts.store import Artifact, Store, open_store
from pipeline.config.load import load_config
from pipeline.lookup.indexes import find_keys, read_overrides
from pipeline.lookup.students import find_student, index_student, with_student
from pipeline.planning.dag import CORPUS, STAGES, stages_of
from pipeline.planning.plan import plan
from pipeline.planning.sources import read_sources
from stages.contract.context import InputError
from stages.distributed.corpus import place_in_store
from stages.model.identity import identify, instructions_of
from tests.corpus_files import write_records


def student(directory: Path, weights: bytes = b"w" * 200_000) -> Path:
    """A directory that looks like an exported student."""
    directory.mkdir(parents=True)
    for name in ("config.json", "puma.json"):
        (directory / name).write_text("{}")
    save_file({"weights": np.frombuffer(weights, np.uint8)}, directory / "model.safetensors")
    return directory


def settings(tmp_path: Path, *more: str) -> list[str]:
    corpus = tmp_path / "own.jsonl"
    if not corpus.exists():
        write_records(corpus, [{"text": "milk"}])
    return [f"index.corpus={corpus}", f"store={tmp_path / 'store'}", *more]


def test_a_run_with_a_corpus_is_its_index_alone(tmp_path: Path) -> None:
    config = with_student(load_config("demo", settings(tmp_path, f"student={student(tmp_path / 'model')}")))
    assert config.student.layers == load_config("demo").student.layers
    assert stages_of(config) == CORPUS and stages_of(load_config("demo")) == STAGES


def test_its_key_follows_corpus_and_weights_wherever_they_lie(tmp_path: Path) -> None:
    def key(model: Path) -> str:
        config = with_student(load_config("demo", settings(tmp_path, f"student={model}")))
        return plan(CORPUS, config, {}, read_sources(CORPUS, config))[0].key

    first = key(student(tmp_path / "a"))
    assert key(student(tmp_path / "moved")) == first
    assert key(student(tmp_path / "b", b"x" * 200_000)) != first
    write_records(tmp_path / "own.jsonl", [{"text": "milk"}, {"text": "bread"}])
    assert key(tmp_path / "a") != first


@pytest.mark.parametrize(
    "given, message",
    [
        (["index.corpus={corpus}"], "add student=models:/puma@champion, or a directory"),
        (["index.corpus={corpus}", "student={model}", "index.candidates=teacher"], "leave one of them out"),
        (["student={model}"], "add index.corpus=DIRECTORY"),
        (["index.corpus=nowhere", "student={model}"], "index.corpus=nowhere is not there"),
        (["index.corpus={corpus}", "student=gone"], "student.model=gone is not there"),
        (["index.corpus={corpus}", "student={home}"], "is no exported student, it lacks config.json, puma.json"),
        (["index.corpus={corpus}", "student=models:/puma"], "write models:/NAME@ALIAS"),
        (
            ["index.corpus={corpus}", "student=models:/p@c", "tracking_uri=sqlite:///{home}/no.db"],
            "there is no registry",
        ),
        (["index.corpus={corpus}", "student=s3://b/models/puma"], "is no student of a store; give s3://BUCKET/PREFIX"),
        (["index.corpus=gs://b/p", "student={model}"], "index.corpus=gs://b/p can't be read; give a directory or s3:"),
    ],
)
def test_what_cannot_be_indexed_is_refused(given: list[str], message: str, tmp_path: Path) -> None:
    corpus, model = write_records(tmp_path / "own.jsonl", [{"text": "milk"}]), student(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        with_student(load_config("demo", [one.format(corpus=corpus, model=model, home=tmp_path) for one in given]))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = student(tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"lacks \*\.safetensors"):
        with_student(load_config("demo", settings(tmp_path, f"student={model}")))


@pytest.mark.parametrize(
    "name, kept", [("model.safetensors", 0), ("model.safetensors", 20), ("model.safetensors", -1), ("puma.json", 1)]
)
def test_a_student_that_was_not_copied_whole_is_refused_by_every_plan(name: str, kept: int, tmp_path: Path) -> None:
    damaged = student(tmp_path / "model") / name
    damaged.write_bytes(damaged.read_bytes()[:kept])
    with pytest.raises(InputError, match=f"^{damaged} is no .* or not the whole of it; copy it anew from the "):
        with_student(load_config("demo", settings(tmp_path, f"student={damaged.parent}")))


def test_a_registered_student_is_found_by_its_alias(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, model = f"sqlite:///{tmp_path / 'mlflow.db'}", student(tmp_path / "model")
    client = MlflowClient(uri)
    client.create_registered_model("puma")
    made = client.create_model_version("puma", model.as_uri(), tags={"weights": str(model)})
    client.set_registered_model_alias("puma", "champion", made.version)
    assert find_student("models:/puma@champion", uri) == find_student("models:/puma/1", uri) == model
    with pytest.raises(InputError, match="is not in the registry"):
        find_student("models:/puma@gone", uri)
    (model / "config.json").unlink()
    (model / "puma.json").unlink()
    (model / "model.safetensors").unlink()
    model.rmdir()
    with pytest.raises(InputError, match="are not on this machine"):
        find_student("models:/puma@champion", uri)


def test_a_registered_student_whose_artifact_was_made_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    uri, model = f"sqlite:///{tmp_path / 'mlflow.db'}", student(tmp_path / "model")
    client = MlflowClient(uri)
    client.create_registered_model("puma")
    for attempt in ("old", "new"):
        client.create_model_version("puma", model.as_uri(), tags={"weights": f"s3://b/p/train/k/{attempt}/model"})
    artifact = SimpleNamespace(attempt="new", local=lambda name: model)
    monkeypatch.setattr(
        "pipeline.lookup.students.open_store", lambda *_: SimpleNamespace(artifact=lambda *_: artifact)
    )
    assert find_student("models:/puma/2", uri) == model
    with pytest.raises(InputError, match="train/k was made again since; give s3://b/p/train/k for what is there"):
        find_student("models:/puma/1", uri)


def corpus_index(store: Store, told: dict) -> Artifact:
    """An index that says by which student it was made."""
    attempt = store.begin("index", "a" * 16)
    attempt.write_json("retriever.json", {"format": 1, "student": told})
    return store.commit(attempt, {"metrics": {}})


def test_the_run_of_a_student_is_found_by_its_name_and_after_it_was_moved(tmp_path: Path) -> None:
    model, store = student(tmp_path / "model"), open_store(str(tmp_path / "store"))
    index = corpus_index(store, {"directory": str(model), "identity": identify(model)})
    config = with_student(load_config("demo", settings(tmp_path, f"student={model}"))).model_dump(mode="json")
    store.write_run({"id": "1", "started": "2026", "config": config, "stages": {"index": {"key": index.key}}})
    moved, other = model.rename(tmp_path / "moved"), student(tmp_path / "other", b"x" * 200_000)

    def found(place: Path) -> str:
        return find_keys(store, "here", read_overrides(settings(tmp_path, f"student={place}"))[1])["index"]

    assert found(moved) == index.key
    with pytest.raises(InputError, match=rf"student.model={other} "):
        found(other)


def test_a_student_of_the_store_is_found_where_the_store_is_by_now(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    attempt = store.begin("train", "b" * 16)
    student(Path(attempt.base, "model"))
    made = store.commit(attempt, {"metrics": {}})
    told = place_in_store(store.begin("index", "a" * 16), Path(made.local("model")))
    assert told == {"stage": "train", "key": made.key, "attempt": made.attempt}
    assert place_in_store(store.begin("index", "a" * 16), tmp_path / "elsewhere" / "model") == {}
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = open_store(str(tmp_path / "moved"))
    card = {"student": {"directory": "gone", "identity": "x", **told}}
    assert index_student(moved, card) == Path(moved.artifact("train", made.key).local("model"))
    assert index_student(moved, card, str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="this index is a run's and has that run's student; leave it out"):
        index_student(moved, {}, str(tmp_path))
    card["student"]["attempt"] = "another"
    assert index_student(moved, card) is None


def test_any_training_changes_the_identity(tmp_path: Path) -> None:
    weights = bytearray(range(256)) * 1000
    before = identify(student(tmp_path / "a", bytes(weights)))
    weights[-1] ^= 1
    assert identify(student(tmp_path / "b", bytes(weights))) != before


def test_instructions_come_with_the_student_and_plain_ones_without(tmp_path: Path) -> None:
    model = student(tmp_path / "model")
    assert len(instructions_of(model)) == 9
    prompts = {"shop: image,text → text": "Find the words.\n", "odd": "x"}
    (model / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    assert [(row["query_modality"], row["target_modality"], row["prompts"]) for row in instructions_of(model)] == [
        ("image,text", "text", ["Find the words."])
    ]
