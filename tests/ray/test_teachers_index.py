"""An index of the teacher's candidates: what it holds, what searches of it find, and what evaluate says of it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.web.served import ServedIndex
from stages import evaluate, index
from stages.contract.context import InputError
from stages.data import schemas
from stages.model.encoder import Encoder
from stages.model.identity import identify
from stages.model.rows import Row
from stages.model.taught import Taught
from stages.search.retriever import Retriever, teacher_of
from tests.ray.test_index_evaluate import ROUNDING, embed, read_run
from tests.search_world import COLOURS, make_world, run_stage, write_features, write_index, write_model

pytestmark = pytest.mark.ray
LAYER = 1
"""Of two: not the last one, which evaluate calls the teacher."""


@pytest.fixture(scope="module")
def world(shared_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Index and evaluation, with the teacher's vectors as they were before evaluate ran."""
    store, artifacts = make_world(tmp_path_factory.mktemp("asymmetric") / "store")
    artifacts["features"] = write_features(store, LAYER)
    artifacts["index"], _, _ = run_stage(store, artifacts, "index", index.Params(candidates="teacher"))
    before = {key: manifest["attempt"] for key, manifest in store.manifests()["teacher"].items()}
    artifacts["evaluate"], metrics, _ = run_stage(store, artifacts, "evaluate", evaluate.Params())
    return {"store": store, "artifacts": artifacts, "metrics": metrics, "before": before}


def scores_of(world: dict, candidates: str, layers: int | None) -> tuple[list[str], dict[str, np.ndarray]]:
    """Ids of candidates, and each query's cosines: the student's queries, candidates by the model of a stage."""
    models = {name: world["artifacts"][name].local("model") for name in ("train", candidates)}
    (qids, queries_QD), (dids, candidates_ND) = embed(models["train"], True), embed(models[candidates], False, layers)
    return dids, dict(zip(qids, queries_QD @ candidates_ND.T, strict=True))


def test_the_candidates_are_the_teachers_at_the_layer_that_taught(world: dict) -> None:
    dids, expected_ND = embed(world["artifacts"]["backbone"].local("model"), False, LAYER)
    table = pq.read_table(world["artifacts"]["index"].files("embeddings"))
    assert table.schema.remove_metadata().equals(schemas.EMBEDDINGS(32))
    stored = {row["did"]: np.array(row["vector"], np.float32) for row in table.to_pylist()}
    assert len(stored) == 24
    for did, vector in zip(dids, expected_ND, strict=True):
        assert did not in stored or np.abs(stored[did] - vector).max() < 1e-3


def test_the_card_names_both_models(world: dict) -> None:
    artifacts = world["artifacts"]
    card = artifacts["index"].read_json("retriever.json")
    assert card["train"]["key"] == artifacts["train"].key and card["dim"] == 32
    named = {name: card["candidates"][name] for name in ("model", "key", "layer", "identity")}
    identity = identify(artifacts["backbone"].local("model"))
    assert named == {"model": "teacher", "key": artifacts["backbone"].key, "layer": LAYER, "identity": identity}


def test_the_teacher_reads_a_pool_once_for_index_and_evaluate(world: dict) -> None:
    manifests = world["store"].manifests()["teacher"]
    (first,) = world["before"]
    assert len(manifests) == 2 and manifests[first]["attempt"] == world["before"][first]
    assert world["artifacts"]["evaluate"].read_json("teacher.json")["cut"] == first  # the layer is the student's depth


@pytest.mark.parametrize(("model", "stage", "layers"), [("student", "train", None), ("asymmetric", "backbone", LAYER)])
@pytest.mark.parametrize("scope", ["local", "union"])
def test_student_is_its_own_candidates_and_asymmetric_those_of_the_index(
    world: dict, model: str, stage: str, layers: int | None, scope: str
) -> None:
    dids, scores = scores_of(world, stage, layers)
    for task in (0, 3):
        for qid, found in read_run(world, model, scope, task).items():
            told = [scores[qid][dids.index(did)] for did, _ in found]
            assert told == pytest.approx([score for _, score in found], abs=ROUNDING)
    assert set(world["metrics"][model][scope]["tasks"]) == {"shop_task0", "shop_task3"}


def test_the_row_says_that_it_is_what_searches_give(world: dict) -> None:
    row = world["metrics"]["asymmetric"]
    assert row["layer"] == LAYER and row["searched"]
    evaluated = world["artifacts"]["evaluate"]
    assert "this is what searches of this run give" in " ".join(evaluated.local("table.txt").read_text().split())
    assert "the examples below show" in evaluated.local("report.html").read_text()


