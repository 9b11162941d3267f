"""Which rows the teacher reads: those that a distillation comes to, whatever its own seed, and none else."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from stages.contract.params import Cluster
from stages.data.keys import hash_ids
from stages.distill import Params
from stages.distributed import lessons
from stages.distributed.actors import packed
from stages.learn.sampling import PairSampler
from tests.loads_world import loads
from tests.support import begin, rows
from tests.training_world import PAIRS, write_ingest


@pytest.fixture
def ingest(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_ingest(tmp_path / "store")


def drawn(tmp_path: Path, ingest, distill: Params, seed: int = 0) -> np.ndarray:
    """The hashes of the queries that are read for a distillation."""
    return lessons.drawn_queries(lessons.Lesson("features", ingest, distill.draws, distill.smallest_task), seed)


@pytest.mark.parametrize("more", [{}, {"smallest_task": PAIRS}, {"sub_batch": 2, "smallest_task": 9}])
def test_the_queries_are_those_of_all_trainings_with_these_steps(tmp_path, ingest, more):
    distill = Params(steps=3, batch_size=4, **more)
    found = drawn(tmp_path, ingest, distill, seed=5)
    place = {"world": 1, "rank": 0, "vary_instructions": False, "subset": (distill.draws, 5)}
    samplers = [PairSampler(ingest, distill, seed=seed, **place) for seed in range(9)]
    pairs = [sampler.pairs(step) for sampler in samplers for step in range(distill.steps)]
    asked = {qid for one in pairs for qid in one.query_ids}
    assert found.dtype == np.uint64 and set(found) == set(hash_ids(asked)) and len(asked) < PAIRS
    positives = lessons.candidate_hashes(ingest, found)
    known = {row["qid"]: row["positives"] for row in rows(ingest, "queries")}
    assert positives.tolist() == sorted(set(hash_ids(did for qid in asked for did in known[qid])))
    assert {did for one in pairs for did in one.candidate_ids} <= {did for qid in asked for did in known[qid]}


def test_all_queries_are_read_for_as_many_draws_and_none_for_none(tmp_path, ingest):
    assert len(drawn(tmp_path, ingest, Params(steps=6, batch_size=4))) == PAIRS
    assert len(drawn(tmp_path, ingest, Params(steps=0))) == 0
    assert len(lessons.candidate_hashes(ingest, np.empty(0, np.uint64))) == 0


def test_a_query_of_another_split_is_not_read_for_its_name(tmp_path, ingest):
    context = begin(tmp_path / "features", "features", {"ingest": ingest})
    path = lessons.write_hashes(context, "queries", np.sort(hash_ids(["9:1", "9:2"])))
    table = pa.table({"qid": ["9:1", "9:1", "9:2", "9:3"], "split": ["train", "val", "train", "train"]})
    kept = lessons._among_train(table, path, context.output.filesystem)
    assert kept.to_pylist() == [{"qid": "9:1", "split": "train"}, {"qid": "9:2", "split": "train"}]


def test_a_shard_to_read_goes_to_its_actor_without_the_manifest_of_its_rows(tmp_path, ingest):
    ingest.manifest["files of a large corpus"] = "x" * 100_000
    sections = {"distill": Params(steps=6, batch_size=4), "train": SimpleNamespace(taught=False), "seed": 0}
    context = begin(tmp_path / "features", "features", {"ingest": ingest}, **sections)
    context = replace(context, cluster=Cluster(rows_per_shard=4))
    calls, tables = packed(lessons.reading(context, layer=1))
    assert len(calls) == 2 and len(tables) == 2 * PAIRS / 4  # for queries and for candidates
    assert max(table.nbytes for table in tables) < 1000


@pytest.mark.parametrize(("layer", "expected"), [(-1, 1), ("auto", 2)])
def test_an_actor_loads_the_teacher_once_and_once_more_where_the_layer_is_chosen_first(
    tmp_path, monkeypatch, layer, expected
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert loads(tmp_path, layer) == expected
