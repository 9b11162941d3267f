"""Which queries are asked, of which pools, and what a block of them comes to."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from stages.contract.context import Artifact, StageError
from stages.data import schemas
from stages.distributed.embedding import vector_column
from stages.evaluate import Ranker, summarise
from stages.evaluation import sets
from stages.evaluation.rank import Pools, Tally, rank_blocks
from stages.evaluation.sets import find_sets, is_asked, query_blocks, rejected_sets, run_file, spaced_rows
from stages.index import summarise_pools
from stages.search.exact import ExactIndex
from tests.search_world import open_store, write_ingest, write_rows


@pytest.fixture
def ingest(tmp_path) -> Iterator:
    return write_ingest(open_store(str(tmp_path)))


def test_a_run_file_is_called_as_its_set_where_any_file_may_be_and_is_one_of_its_folder_else() -> None:
    assert run_file("student.local", "shop_task3") == "student.local.shop_task3.trec"
    names = ["../../etc_task0", "photo to label_task3", "photo-to-label_task3", "C/D_task3", "靴" * 64 + "_task3"]
    files = [run_file("student.local", name) for name in names]
    assert len(set(files)) == len(names)
    assert all("/" not in file and len(file.encode()) < 255 for file in files)


@given(st.integers(1, 300), st.integers(1, 300))
def test_exactly_as_many_queries_are_asked_as_wanted_and_evenly_spaced(stored: int, asked: int) -> None:
    asked = min(asked, stored)
    places = [place for place in range(stored) if is_asked(place, stored, asked)]
    assert len(places) == asked
    gaps = np.diff(places)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 20))
def test_rows_are_chosen_over_all_blocks_as_if_they_were_one(sizes: list[int], count: int) -> None:
    whole = pa.table({"row": pa.array(range(sum(sizes)), pa.int64())})
    blocks = [whole.slice(sum(sizes[:number]), size) for number, size in enumerate(sizes)]
    wanted = min(count, len(whole))
    expected = [row for row in range(len(whole)) if is_asked(row, len(whole), wanted)]
    assert [row["row"] for row in spaced_rows(blocks, count)] == expected
    assert len(expected) == wanted


def test_a_set_is_one_task_of_one_dataset_in_the_split(ingest) -> None:
    found = find_sets(ingest, "test", 0)
    assert [(one.name, one.label, one.pool, one.stored, one.asked) for one in found] == [
        ("shop_task0", "text→image", "shop_task0", 12, 12),
        ("shop_task3", "image→text", "shop_task3", 12, 12),
    ]


def test_the_limit_holds_for_each_set(ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "BLOCK", 3)
    found = find_sets(ingest, "test", 5)
    blocks = list(query_blocks(ingest, "test", found))
    assert [block.num_rows for block in blocks] == [3, 3, 3, 1]
    rows = pa.concat_tables(blocks).to_pylist()
    assert [sum(row["task_id"] == task for row in rows) for task in (0, 3)] == [5, 5]
    assert len({row["qid"] for row in rows}) == 10


def stored(store, queries: list[dict]) -> Artifact:
    """An ingest artifact of test queries; what they don't say is the same for all."""
    common = {"split": "test", "task_id": 0, "modality": "text", "target_modality": "text", "text": "A."}
    attempt = store.begin("ingest", "2" * 16)
    rows = [{**common, "positives": ["1:1"], "negatives": [], "pool": "union_test", **query} for query in queries]
    write_rows(attempt, "queries", rows, schemas.QUERIES)
    return store.commit(attempt, {"metrics": {}})


def test_two_datasets_that_share_an_id_are_two_sets(tmp_path) -> None:
    queries = [{"qid": f"0:{number}", "dataset_id": 0} for number in range(4)]
    names = ("shoes", "bags", "shoes", "shoes")
    rows = [{**query, "dataset": name} for query, name in zip(queries, names, strict=True)]
    ingest = stored(open_store(str(tmp_path)), rows)
    found = find_sets(ingest, "test", 0)
    assert [(one.name, one.stored) for one in found] == [("bags_task0", 1), ("shoes_task0", 3)]
    assert sum(block.num_rows for block in query_blocks(ingest, "test", found)) == 4


def test_one_dataset_with_two_ids_is_one_set(tmp_path) -> None:
    queries = [{"qid": f"{number}:1", "dataset": "shoes", "dataset_id": number} for number in (1, 2)]
    ingest = stored(open_store(str(tmp_path)), queries)
    found = find_sets(ingest, "test", 0)
    assert [(one.name, one.stored) for one in found] == [("shoes_task0", 2)]
    assert sum(block.num_rows for block in query_blocks(ingest, "test", found)) == 2


def counted(tmp_path, rejected: dict[str, int]) -> Artifact:
    """An ingest artifact of eight queries of one set whose statistics know of rejected ones."""
    store = open_store(str(tmp_path))
    attempt = store.begin("ingest", "3" * 16)
    common = {"split": "test", "dataset": "shoes", "dataset_id": 1, "task_id": 0, "modality": "text", "text": "A."}
    common |= {"target_modality": "text", "positives": ["1:1"], "negatives": [], "pool": "union_test"}
    write_rows(attempt, "queries", [{**common, "qid": f"1:{number}"} for number in range(8)], schemas.QUERIES)
    attempt.write_json("stats.json", {"queries": {"rejected_by_task": {"test": rejected, "val": {"shoes_task0": 99}}}})
    return store.commit(attempt, {"metrics": {}})


@pytest.mark.parametrize(("limit", "missed"), [(0, 4), (8, 4), (4, 2), (1, 0)])
def test_rejected_queries_stay_in_the_denominator_and_in_proportion_where_not_all_are_asked(
    tmp_path, limit: int, missed: int
) -> None:
    (one,) = find_sets(counted(tmp_path, {"shoes_task0": 4, "lost_task1": 5}), "test", limit)
    assert one.missed == missed


