"""Pools of actors with a GPU each, on a cluster that only believes in one: Ray Data must accept what it is asked."""

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow.fs import LocalFileSystem

from stages.contract.params import Cluster
from stages.distributed.embedding import map_with_models
from stages.distributed.shards import cut, files, map_shards
from tests.support import begin

pytestmark = pytest.mark.ray


class Placed:
    """Stands for a model: tells on which GPU it was put."""

    def __init__(self, ingest: str, cluster: Cluster, batch_size: int) -> None:
        self.gpus = ",".join(map(str, ray.get_gpu_ids()))

    def __call__(self, table: pa.Table) -> pa.Table:
        return table.append_column("gpus", pa.array([self.gpus] * len(table)))


def unchanged(table: pa.Table) -> pa.Table:
    return table


@pytest.fixture
def context(shared_cluster: None, tmp_path: Path):
    made = begin(tmp_path / "store", "features", {"ingest": "ingest"})
    return SimpleNamespace(cluster=Cluster(gpus_per_worker=1), inputs=made.inputs, output=made.output)


def test_tables_are_mapped_by_actors_with_a_gpu_each(context):
    dataset = ray.data.from_arrow(pa.table({"id": range(7)}))
    mapped = map_with_models(context, dataset, Placed, batch_size=1).take_all()
    assert sorted(row["id"] for row in mapped) == list(range(7))
    assert {row["gpus"] for row in mapped} == {"0"}


def test_shards_are_mapped_by_actors_with_a_gpu_each(context, tmp_path):
    path = str(tmp_path / "part.parquet")
    pq.write_table(pa.table({"id": range(7)}), path, row_group_size=2)
    source = SimpleNamespace(files=lambda prefix: [path], filesystem=LocalFileSystem())
    shards = cut(source, "x", 2)
    assert map_shards(context, "made", shards, source, Placed, keep=unchanged, finish=unchanged, batch_size=1) == 7
    written = pa.concat_tables(pq.read_table(file) for file in files(context.output, "made"))
    assert written["id"].to_pylist() == list(range(7)) and set(written["gpus"].to_pylist()) == {"0"}


def test_shards_of_a_killed_attempt_are_taken_over_and_the_rest_is_computed(context, tmp_path, capfd):
    path = str(tmp_path / "part.parquet")
    pq.write_table(pa.table({"id": range(7)}), path)
    source = SimpleNamespace(files=lambda prefix: [path], filesystem=LocalFileSystem())
    shards, ways = cut(source, "x", 2), {"keep": unchanged, "finish": unchanged, "batch_size": 1}
    map_shards(context, "made", shards[:3], source, Placed, **ways)  # and killed before the fourth
    again = begin(tmp_path / "store", "features", {"ingest": "ingest"})
    resumed = SimpleNamespace(cluster=context.cluster, inputs=context.inputs, output=again.output)
    assert map_shards(resumed, "made", shards, source, Placed, **ways) == 7
    assert "features: 3 of 4 shards of made were there" in capfd.readouterr().err
