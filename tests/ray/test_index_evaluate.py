"""index, evaluate and mining on a real cluster, with untrained tiny models: what is written is what is true."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.store import Artifact, Store
from stages import evaluate, index, train
from stages.contract.context import Context
from stages.contract.params import Cluster
from stages.data import schemas
from stages.data.instructions import before_text
from stages.evaluation.chance import chance_of_hit
from stages.mining.mine import mine_negatives
from stages.search.exact import ExactIndex
from stages.search.precision import Precision
from tests.search_world import COLOURS, TRAINED, Witness, ingest_rows, make_world, picture, run_stage, share_in
from tests.support import rows

pytestmark = pytest.mark.ray
ROUNDING = 2e-3  # of vectors kept as float16; leaving out the instruction moves these scores by more
PROMPTS = {"text": "Find the picture.", "image": "Describe the picture."}


@pytest.fixture(scope="module")
def world(shared_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Everything run once: store, artifacts, metrics."""
    store, artifacts = make_world(tmp_path_factory.mktemp("world") / "store")
    artifacts["index"], indexed, _ = run_stage(store, artifacts, "index", index.Params())
    artifacts["evaluate"], metrics, tracker = run_stage(store, artifacts, "evaluate", evaluate.Params())
    mining = mine_with(store, artifacts)
    return {
        "store": store,
        "artifacts": artifacts,
        "indexed": indexed,
        "metrics": metrics,
        "tracker": tracker,
        "mining": mining,
    }


def mine_with(store: Store, artifacts: dict[str, Artifact]) -> Artifact:
    """Mines twice, the second time with what the first one left, and commits what a training would."""
    attempt = store.begin("train", "a" * 16)
    params = SimpleNamespace(train=train.Params(mine=train.Mine(per_query=3, margin=1.0)))
    context = Context(
        params, Cluster(threads=1, batch_size=4), artifacts, attempt, Witness(), share_in(store, artifacts)
    )
    first = mine_negatives(context, artifacts["train"])
    assert mine_negatives(context, artifacts["train"]) == first  # file names are drawn, so nothing was rewritten
    return store.commit(attempt, {"metrics": {}})


def embed(directory: Path, queries: bool, layers: int | None = None) -> tuple[list[str], np.ndarray]:
    """Ids and vectors by the encoder itself, without Ray, Parquet or float16."""
    from stages.model.encoder import Encoder
    from stages.model.rows import Row

    pictures = {picture(colour).image_id: picture(colour).bytes for colour in COLOURS}
    asked, held = ingest_rows()
    rows = [row for row in asked if row["split"] == "test"] if queries else held
    told = [before_text(PROMPTS[row["modality"]]) if queries else None for row in rows]
    encoder = Encoder.load(directory, layers)
    ids = [row["qid" if queries else "did"] for row in rows]
    return ids, encoder.encode(
        [Row(row["text"], pictures.get(row["image_id"]), instruction=one) for one, row in zip(told, rows, strict=True)]
    )


def read_run(world: dict, model: str, scope: str, task: int) -> dict[str, list[tuple[str, float]]]:
    """Each query's (did, score), best first, from the run file."""
    run: dict[str, list[tuple[str, float]]] = {}
    path = world["artifacts"]["evaluate"].local(f"runs/{model}.{scope}.shop_task{task}.trec")
    for line in path.read_text().splitlines():
        qid, _, did, _, score, _ = line.split()
        run.setdefault(qid, []).append((did, float(score)))
    return run


def test_the_index_holds_every_candidate_of_the_pools_and_no_other(world: dict) -> None:
    files = world["artifacts"]["index"].files("embeddings")
    table = pq.read_table(files)
    assert table.schema.remove_metadata().equals(schemas.EMBEDDINGS(32))
    assert sorted(table["did"].to_pylist()) == sorted(
        row["did"] for row in ingest_rows()[1] if "union_test" in row["pools"]
    )


