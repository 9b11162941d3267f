"""Data of distillation's own on a real cluster: a corpus is ingested, and the teacher reads what will be visited."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.artifacts.store import Artifact, Store, open_store
from stages import features, ingest, train
from stages.contract.context import StageError
from stages.contract.params import Cluster
from stages.distill import Params
from stages.distributed.rotation import read_rotation
from stages.distributed.training import SIDES, FeatureTable
from stages.learn.loop import cached_teacher
from stages.learn.sampling import PairSampler
from stages.train import teaching
from tests.corpus_files import write_csv, write_pictures, write_records
from tests.mbeir_files import png, text_query, write_bytes, write_lines, write_minimal
from tests.s3.servers import upload
from tests.search_world import write_ingest, write_model
from tests.support import begin, commit, rows
from tests.training_world import write_ingest as write_pairs

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]


def ingested(home: Path, path: Path | str, kind: str = "corpus", **params: object) -> tuple[Artifact, dict]:
    """What the stage `distill.data` makes of a source, and its metrics."""
    data = ingest.OwnData(kind=kind, path=str(path), **params)
    context = begin(home, "distill.data", data=data, seed=0)
    metrics = ingest.run(context)
    return commit(home, context), metrics


def texts(count: int) -> list[list[str]]:
    return [["text"], *([f"sentence number {number}"] for number in range(count))]


def test_a_folder_of_pictures_and_texts_is_ingested_and_bad_ones_have_reasons(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "shop")
    write_bytes(folder, "torn.png", png("red", (90, 90))[:120])
    write_bytes(folder, "again.png", png("red", (56, 56)))
    (folder / "notes.txt").write_bytes(b"A carton of milk\nM\xfcsli\n")
    artifact, metrics = ingested(tmp_path / "store", folder, max_reject_share=0.5)
    queries = {row["qid"]: row for row in rows(artifact, "queries")}
    candidates = {row["did"]: row for row in rows(artifact, "candidates")}
    assert len(queries) == len(candidates) == 6
    for query in queries.values():
        itself = candidates[query["positives"][0]]
        assert query["split"] == "train" and query["target_modality"] == query["modality"] == itself["modality"]
        assert (query["text"], query["image_id"]) == (itself["text"], itself["image_id"])
    assert len({row["content_id"] for row in candidates.values()}) == 5  # the same picture twice
    rejects = {(row["kind"], row["source"], row["reason"]) for row in rows(artifact, "rejects")}
    assert ("query", "notes.txt:2", "not UTF-8") in rejects and ("image", "torn.png", "truncated image") in rejects
    assert ("query", "shop:4", "truncated image") in rejects
    assert metrics["rejects"]["queries"] == 2
    told = rows(artifact, "instructions")
    assert [(row["query_modality"], row["target_modality"]) for row in told] == [("image", "image"), ("text", "text")]


def test_pictures_beside_a_bad_row_are_all_kept_and_each_is_checked_once(tmp_path: Path, monkeypatch) -> None:
    """Rows are read as queries and as candidates; a bad one makes their numbers differ from there on."""
    colours = [f"#{number:02x}8040" for number in range(40)]
    for number, colour in enumerate(colours):
        write_bytes(tmp_path / "shop", f"p{number}.png", png(colour, (32, 32)))
    lines = [{"image": f"p{number}.png"} for number in range(40)]
    path = write_records(tmp_path / "shop" / "goods.jsonl", [*lines[:10], b"{broken", *lines[10:]])
    artifact, metrics = ingested(tmp_path / "store", path)
    held = [row["image_id"] for row in rows(artifact, "images")]
    assert len(held) == len(set(held)) == metrics["images"] == 40
    assert {row["image_id"] for row in rows(artifact, "candidates")} == set(held)
    assert len(artifact.files("images")) == 2  # batches of 32


def test_too_many_bad_rows_name_the_section_that_allows_fewer(tmp_path: Path) -> None:
    path = write_records(tmp_path / "own.jsonl", [{"text": "good"}, b"{broken", {"image": "gone.png"}])
    said = r"distill\.data\.max_reject_share=0\.0 allows less: missing image 2 \(own\.jsonl:3\), broken"
    with pytest.raises(StageError, match=said):
        ingested(tmp_path / "store", path, max_reject_share=0)
    path = write_records(tmp_path / "own.jsonl", [{"text": ""}])
    with pytest.raises(StageError, match=r"no usable query in train: empty 1 .* train needs at least one"):
        ingested(tmp_path / "store", path, max_reject_share=1)


def test_sentences_and_pictures_in_a_bucket_are_read_in_place(bucket_server: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "far" / "texts" / "nli.csv", [*texts(30), ["too", "many"]])
    write_pictures(tmp_path / "far" / "photos")
    (tmp_path / "far" / "photos" / "more.txt").write_text("a text beside pictures\n")
    upload(bucket_server, tmp_path / "far", "unlabelled")
    artifact, metrics = ingested(tmp_path / "a", "s3://bucket/unlabelled/texts")
    assert (metrics["queries"], metrics["rejects"]["by_reason"]) == (30, {"too many cells": 1})
    assert [row["source"] for row in rows(artifact, "rejects")] == ["nli.csv:32"]
    artifact, metrics = ingested(tmp_path / "b", "s3://bucket/unlabelled/photos")
    assert {row["modality"] for row in rows(artifact, "queries")} == {"image", "text"} and metrics["queries"] == 6
    far, near = (
        ingest.fingerprint(ingest.OwnData(kind="corpus", path=f"s3://bucket/unlabelled/{name}"))
        for name in ("texts", "photos")
    )
    assert far != near


def test_m_beir_teaches_by_its_train_split_alone(tmp_path: Path) -> None:
    root = write_minimal(tmp_path / "data")
    write_lines(root, "query/val/mbeir_toy_task1_val.jsonl", [text_query("7:2", ["7:77"], task=1)])
    artifact, _ = ingested(tmp_path / "store", root, kind="mbeir", max_reject_share=0.5)
    assert [row["qid"] for row in rows(artifact, "queries")] == ["7:1", "7:3"]
    assert [row["reason"] for row in rows(artifact, "rejects")] == ["dangling positives"]


# ---------------------------------------------------------------------------------------------------------- features


def read_teacher(
    home: Path, inputs: dict[str, Artifact], distill: Params, seed: int = 0, taught: bool = False, **read: object
) -> tuple[Artifact, dict]:
    """The features of a teacher for a distillation, in shards of eight rows; `taught` is for the last training too."""
    draws = SimpleNamespace(draws=distill.draws, smallest_task=distill.smallest_task)
    reads = {"distill": draws, "train": SimpleNamespace(taught=taught)}
    context = begin(home, "features", inputs, features=features.Params(curve_queries=4, **read), seed=seed, **reads)
    context = replace(context, cluster=Cluster(rows_per_shard=8, threads=1))
    metrics = features.run(context)
    return commit(home, context), metrics


def ids(artifact: Artifact, side: str) -> set[str]:
    return {row["id"] for row in rows(artifact, "features") if row["side"] == side}


def visited(data: Artifact, distill: Params, seeds: Iterable[int], run_seed: int = 0) -> tuple[list, set[str]]:
    """(all pairs that trainings with these seeds come to, the ids of their queries)."""
    place = {"world": 1, "rank": 0, "vary_instructions": False, "subset": (distill.draws, run_seed)}
    samplers = [PairSampler(data, distill, seed=seed, **place) for seed in seeds]
    pairs = [sampler.pairs(step) for sampler in samplers for step in range(distill.steps)]
    return pairs, {qid for one in pairs for qid in one.query_ids}


@pytest.fixture(scope="module")
def world(shared_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A backbone, labelled data with a validation split, and a corpus of texts."""
    home = tmp_path_factory.mktemp("own")
    store = open_store(str(home / "store"))
    inputs = {"ingest": write_ingest(store, "val"), "backbone": write_model(store, "backbone", 2, 1)}
    corpus, _ = ingested(home / "corpus", write_csv(home / "nli.csv", texts(60)))
    return SimpleNamespace(home=home, corpus=corpus, inputs=inputs)