def test_the_retriever_gives_what_the_row_measured(world: dict) -> None:
    artifacts = world["artifacts"]
    retriever = Retriever.load(artifacts["index"], artifacts["ingest"], artifacts["train"])
    run = read_run(world, "asymmetric", "local", 0)
    for number, colour in enumerate(COLOURS):
        found = retriever.search(f"Something {colour}.", want="image", k=5)
        assert [one.score for one in found] == pytest.approx([s for _, s in run[f"9:{number}"][:5]], abs=ROUNDING)


def test_without_a_teacher_beside_it_the_product_is_still_measured(world: dict) -> None:
    artifacts = {name: one for name, one in world["artifacts"].items() if name != "evaluate"}
    _, metrics, _ = run_stage(world["store"], artifacts, "evaluate", evaluate.Params(teacher=False))
    assert "teacher" not in metrics
    for name in ("student", "asymmetric"):
        for scope in ("local", "union"):
            assert metrics[name][scope] == world["metrics"][name][scope]


def test_where_the_index_holds_the_students_the_row_asks_the_layer_that_taught(world: dict) -> None:
    artifacts = {name: one for name, one in world["artifacts"].items() if name not in ("index", "evaluate")}
    artifacts["index"] = write_index(world["store"], artifacts)
    _, metrics, _ = run_stage(world["store"], artifacts, "evaluate", evaluate.Params())
    assert metrics["asymmetric"]["local"] == world["metrics"]["asymmetric"]["local"]
    assert metrics["student"]["local"] == world["metrics"]["student"]["local"]
    assert not metrics["asymmetric"]["searched"]


def test_a_mean_that_students_were_compared_without_is_taken_off(shared_cluster: None, tmp_path: Path) -> None:
    store, artifacts = make_world(tmp_path / "store")
    mean = np.linspace(-2, 2, 32)
    artifacts["features"] = write_features(store, LAYER, mean=mean.tolist())
    made, _, _ = run_stage(store, artifacts, "index", index.Params(candidates="teacher"))
    card = made.read_json("retriever.json")
    assert card["candidates"]["mean"] == mean.tolist()
    encoder = Taught(Encoder.load(artifacts["backbone"].local("model"), LAYER), mean)
    stored = {row["did"]: row["vector"] for row in pq.read_table(made.files("embeddings")).to_pylist()}
    told = encoder.encode([Row("A red square.")])[0]
    assert np.abs(np.array(stored["9:100"], np.float32) - told).max() < 1e-3
    raw = Encoder.load(artifacts["backbone"].local("model"), LAYER).encode([Row("A red square.")])[0]
    assert np.abs(raw - told).max() > 0.05


def test_a_turned_teacher_is_indexed_in_the_students_directions_and_finds_the_same_either_way(
    shared_cluster: None, tmp_path: Path
) -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0].astype(np.float32)
    found = {}
    for candidates in ("student", "teacher"):
        store, artifacts = make_world(tmp_path / candidates)
        artifacts["train"] = write_model(store, "train", 1, 5, rotation=turn)
        artifacts["features"] = write_features(store, LAYER)
        artifacts["index"], _, _ = run_stage(store, artifacts, "index", index.Params(candidates=candidates))
        _, found[candidates], _ = run_stage(store, artifacts, "evaluate", evaluate.Params())
    card = artifacts["index"].read_json("retriever.json")
    assert card["candidates"]["turned"]
    for scope in ("local", "union"):
        one, other = (found[candidates]["asymmetric"][scope] for candidates in ("student", "teacher"))
        assert one["mrr@10"] == pytest.approx(other["mrr@10"], abs=0.02)  # fp16 is rounded before or after the turn
    stored = {row["did"]: row["vector"] for row in pq.read_table(artifacts["index"].files("embeddings")).to_pylist()}
    raw = Encoder.load(artifacts["backbone"].local("model"), LAYER).encode([Row("A red square.")])[0]
    assert np.abs(np.array(stored["9:100"], np.float32) - raw @ turn).max() < 1e-3
    assert np.abs(raw - raw @ turn).max() > 0.05


def test_another_teacher_than_the_indexed_one_is_refused(world: dict, tmp_path: Path) -> None:
    card, backbone = world["artifacts"]["index"].read_json("retriever.json"), world["artifacts"]["backbone"]
    assert teacher_of(card, backbone) == backbone.local("model")
    card["candidates"]["identity"] = "0" * 16
    with pytest.raises(InputError, match="holds another teacher"):
        teacher_of(card, backbone)
    card["candidates"]["attempt"] = "another"
    with pytest.raises(InputError, match="the index is older than its backbone"):
        teacher_of(card, backbone)


def test_a_teacher_that_was_made_anew_is_not_offered_to_be_compared(
    world: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {name: made.key for name, made in world["artifacts"].items()}
    served = ServedIndex(world["store"], keys, compare=True)
    assert served.has_teacher()
    monkeypatch.setattr("pipeline.web.served.candidate_model", lambda card: {"model": "teacher", "attempt": "another"})
    assert not served.has_teacher()