def test_stored_vectors_are_the_encoders_own(world: dict) -> None:
    artifacts = world["artifacts"]
    dids, expected_ND = embed(artifacts["train"].local("model"), False)
    table = pq.read_table(artifacts["index"].files("embeddings")).to_pylist()
    stored = {row["did"]: np.array(row["vector"], np.float32) for row in table}
    for did, vector in zip(dids, expected_ND, strict=True):
        if did in stored:
            assert np.abs(stored[did] - vector).max() < 1e-3


def test_the_index_describes_itself(world: dict) -> None:
    card = world["artifacts"]["index"].read_json("retriever.json")
    assert (card["rows"], card["dim"], card["split"], card["union"]) == (24, 32, "test", "union_test")
    assert card["pools"] == {"shop_task0": 12, "shop_task3": 12, "union_test": 24}
    assert card["modalities"] == {"image": 12, "text": 12}
    assert card["train"]["key"] == world["artifacts"]["train"].key
    assert world["indexed"]["rows"] == 24 and world["indexed"]["bytes"] > 0


@pytest.mark.parametrize(
    "model, stage, dim, layers",
    [
        ("student", "train", 32, None),
        ("student-16d", "train", 16, None),
        ("teacher", "backbone", 32, None),
        ("cut", "backbone", 32, 1),
    ],
)
@pytest.mark.parametrize("scope", ["local", "union"])
def test_rankings_equal_the_encoders_own_cosines(
    world: dict, model: str, stage: str, dim: int, layers: int | None, scope: str
) -> None:
    directory = world["artifacts"][stage].local("model")
    (qids, queries_QD), (dids, candidates_ND) = embed(directory, True, layers), embed(directory, False, layers)
    queries_QD, candidates_ND = (
        vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)
        for vectors in (queries_QD, candidates_ND)
    )
    scores = dict(zip(qids, queries_QD @ candidates_ND.T, strict=True))
    for task in (0, 3):
        pool = "union_test" if scope == "union" else f"shop_task{task}"
        inside = np.array([pool in row["pools"] for row in ingest_rows()[1]])
        run = read_run(world, model, scope, task)
        assert len(run) == 12
        for qid, found in run.items():
            best = np.sort(scores[qid][inside])[::-1]
            assert [score for _, score in found] == pytest.approx(best, abs=ROUNDING)
            assert [scores[qid][dids.index(did)] for did, _ in found] == pytest.approx(best, abs=ROUNDING)


@pytest.mark.parametrize("model", ["student", "teacher", "cut"])
@pytest.mark.parametrize("scope", ["local", "union"])
def test_measures_are_those_of_the_run_files(world: dict, model: str, scope: str) -> None:
    positives = {row["qid"]: row["positives"] for row in ingest_rows()[0]}
    for task in (0, 3):
        run = read_run(world, model, scope, task)
        measured = world["metrics"][model][scope]["tasks"][f"shop_task{task}"]
        for k in (1, 5, 10):
            hits = [any(did in positives[qid] for did, _ in found[:k]) for qid, found in run.items()]
            assert measured[f"hit@{k}"] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("scope", ["local", "union"])
def test_the_students_queries_are_asked_on_the_teachers_candidates_too(world: dict, scope: str) -> None:
    models = {name: world["artifacts"][name].local("model") for name in ("train", "backbone")}
    (qids, queries_QD), (dids, candidates_ND) = embed(models["train"], True), embed(models["backbone"], False)
    scores = dict(zip(qids, queries_QD @ candidates_ND.T, strict=True))
    for task in (0, 3):
        for qid, found in read_run(world, "asymmetric", scope, task).items():
            assert [scores[qid][dids.index(did)] for did, _ in found] == pytest.approx(
                [s for _, s in found], abs=ROUNDING
            )
    assert 0 <= world["metrics"]["asymmetric"][scope]["hit@5"] <= 1


