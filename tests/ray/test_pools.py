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
from stages.distributed.shards import files, map_shards
from tests.support import begin

pytestmark = pytest.mark.ray


class Placed:
    """Stands for a model: tells on which GPU it was put."""

    def __init__(self, ingest: str, cluster: Cluster) -> None:
        self.gpus = ",".join(map(str, ray.get_gpu_ids()))

    def __call__(self, table: pa.Table) -> pa.Table:
        return table.append_column("gpus", pa.array([self.gpus] * len(table)))


def unchanged(table: pa.Table) -> pa.Table:
    return table


@pytest.fixture
def context(shared_cluster: None, tmp_path: Path):
    made = begin(tmp_path / "store", "features", {"ingest": "ingest"})
    cluster = Cluster(gpus_per_worker=1, batch_size=1, rows_per_shard=2)
    return SimpleNamespace(cluster=cluster, inputs=made.inputs, output=made.output)


def test_tables_are_mapped_by_actors_with_a_gpu_each(context):
    dataset = ray.data.from_arrow(pa.table({"id": range(7)}))
    mapped = map_with_models(context, dataset, Placed).take_all()
    assert sorted(row["id"] for row in mapped) == list(range(7))
    assert {row["gpus"] for row in mapped} == {"0"}


def test_shards_are_mapped_by_actors_with_a_gpu_each(context, tmp_path):
    path = str(tmp_path / "part.parquet")
    pq.write_table(pa.table({"id": range(7)}), path, row_group_size=2)
    source = SimpleNamespace(files=lambda prefix: [path], filesystem=LocalFileSystem())
    assert map_shards(context, "made", "x", source, Placed, keep=unchanged, finish=unchanged) == 7
    written = pa.concat_tables(pq.read_table(file) for file in files(context.output, "made"))
    assert written["id"].to_pylist() == list(range(7)) and set(written["gpus"].to_pylist()) == {"0"}
