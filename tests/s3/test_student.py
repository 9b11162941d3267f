"""A student in a bucket indexes a corpus: found by what a run prints, and given to workers as the artifact it is.

And an index there is opened from Python.
"""

from pathlib import Path

import pytest

from pipeline.artifacts.store import Artifact, Store
from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.execution.summary import closing_lines
from pipeline.lookup.students import find_student, index_student, with_student
from pipeline.planning.dag import CORPUS
from pipeline.planning.plan import plan
from pipeline.planning.sources import read_sources
from pipeline.retriever import Retriever, export_router
from stages.contract.context import InputError
from stages.distributed.corpus import place_in_store
from stages.search.backends import FORMAT
from tests.corpus_files import write_records
from tests.unit.test_own_student import student

pytestmark = pytest.mark.s3


@pytest.fixture(params=["train", "distill"])
def made(request, bucket, tmp_path) -> Artifact:
    """A student that one of the two stages has left in the bucket, and nobody on this machine has."""
    return commit(bucket, request.param, student(tmp_path / "made here"))


def commit(store: Store, stage: str, model: Path) -> Artifact:
    attempt = store.begin(stage, "b" * 16)
    attempt.upload(model, "model")
    return store.commit(attempt, {"metrics": {}})


def settings(made: Artifact, reference: str, tmp_path: Path) -> list[str]:
    corpus = tmp_path / "own.jsonl"
    if not corpus.exists():
        write_records(corpus, [{"text": "milk"}])
    return [f"index.corpus={corpus}", f"student={reference}", f"store_endpoint={made.objects.endpoint}"]


def test_the_place_that_a_run_prints_is_a_student(made, tmp_path):
    printed = next(line for line in closing_lines({made.stage: made}, Config()) if line.startswith("student: "))
    found = with_student(load_config("demo", settings(made, printed.removeprefix("student: "), tmp_path)))
    fetched, made_here = Path(found.student.model, "model.safetensors"), tmp_path / "made here" / "model.safetensors"
    assert fetched.read_bytes() == made_here.read_bytes()
    assert find_student(f"{made.uri}/", "", made.objects.endpoint) == Path(found.student.model)


def test_its_index_has_the_key_that_it_has_by_a_directory_of_the_same_weights(made, tmp_path):
    def key(reference: str) -> str:
        config = with_student(load_config("demo", settings(made, reference, tmp_path)))
        return plan(CORPUS, config, {}, read_sources(CORPUS, config))[0].key

    assert key(made.uri) == key(str(tmp_path / "made here"))


def test_workers_fetch_it_from_its_own_artifact_and_the_index_remembers_which(made, bucket, tmp_path, monkeypatch):
    copy, output = find_student(made.uri, "", made.objects.endpoint), bucket.begin("index", "a" * 16)
    before = bucket.objects.files("")
    where = output.send(copy)
    assert bucket.objects.files("") == before
    card = {"student": {"directory": str(copy), "identity": "x", **place_in_store(output, copy)}}
    monkeypatch.setenv("PUMA_CACHE", str(tmp_path / "other machine"))
    assert "other machine" in str(where()) and (where() / "model.safetensors").is_file()
    assert index_student(bucket, card) == where()


def test_one_that_was_made_again_or_is_not_there_is_refused(bucket, tmp_path):
    gone = commit(bucket, "train", student(tmp_path / "model"))
    attempt = bucket.begin("train", gone.key)
    attempt.upload(student(tmp_path / "other", b"x"), "model")
    bucket.commit(attempt, {"metrics": {}}, replace=True)
    endpoint = bucket.objects.endpoint
    with pytest.raises(InputError, match=f"was made again since; give {gone.uri} for what is there"):
        find_student(f"{gone.uri}/{gone.attempt}/model", "", endpoint)
    with pytest.raises(InputError, match="there is no artifact train/nothing"):
        find_student(f"{bucket.uri}/train/nothing", "", endpoint)


@pytest.mark.parametrize("opened", [Retriever.load, lambda uri, **more: export_router(uri, "nowhere", **more)])
def test_an_index_is_opened_from_python_at_the_server_that_the_run_wrote_to(bucket, opened, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody is there
    attempt = bucket.begin("index", "a" * 16)
    candidates = {"model": "teacher", "key": "gone"}
    attempt.write_json("retriever.json", {"format": FORMAT, "train": {"key": "gone"}, "candidates": candidates})
    index = bucket.commit(attempt, {"metrics": {}})
    with pytest.raises(InputError, match=f"there is no artifact [a-z]+/gone in {bucket.uri}"):
        opened(index.uri, endpoint=bucket.objects.endpoint)
