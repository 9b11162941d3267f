"""Exact search gives what a brute-force float64 ranking gives: ties, filters and tile borders included.

By numpy, and by the code for a GPU on this machine's CPU.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from stages.search import device, exact
from stages.search.exact import Asked, ExactIndex, asked_of, search_all
from stages.search.filters import Filter
from stages.search.ranking import Ranking

DIM = 4
POOLS = ("a", "b", "union_test")
MODALITIES = ("text", "image", "image,text")


def corpus(vectors: np.ndarray, dids: list[str], seed: int = 0) -> pa.Table:
    """A table with the columns of an index; pools and modalities drawn from `seed`."""
    random = np.random.default_rng(seed)
    flat = pa.array(vectors.astype(np.float16).reshape(-1), pa.float16())
    return pa.table(
        {
            "did": pa.array(dids, pa.string()),
            "modality": pa.array([MODALITIES[i] for i in random.integers(0, 3, len(dids))], pa.string()),
            "pools": pa.array(
                [[name for name in POOLS if random.random() < 0.6] for _ in dids], pa.list_(pa.string())
            ),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )


def brute_force(table: pa.Table, query: np.ndarray, k: int, chosen: Filter) -> list[tuple[float, str]]:
    scored = []
    for row in table.to_pylist():
        if chosen.pool is not None and chosen.pool not in row["pools"]:
            continue
        if chosen.modalities and row["modality"] not in chosen.modalities:
            continue
        score = float(np.dot(np.asarray(row["vector"], np.float64), query.astype(np.float64)))
        scored.append((-score, row["did"]))
    return [(-negative, did) for negative, did in sorted(scored)[:k]]


def search_batches(
    batches: list[pa.RecordBatch], queries: np.ndarray, k: int, filters: list[Filter], code: str = "exact"
) -> list[Ranking]:
    return search_blocks(batches, [asked_of(queries, filters)], k, code)[0]


def search_blocks(batches: list[pa.RecordBatch], asked: list[Asked], k: int, code: str) -> list[list[Ranking]]:
    if code == "exact":
        return search_all(batches, asked, k)
    return device.search_all(batches, device.Ids.of(batch["did"] for batch in batches), asked, k, "cpu")


by_either = pytest.mark.parametrize("code", ["exact", "device"])


@st.composite
def searches(draw: st.DrawFn) -> tuple[pa.Table, np.ndarray, int, int]:
    # Small halves are exact in float16 and in any order of summation, so that scores tie often and exactly.
    count, queries = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    halves = st.integers(-2, 2).map(lambda i: i / 2)
    values = draw(st.lists(halves, min_size=(count + queries) * DIM, max_size=(count + queries) * DIM))
    matrix = np.array(values, dtype=np.float32).reshape(count + queries, DIM)
    dids = draw(st.permutations([f"7:{i}" for i in range(count)]))
    table = corpus(matrix[:count], dids, draw(st.integers(0, 5)))
    return table, matrix[count:], draw(st.integers(1, 12)), draw(st.integers(1, 17))


@by_either
@settings(max_examples=150, deadline=None)
@given(search=searches())
def test_ranking_equals_a_brute_force_float64_reference(
    code: str, search: tuple[pa.Table, np.ndarray, int, int]
) -> None:
    table, queries, k, batch_rows = search
    filters = [Filter(), Filter(pool="a"), Filter(modalities=("image", "text")), Filter("b", ("image,text",))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "TILE", 8)
        found = search_batches(table.to_batches(max_chunksize=batch_rows), queries, k, filters, code)
    for chosen, ranking in zip(filters, found, strict=True):
        for row, query in enumerate(queries):
            expected = brute_force(table, query, k, chosen)
            assert ranking.dids[row] == [did for _, did in expected]
            assert ranking.scores[row] == pytest.approx([score for score, _ in expected])


@by_either
@pytest.mark.parametrize("queries, rows", [(1, 63), (3, 8192 + 200), (64, 2 * 8192 + 1)])
def test_equal_vectors_tie_wherever_they_lie_and_the_lower_id_comes_first(queries: int, rows: int, code: str) -> None:
    # Matrix libraries add up in another order for another shape: without equal shapes the last digits differ.
    random = np.random.default_rng(3)
    vectors = random.normal(size=(rows, 96)).astype(np.float32)
    twins = [0, 5, rows // 2, rows - 2, rows - 1]
    vectors[twins] = vectors[5]
    dids = [f"9:{i:05d}" for i in reversed(range(rows))]
    asked = np.concatenate([vectors[5:6], random.normal(size=(queries - 1, 96)).astype(np.float32)])
    found = search_batches(corpus(vectors, dids).to_batches(), asked, 5, [Filter()], code)[0]
    assert found.dids[0] == sorted(dids[i] for i in twins)
    assert len(set(found.scores[0])) == 1


@by_either
def test_a_pool_without_candidates_gives_empty_lists(code: str) -> None:
    table, empty = corpus(np.ones((3, DIM), np.float32), ["1:1", "1:2", "1:3"]), [Filter(pool="no such pool")]
    assert search_batches(table.to_batches(), np.ones((2, DIM), np.float32), 5, empty, code)[0].dids == [[], []]
    assert search_batches(table.to_batches(), np.ones((0, DIM), np.float32), 5, [Filter()], code)[0].dids == []


def test_blocks_that_pass_together_get_to_the_last_digit_what_each_gets_alone() -> None:
    random = np.random.default_rng(6)
    batches = corpus(random.normal(size=(9000, 96)), [f"4:{i}" for i in range(9000)]).to_batches(max_chunksize=1000)
    sizes, filters = (1, 5, 130), (Filter(pool="a"), Filter())
    asked = [asked_of(random.normal(size=(size, 96)), filters[: 1 + size % 2]) for size in sizes]
    together = search_blocks(batches, asked, 7, "exact")
    assert together == [search_blocks(batches, [one], 7, "exact")[0] for one in asked]
    for found, close in zip(together, search_blocks(batches, asked, 7, "device"), strict=True):
        assert [one.dids for one in found] == [one.dids for one in close]
        for one, two in zip(found, close, strict=True):
            np.testing.assert_allclose(one.scores, two.scores, atol=1e-5 * 96**0.5)  # of vectors of length √96 each


def test_an_index_over_several_files_equals_one_over_a_single_file(tmp_path) -> None:
    random = np.random.default_rng(1)
    table = corpus(random.normal(size=(90, 8)), [f"2:{i}" for i in range(90)])
    pq.write_table(table, tmp_path / "whole.parquet")
    for part in range(3):
        pq.write_table(table.slice(part * 30, 30), tmp_path / f"part-{part}.parquet")
    queries = random.normal(size=(3, 8)).astype(np.float32)
    whole = ExactIndex((str(tmp_path / "whole.parquet"),), LocalFileSystem())
    parts = ExactIndex(tuple(str(tmp_path / f"part-{i}.parquet") for i in (2, 0, 1)), LocalFileSystem())
    left, right = whole.search(queries, 10)[0], parts.search(queries, 10)[0]
    assert left.dids == right.dids
    assert np.allclose(left.scores, right.scores, atol=1e-6)


def test_only_one_tile_of_the_corpus_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "TILE", 32)
    seen = []
    original = exact._float32_rows

    def spy(tile: pa.Table, pad: bool) -> np.ndarray:
        seen.append(tile.num_rows)
        return original(tile, pad)

    monkeypatch.setattr(exact, "_float32_rows", spy)
    table = corpus(np.ones((100, DIM), np.float32), [str(i) for i in range(100)])
    search_batches(table.to_batches(max_chunksize=45), np.ones((1, DIM), np.float32), 3, [Filter()])
    assert seen == [32, 32, 32, 4]


@by_either
def test_a_collapsed_model_gives_the_lowest_ids_and_both_zeros_are_one(code: str) -> None:
    dids = [f"3:{i:03d}" for i in np.random.default_rng(4).permutation(300)]
    table = corpus(np.where(np.arange(300)[:, None] % 2, 0.0, -0.0) * np.ones((300, DIM)), dids)
    found = search_batches(table.to_batches(max_chunksize=70), np.ones((2, DIM), np.float32), 5, [Filter()], code)[0]
    assert found.dids == [sorted(dids)[:5]] * 2


def test_a_collapsed_model_costs_no_more_memory_than_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every candidate ties with every other: the lowest ids win, and no more than those are carried along.
    monkeypatch.setattr(exact, "TILE", 64)
    merged = []
    original = exact.TopK._merge

    def spy(self: exact.TopK, query: np.ndarray, score: np.ndarray, did: np.ndarray) -> None:
        merged.append(len(query))
        original(self, query, score, did)

    monkeypatch.setattr(exact.TopK, "_merge", spy)
    dids = [f"3:{i:03d}" for i in np.random.default_rng(4).permutation(300)]
    table = corpus(np.ones((300, DIM), np.float32), dids)
    found = search_batches(table.to_batches(), np.ones((2, DIM), np.float32), 5, [Filter()])[0]
    assert found.dids == [sorted(dids)[:5]] * 2
    assert max(merged) <= 2 * 5
