"""The table of bytes against quality: its numbers are those of a plain computation over all vectors at once."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from stages.distributed.embedding import vector_column
from stages.evaluation import smaller
from stages.evaluation.rank import Pools, Tally
from stages.evaluation.sets import EvaluationSet
from stages.search.exact import ExactIndex

DIM, SHORT, ROWS = 12, 8, 60
SETS = [EvaluationSet("d", 0, "text", "text", "a", 14, 14), EvaluationSet("d", 1, "text", "text", "b", 9, 9, 1)]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def world(tmp_path) -> dict:
    """Sixty candidates in two pools, and queries close to their positives, in two files."""
    random = np.random.default_rng(5)
    held = unit(random.normal(size=(ROWS, DIM)) + 1)
    right = random.permutation(ROWS)[:23]
    right = np.concatenate([right[right < 40], right[right >= 40]])
    sizes = (int((right < 40).sum()), int((right >= 40).sum()))
    asked = unit(held[right] + 0.25 * random.normal(size=(23, DIM)))
    dids = [f"c{row:02d}" for row in range(ROWS)]
    pools = [["a", "u"] if row < 40 else ["b", "u"] for row in range(ROWS)]
    corpus = pa.table({"did": dids, "modality": ["text"] * ROWS, "pools": pools})
    pq.write_table(corpus.append_column("vector", vector_column(held, "test")), tmp_path / "corpus.parquet")
    queries = pa.table(
        {
            "qid": [f"q{row}" for row in range(23)],
            "dataset": ["d"] * 23,
            "task_id": [0 if row < 40 else 1 for row in right],
            "positives": [[dids[row]] for row in right],
        }
    ).append_column("vector", vector_column(asked, "test"))
    files = [str(tmp_path / name) for name in ("0.parquet", "1.parquet")]
    pq.write_table(queries.slice(0, 10), files[0])
    pq.write_table(queries.slice(10), files[1])
    return {
        "index": ExactIndex((str(tmp_path / "corpus.parquet"),), LocalFileSystem()),
        "files": files,
        "sets": [replace(one, stored=size, asked=size) for one, size in zip(SETS, sizes, strict=True)],
        "pools": Pools("u", {"a": 40, "b": 20, "u": ROWS}, ROWS),
        "held": held.astype(np.float16).astype(np.float32),
        "asked": asked.astype(np.float16).astype(np.float32),
        "right": right,
    }


def table(world: dict, shares: int = 1, device: str = "cpu") -> list[dict]:
    sets, queries = smaller.choose(world["files"], LocalFileSystem(), world["sets"])
    precisions = smaller.find_precisions(world["index"], [SHORT, DIM])
    parts = [
        smaller.rank(part, sets, world["pools"], world["index"], precisions, device)
        for part in smaller.shares(queries, shares)
    ]
    return smaller.tabulate(sets, precisions, parts)


def hits(world: dict, dim: int, name: str, union: bool) -> float:
    """The mean over both sets of hit@5, of which the second has missed a query more."""
    held, asked = (world[side][:, :dim] for side in ("held", "asked"))
    if dim < DIM:
        held, asked = unit(held), unit(asked)
    if name == "int8":
        low, high = held.min(0), held.max(0)
        held = low + (np.minimum(np.floor((held - low) / ((high - low) / 255)), 255) + 0.5) * (high - low) / 255
    if name == "binary":
        held = np.where(held > 0, 1.0, -1.0)
    scores = (asked @ held.T).round(5)
    found: dict[bool, list[bool]] = {True: [], False: []}
    for query, right in enumerate(world["right"]):
        pool = np.ones(ROWS, bool) if union else (np.arange(ROWS) < 40) == (right < 40)
        before = (scores[query] == scores[query, right]) & (np.arange(ROWS) < right)  # equal signs, a lower id
        found[bool(right < 40)].append((pool & (before | (scores[query] > scores[query, right]))).sum() < 5)
    return (np.mean(found[True]) + sum(found[False]) / (len(found[False]) + 1)) / 2


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # the second by the code for GPUs
def test_every_number_is_that_of_all_vectors_at_once(world, device) -> None:
    rows = table(world, device=device)
    assert [(row["dim"], row["precision"], row["bytes"]) for row in rows] == [
        (8, "float16", 16), (8, "int8", 8), (8, "binary", 1), (12, "float16", 24), (12, "int8", 12), (12, "binary", 2),
    ]  # fmt: skip
    whole = {scope: hits(world, DIM, "float16", scope == "union") for scope in ("local", "union")}
    for row in rows:
        for scope in ("local", "union"):
            expected = hits(world, row["dim"], row["precision"], scope == "union")
            assert row[scope]["hit@5"] == pytest.approx(expected)
            assert row["lost"][scope] == pytest.approx(whole[scope] - expected)
    assert rows[2]["lost"]["union"] > rows[4]["lost"]["union"]  # eight signs lose more than twelve bytes


def test_shares_of_the_queries_add_up_to_the_whole(world, monkeypatch) -> None:
    whole = table(world)
    monkeypatch.setattr(smaller, "BLOCK", 8)
    parts = table(world, shares=5)
    assert len(smaller.shares(pa.table({"qid": range(23)}), 5)) == 3  # of eight queries at most
    assert [row["local"] for row in parts] == [pytest.approx(row["local"]) for row in whole]
    assert [row["lost"] for row in parts] == [pytest.approx(row["lost"]) for row in whole]


def test_many_queries_are_asked_as_an_even_sample_of_each_set(world, monkeypatch) -> None:
    monkeypatch.setattr(smaller, "QUERIES", 8)
    sets = [world["sets"][0], replace(world["sets"][1], missed=5)]
    fewer, queries = smaller.choose(world["files"], LocalFileSystem(), sets)
    assert [one.asked for one in fewer] == [4, 4] and queries.num_rows == 8
    assert [one.missed for one in fewer] == [0, round(5 * 4 / sets[1].asked)]
    places = [int(qid[1:]) for qid in queries["qid"].to_pylist()[:4]]
    assert places[-1] == sets[0].asked - 1 and max(np.diff(places)) - min(np.diff(places)) <= 1


def test_queries_that_nobody_could_ask_count_as_missed() -> None:
    part = {("d_task1", scope): Tally(3, {"hit@5": 3.0}) for scope in ("local", "union")}
    found = smaller.total(SETS[1:], [part, part])
    assert found["d_task1", "local"].means() == {"hit@5": 6 / 7}
