"""Pools of actors with a GPU each, on a cluster that only believes in one: Ray Data must accept what it is asked."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow.fs import LocalFileSystem

from stages.contract.params import Cluster
from stages.distributed.actors import Work, carry_out
from stages.distributed.shards import Target, count_rows, cut, files, shard_work
from tests.support import begin

pytestmark = pytest.mark.ray


def unchanged(table: pa.Table) -> pa.Table:
    return table


@pytest.fixture
def context(shared_cluster: None, tmp_path: Path):
    made = begin(tmp_path / "store", "features", {"ingest": "ingest"})
    cluster = Cluster(gpus_per_worker=1, batch_size=1, rows_per_shard=2)
    return SimpleNamespace(cluster=cluster, inputs=made.inputs, output=made.output)


def gpu_of(models, table: pa.Table) -> pa.Table:
    """Stands for what models compute: tells on which GPU the actor was put."""
    return table.append_column("gpus", pa.array([",".join(map(str, ray.get_gpu_ids()))] * len(table)))


def test_work_is_carried_out_by_actors_with_a_gpu_each(context, tmp_path):
    path = str(tmp_path / "part.parquet")
    pq.write_table(pa.table({"id": range(7)}), path, row_group_size=2)
    source = SimpleNamespace(files=lambda prefix: [path], filesystem=LocalFileSystem())
    work = shard_work([Target(context.output, "made", unchanged)], cut(source, "x", 2), source, gpu_of, keep=unchanged)
    assert carry_out(context, {}, work, alone=[Work(answer, {"value": 5})]) == [None] * 4 + [5]
    written = pa.concat_tables(pq.read_table(file) for file in files(context.output, "made"))
    assert written["id"].to_pylist() == list(range(7)) and set(written["gpus"].to_pylist()) == {"0"}


def answer(models, *, value: int) -> int:
    return value


def test_timings_wait_in_the_pool_until_all_else_is_done_where_there_are_many_actors(context):
    context.cluster = Cluster(actors=2, gpus_per_worker=0.5)
    work = [Work(span, {"seconds": 0.5 if place == 3 else 0}) for place in range(6)]
    *done, first, second = carry_out(context, {}, work, alone=[Work(span, {"seconds": 0.3})] * 2)
    assert max(end for _, _, end in done) < first[1] and first[2] < second[1]
    assert {first[0], second[0]} <= {process for process, _, _ in done}  # no other process loads the model again


def span(models, *, seconds: float) -> tuple[int, float, float]:
    """The process, and when it worked."""
    start = time.time()
    time.sleep(seconds)
    return os.getpid(), start, time.time()


def test_work_that_fails_ends_what_waits_for_it(context):
    context.cluster = Cluster(actors=2, gpus_per_worker=0.5)
    with pytest.raises(Exception, match="broken here"):
        work = [Work(span, {"seconds": 0.5}), Work(broken, {})]
        carry_out(context, {}, work, alone=[Work(span, {"seconds": 0})])


def broken(models) -> None:
    raise ValueError("broken here")


def test_shards_of_a_killed_attempt_are_taken_over_and_the_rest_is_computed(context, tmp_path, capfd):
    path = str(tmp_path / "part.parquet")
    pq.write_table(pa.table({"id": range(7)}), path)
    source = SimpleNamespace(files=lambda prefix: [path], filesystem=LocalFileSystem())
    shards = cut(source, "x", 2)
    first = shard_work([Target(context.output, "made", unchanged)], shards[:3], source, gpu_of, keep=unchanged)
    carry_out(context, {}, first)  # and killed before the fourth
    again = begin(tmp_path / "store", "features", {"ingest": "ingest"})
    resumed = SimpleNamespace(cluster=context.cluster, inputs=context.inputs, output=again.output)
    rest = shard_work([Target(again.output, "made", unchanged)], shards, source, gpu_of, keep=unchanged)
    assert len(rest) == 1
    carry_out(resumed, {}, rest)
    assert count_rows(again.output, "made", 4) == 7
    assert "features: 3 of 4 shards of made were there" in capfd.readouterr().err