def test_a_set_that_is_all_rejected_is_known_with_its_queries(tmp_path) -> None:
    ingest = counted(tmp_path, {"shoes_task0": 4, "lost_task1": 5})
    assert rejected_sets(ingest, "test", find_sets(ingest, "test", 0)) == {"lost_task1": 5}


def test_a_query_that_was_rejected_counts_as_missed(tmp_path) -> None:
    sets_ = find_sets(counted(tmp_path, {"shoes_task0": 2}), "test", 0)
    total = Ranker(None, sets_, None).blank()
    for tally in total.values():
        tally.add(Tally(8, {"hit@5": 8.0}, {"hit@5": 4.0}))
    found = summarise(Ranker(None, sets_, Pools(None, {"union_test": 3}, 3)), {"student": total}, {}, True)["student"]
    task = found["local"]["tasks"]["shoes_task0"]
    assert (task["hit@5"], task["chance hit@5"], task["queries"], task["missed"]) == (0.8, 0.4, 10, 2)


@pytest.mark.parametrize("trained", [True, False])
def test_a_share_of_the_teacher_is_told_where_it_was_trained_on_the_data(tmp_path, trained: bool) -> None:
    sets_ = find_sets(counted(tmp_path, {}), "test", 0)
    tallies = {
        model: {("shoes_task0", scope): Tally(8, {"hit@5": hits}, {"hit@5": 1.0}) for scope in ("local", "union")}
        for model, hits in (("student", 6.0), ("teacher", 3.0))
    }
    found = summarise(Ranker(None, sets_, Pools(None, {"union_test": 3}, 3)), tallies, {}, trained)
    assert found.get("kept") == ({"local hit@5": 2.0, "union hit@5": 2.0} if trained else None)


def test_a_split_without_queries_is_refused(ingest) -> None:
    with pytest.raises(StageError, match="no query of split val was ingested"):
        find_sets(ingest, "val", 0)


def test_pools_are_counted_and_other_candidates_left_out(ingest) -> None:
    summary = summarise_pools(ingest, "test")
    assert summary["pools"] == {"shop_task0": 12, "shop_task3": 12, "union_test": 24}
    assert summary["rows"] == 24


def test_a_pool_without_candidates_is_refused(tmp_path) -> None:
    store = open_store(str(tmp_path))
    attempt = store.begin("ingest", "1" * 16)
    query = {"qid": "1:1", "split": "test", "dataset": "d", "dataset_id": 1, "task_id": 0, "positives": ["1:1"]}
    query |= {"modality": "text", "target_modality": "text", "text": "A.", "negatives": [], "pool": "d_task0"}
    candidate = {"did": "1:1", "dataset_id": 1, "modality": "text", "text": "B.", "content_id": "c", "pools": []}
    write_rows(attempt, "queries", [query], schemas.QUERIES)
    write_rows(attempt, "candidates", [candidate], schemas.CANDIDATES)
    with pytest.raises(StageError, match="pool d_task0 of split test has no candidate"):
        summarise_pools(store.commit(attempt, {"metrics": {}}), "test")


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # the second by the code for GPUs
def test_a_block_of_mixed_sets_is_ranked_set_by_set(tmp_path, ingest, device) -> None:
    # Unit vectors on three axes: each query finds the candidate of its own axis first.
    axes = np.eye(3, dtype=np.float32)
    corpus = {"did": ["1:0", "1:1", "1:2"], "modality": ["text"] * 3, "pools": [["a", "u"], ["a", "u"], ["b", "u"]]}
    table = pa.table(corpus).append_column("vector", vector_column(axes, "test"))
    pq.write_table(table, tmp_path / "corpus.parquet")
    index = ExactIndex((str(tmp_path / "corpus.parquet"),), LocalFileSystem())
    block = pa.table(
        {
            "qid": ["q0", "q1", "q2"],
            "dataset": ["d"] * 3,
            "task_id": [0, 1, 0],
            "positives": [["1:0"], ["1:2"], ["1:2"]],
        }
    ).append_column("vector", vector_column(axes[[0, 2, 1]], "test"))
    asked = [
        sets.EvaluationSet("d", 0, "text", "text", "a", 2, 2),
        sets.EvaluationSet("d", 1, "text", "text", "b", 1, 1),
    ]
    pools = Pools("u", {"a": 2, "b": 1, "u": 3}, 3)
    (tallies,) = rank_blocks([block], asked, pools, index, 10, "puma", device)
    # q2's positive lies outside its pool a: missed there, found second or later in the union.
    assert tallies["d_task0", "local"].means()["hit@10"] == 0.5
    assert tallies["d_task0", "union"].means()["hit@10"] == 1.0
    assert tallies["d_task0", "local"].chances()["hit@1"] == pytest.approx((1 / 2 + 0) / 2)
    assert tallies["d_task1", "local"].means()["hit@1"] == 1.0
    assert tallies["d_task1", "union"].chances()["hit@1"] == pytest.approx(1 / 3)
    assert [line.split()[0] for line in tallies["d_task1", "local"].trec] == ["q1"]


def test_tallies_of_blocks_add_up_to_those_of_the_whole() -> None:
    whole = Tally()
    whole.add(Tally(3, {"hit@5": 3.0}, {"hit@5": 0.3}))
    whole.add(Tally(1, {"hit@5": 0.0}, {"hit@5": 0.1}))
    assert whole.means() == {"hit@5": 0.75}
    assert whole.chances() == {"hit@5": pytest.approx(0.1)}