def test_the_teacher_reads_what_distillation_visits_and_every_vector_is_found(world, tmp_path: Path) -> None:
    distill = Params(steps=2, batch_size=8, smallest_task=80)
    found, metrics = read_teacher(tmp_path, world.inputs | {"distill.data": world.corpus}, distill)
    pairs, queries = visited(world.corpus, distill, seeds=range(12))
    assert ids(found, "query") == queries and len(queries) <= 16  # twelve orders come to all that was drawn
    asked = {row["qid"]: row["positives"] for row in rows(world.corpus, "queries")}
    assert ids(found, "candidate") == {did for qid in queries for did in asked[qid]}
    assert metrics["rows"] == len(rows(found, "features")) < 2 * 60
    teacher = cached_teacher(FeatureTable(found, "query"), FeatureTable(found, "candidate"))
    assert all(len(teacher(one)) == 16 for one in pairs)


def test_longer_trainings_have_all_rows_read_and_those_of_no_step_none(world, tmp_path: Path) -> None:
    inputs = world.inputs | {"distill.data": world.corpus}
    found, _ = read_teacher(tmp_path / "long", inputs, Params(steps=9, batch_size=8))
    assert len(ids(found, "query")) == len(ids(found, "candidate")) == 60
    found, metrics = read_teacher(tmp_path / "none", inputs | {"ingest": world.corpus}, Params(steps=0))
    assert metrics["rows"] == 0 and rows(found, "features") == []