@pytest.mark.parametrize("scope", ["local", "union"])
def test_each_trained_dimension_has_its_quality_in_the_report(world: dict, scope: str) -> None:
    (shorter,) = world["metrics"]["student"]["dimensions"]
    positives = {row["qid"]: row["positives"] for row in ingest_rows()[0]}
    hits = []
    for task in (0, 3):
        run = read_run(world, "student-16d", scope, task)
        hits.append(np.mean([any(did in positives[qid] for did, _ in found[:5]) for qid, found in run.items()]))
    assert shorter["dim"] == 16 and shorter[scope]["hit@5"] == pytest.approx(np.mean(hits))
    smaller = world["metrics"]["student"]["smaller"]
    assert (smaller["queries"], smaller["of"]) == (24, 24)
    found = {(row["dim"], row["precision"]): row for row in smaller["rows"]}
    assert list(found) == [(dim, name) for dim in (16, 32) for name in ("float16", "int8", "binary")]
    assert found[16, "float16"][scope] == pytest.approx(shorter[scope])
    whole = {name: value for name, value in world["metrics"]["student"][scope].items() if name != "tasks"}
    assert found[32, "float16"][scope] == pytest.approx(whole)
    report = world["artifacts"]["evaluate"].local("report.html").read_text()
    assert f"<td>16 × float16</td><td>32</td><td>{shorter['local']['hit@5']:.3f}</td>" in report
    assert "| 32 × binary | 4 |" in world["artifacts"]["evaluate"].local("tables/smaller.md").read_text()


def test_an_index_of_int8_finds_what_was_foretold_of_it(world: dict) -> None:
    artifacts = dict(world["artifacts"])
    floats = {row["did"]: row["vector"] for row in rows(artifacts["index"], "embeddings")}
    params = index.Params(precision="int8")
    artifacts["index"], indexed, _ = run_stage(world["store"], artifacts, "index", params, "8" * 16)
    card = artifacts["index"].read_json("retriever.json")
    precision, stored = Precision.of(card), rows(artifacts["index"], "embeddings")
    assert (card["backend"], card["dim"], indexed["rows"]) == ("exact", 32, 24)
    expected = precision.encode(np.array([floats[row["did"]] for row in stored]))
    codes = np.array([row["vector"] for row in stored], np.int16)
    assert np.abs(codes - expected).max() <= 1  # a value at the edge of a step may come out on either side of it
    _, measured, _ = run_stage(world["store"], artifacts, "evaluate", evaluate.Params(teacher=False), "8" * 16)
    assert measured["student"]["precision"] == "int8" and "smaller" not in measured["student"]
    told = {(row["dim"], row["precision"]): row for row in world["metrics"]["student"]["smaller"]["rows"]}[32, "int8"]
    for scope in ("local", "union"):
        assert measured["student"][scope]["hit@5"] == pytest.approx(told[scope]["hit@5"])


def test_means_weigh_each_set_the_same(world: dict) -> None:
    student = world["metrics"]["student"]["local"]
    tasks = student["tasks"].values()
    assert student["hit@5"] == pytest.approx(sum(task["hit@5"] for task in tasks) / len(tasks))


def test_a_positive_outside_the_pool_counts_as_missed(world: dict) -> None:
    # Each query of task 3 has a second positive that no pool holds: half of the relevant ones is the most to be found.
    task = world["metrics"]["student"]["local"]["tasks"]["shop_task3"]
    assert task["recall@10"] == pytest.approx(task["hit@10"] / 2)
    assert task["chance hit@5"] == pytest.approx(chance_of_hit(12, 1, 5))


def test_chance_depends_on_the_pool(world: dict) -> None:
    chance = world["metrics"]["chance"]
    assert chance["local"]["hit@5"] == pytest.approx(5 / 12)
    assert chance["union"]["hit@5"] == pytest.approx(5 / 24)


def test_costs_of_both_models_are_reported(world: dict) -> None:
    student, teacher = world["metrics"]["student"], world["metrics"]["teacher"]
    assert (student["layers"], teacher["layers"]) == (1, 2)
    assert student["dim"] == teacher["dim"] == 32
    assert 0 < student["parameters"] < teacher["parameters"]
    assert 0 < student["latency_ms"]["median"] <= student["latency_ms"]["p90"]


