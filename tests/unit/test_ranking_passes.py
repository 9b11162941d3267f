"""How often ranking reads the corpus: which blocks go over it together, and how many tasks there are for them."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow.fs import LocalFileSystem

from stages.contract.params import Cluster
from stages.distributed.embedding import vector_column
from stages.evaluate import LARGE, Ranker, grouped, ray_slots
from stages.evaluation.rank import Pools, rank_blocks
from stages.evaluation.sets import EvaluationSet
from stages.search.exact import ExactIndex

MBEIR = [f"{number:06d}.parquet" for number in range(186)]  # blocks of M-BEIR's test queries


@pytest.mark.parametrize(
    ("device", "slots", "candidates", "passes"),
    [
        *[("cpu", slots, 5_600_000, 24) for slots in (1, 23, 52, 388)],
        *[("cpu", slots, LARGE - 1, passes) for slots, passes in ((2, 24), (52, 47), (388, 186))],
        *[("cuda", slots, 5_600_000, passes) for slots, passes in ((1, 6), (4, 6), (32, 31))],
    ],
)
def test_a_large_corpus_is_read_by_few_tasks_that_are_full_and_a_small_one_by_all_at_once(
    device, slots, candidates, passes
):
    groups = grouped(MBEIR, device, slots, candidates)
    assert len(groups) == passes and [*chain(*groups)] == MBEIR


def test_without_queries_there_is_no_pass():
    assert grouped([], "cpu", 4, 10) == grouped([], "cuda", 4, LARGE) == []


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (0, ({"num_cpus": 1}, "cpu", 6)),
        (1, ({"num_gpus": 1}, "cuda", 3)),
        (0.5, ({"num_gpus": 0.5}, "cuda", 6)),
        (4, ({"num_gpus": 4}, "cuda", 1)),
    ],
)
def test_tasks_ask_for_what_the_processes_of_the_cluster_have(monkeypatch, gpus, expected):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0, "GPU": 3.0})
    assert Ranker(SimpleNamespace(cluster=Cluster(gpus_per_worker=gpus)), [], None).workers() == expected


def test_what_a_cluster_lacks_today_makes_one_slot(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0})
    assert ray_slots("GPU", 1) == 1


@pytest.mark.parametrize(
    ("device", "reads"),
    [("cpu", [None]), ("cpu:0", [("did",), None])],  # the second by the code for GPUs, which sorts all ids first
)
def test_eight_blocks_and_two_filters_are_one_pass_over_the_corpus(tmp_path, monkeypatch, device, reads):
    axes = np.eye(3, dtype=np.float32)
    corpus = pa.table({"did": ["c0", "c1", "c2"], "modality": ["text"] * 3, "pools": [["a", "u"], ["a", "u"], ["u"]]})
    pq.write_table(corpus.append_column("vector", vector_column(axes, "test")), tmp_path / "corpus.parquet")
    index = ExactIndex((str(tmp_path / "corpus.parquet"),), LocalFileSystem())
    asked = [
        pa.table({"qid": [f"q{block}"], "dataset": ["d"], "task_id": [0], "positives": [["c1"]]}).append_column(
            "vector", vector_column(axes[[block % 3]], "test")
        )
        for block in range(8)
    ]
    of_index, seen = ExactIndex.batches, []

    def counted(self, *columns):
        seen.append(tuple(columns[0]) if columns else None)
        return of_index(self, *columns)

    monkeypatch.setattr(ExactIndex, "batches", counted)
    sets, pools = [EvaluationSet("d", 0, "text", "text", "a", 8, 8)], Pools("u", {"a": 2, "u": 3}, 3)
    tallies = list(rank_blocks(asked, sets, pools, index, 2, None, device))
    assert seen == reads
    assert [one["d_task0", "union"].sums["hit@1"] for one in tallies] == [block % 3 == 1 for block in range(8)]
    assert {scope for one in tallies for _, scope in one} == {"local", "union"}