def test_the_depth_curve_stays_on_labelled_data_and_needs_it(world, tmp_path: Path, capfd) -> None:
    found, metrics = read_teacher(tmp_path / "own", world.inputs | {"distill.data": world.corpus}, Params(steps=1))
    curve = found.read_json("depth_curve.json")
    assert [entry["layers"] for entry in curve["layers"]] == [1, 2] and "hit@5 at full depth" in metrics
    assert set(curve["layers"][0]["sets"]) == {"shop_task0", "shop_task3"}
    found, metrics = read_teacher(tmp_path / "alone", world.inputs | {"ingest": world.corpus}, Params(steps=1))
    assert not found.has("depth_curve.json") and not found.has("depth_curve.png")
    assert "no depth curve" in capfd.readouterr().err and metrics["rows"] == 120


def test_a_last_training_that_is_taught_has_the_states_of_all_labelled_rows(world, tmp_path: Path) -> None:
    known = {row["did"] for row in rows(world.inputs["ingest"], "candidates")}
    asked = [row for row in rows(world.inputs["ingest"], "queries") if row["split"] == "train"]
    train = {row["qid"]: known.intersection(row["positives"]) for row in asked}
    both, metrics = read_teacher(
        tmp_path / "both", world.inputs | {"distill.data": world.corpus}, Params(steps=1, batch_size=8), taught=True
    )
    counts = {prefix: len(rows(both, prefix)) for prefix in ("features", "labelled")}
    assert len(ids(both, "query")) == 8 and metrics["rows"] == sum(counts.values())
    assert metrics["labelled"] == counts["labelled"]
    labelled = {side: {row["id"] for row in rows(both, "labelled") if row["side"] == side} for side in SIDES}
    assert labelled["query"] == set(train)
    assert labelled["candidate"] == {did for dids in train.values() for did in dids}
    one, metrics = read_teacher(tmp_path / "one", world.inputs, Params(steps=1, batch_size=2), taught=True)
    assert ids(one, "query") == set(train) and not one.files("labelled") and "labelled" not in metrics
    where = teaching(both)["states"], teaching(one)["states"]
    assert where == ("labelled", "features") and teaching(None) == {}


def test_without_distillation_the_mean_is_that_of_the_last_training_or_there_is_none(world, tmp_path: Path) -> None:
    inputs, asked = world.inputs | {"distill.data": world.corpus}, Params(steps=0)
    found, metrics = read_teacher(tmp_path / "none", inputs | {"ingest": world.corpus}, asked, centre=True)
    assert "mean" not in found.read_json("features.json") and not metrics["centred"]
    found, metrics = read_teacher(tmp_path / "last", inputs, asked, taught=True, centre=True)
    states = [[row["vector"] for row in rows(found, "labelled") if row["side"] == side] for side in SIDES]
    mean = np.mean([np.mean(np.array(one, np.float64), axis=0) for one in states], axis=0)
    assert found.read_json("features.json")["mean"] == pytest.approx(mean, abs=1e-9) and metrics["centred"]


def test_a_student_of_unlabelled_texts_is_taught_on_by_the_labelled_ones(world, tmp_path: Path) -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0].astype(np.float32)
    inputs = world.inputs | {"ingest": write_pairs(tmp_path, validation=6), "distill.data": world.corpus}
    inputs["features"], _ = read_teacher(tmp_path, inputs, Params(steps=1, batch_size=8), taught=True)
    inputs["distill"] = write_model(open_store(str(tmp_path)), "distill", 1, 5, rotation=turn)
    params = train.Params(steps=2, batch_size=8, feature_weight=0.5, check_loaders=False)
    context = replace(begin(tmp_path, "train", inputs, seed=0, train=params), cluster=Cluster(threads=1, log_every=1))
    metrics = train.run(context)
    assert metrics["step"] == 2 and metrics["turned"]
    assert metrics["loss"] == pytest.approx(metrics["contrastive"] + 0.5 * metrics["feature cosine"], rel=1e-4)
    assert np.array_equal(read_rotation(Store(tmp_path).commit(context.output, {"metrics": metrics})), turn)