def test_the_teachers_vectors_are_shared_by_all_evaluations_of_one_backbone(world: dict) -> None:
    store, artifacts = world["store"], dict(world["artifacts"])
    keys = artifacts["evaluate"].read_json("teacher.json")
    assert set(keys) == {"teacher", "cut"}
    before = {name: store.artifact("teacher", key) for name, key in keys.items()}
    for one in before.values():
        assert sum(batch.num_rows for batch in ExactIndex.open(one).batches()) == 24
    del artifacts["evaluate"]
    params = evaluate.Params(queries_per_task=3)
    again, _, _ = run_stage(store, artifacts, "evaluate", params)
    assert again.read_json("teacher.json") == keys
    assert {name: store.artifact("teacher", key).attempt for name, key in keys.items()} == {
        name: one.attempt for name, one in before.items()
    }


def test_the_artifact_holds_tables_and_plots(world: dict) -> None:
    artifact = world["artifacts"]["evaluate"]
    assert artifact.read_json("metrics.json") == world["metrics"]
    table = artifact.local("table.txt").read_text()
    assert "text→image" in table and "image→text" in table
    assert max(map(len, table.splitlines())) <= 100
    assert artifact.local("plots/quality.png").read_bytes().startswith(b"\x89PNG")
    assert "| text→image |" in artifact.local("tables/local.md").read_text()
    assert {"quality.png", "cost.png", "local.md", "report.html"} <= set(world["tracker"].names)
    page = artifact.local("report.html").read_text()
    assert any(f"Something {colour}." in page for colour in COLOURS) and "data:image/webp;base64," in page


def test_mined_negatives_are_the_nearest_of_the_training_pool_below_the_positive(world: dict) -> None:
    directory = world["artifacts"]["train"].local("model")
    (qids, queries_QD), (dids, candidates_ND) = embed(directory, True), embed(directory, False)
    scores = dict(zip(qids, queries_QD @ candidates_ND.T, strict=True))
    asked = [row for row in ingest_rows()[0] if row["split"] == "train"]
    held = {row["did"]: row for row in ingest_rows()[1]}
    mined = {row["qid"]: row for row in rows(world["mining"], "negatives")}
    assert sorted(mined) == sorted(row["qid"] for row in asked) and len(mined) == 2 * TRAINED
    for number, query in enumerate(asked):
        row, score = mined[query["qid"]], dict(zip(dids, scores[qids[number]], strict=True))
        positive = score[query["positives"][0]]
        assert row["positive_score"] == pytest.approx(positive, abs=ROUNDING)
        assert not set(row["negatives"]) & set(query["positives"])
        for did, told in zip(row["negatives"], row["scores"], strict=True):
            assert "union_train" in held[did]["pools"] and held[did]["modality"] == query["target_modality"]
            assert told == pytest.approx(score[did], abs=ROUNDING) and told < row["limit"]
        pool = [did for did, one in held.items() if "union_train" in one["pools"]]
        below = [did for did in pool if held[did]["modality"] == query["target_modality"] and score[did] < positive]
        assert abs(len(row["negatives"]) - min(3, len(below))) <= 1  # rounding may move one over the limit


def test_the_audit_has_sums_and_examples(world: dict) -> None:
    summary = world["mining"].read_json("mining.json")
    table = rows(world["mining"], "negatives")
    assert summary["queries"] == 2 * TRAINED
    assert summary["negatives"] == sum(len(row["negatives"]) for row in table) > 0
    assert summary["too close"] == sum(row["too_close"] for row in table)
    lines = world["mining"].local("mining.txt").read_text().splitlines()
    assert sum(line.startswith("query 9:") for line in lines) == 2 * TRAINED
    assert any(line.startswith("query 9:900 Something red.") for line in lines)
    assert sum(" negative 9:" in line for line in lines) == summary["negatives"]  # at most three, all of them shown
    assert not any(entry["path"].startswith("mining/") for entry in world["mining"].manifest["files"])
