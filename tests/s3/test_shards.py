"""Shards on every kind of store: rows are streamed from it, files appear whole, those of a killed attempt are kept."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.distributed.shards import count_rows, cut, files, read
from tests.unit.test_shards import work

pytestmark = pytest.mark.s3


def write_input(store, sizes: list[int]):
    attempt = store.begin("ingest", "i")
    first = 0
    for number, size in enumerate(sizes):
        with attempt.open(f"candidates/{number:06d}.parquet") as file:
            pq.write_table(pa.table({"id": range(first, first + size)}), file, row_group_size=3)
        first += size
    return store.commit(attempt, {"metrics": {}, "inputs": {}})


def test_shards_are_read_written_and_taken_over(store):
    source = write_input(store, [5, 4])
    shards = cut(source, "candidates", 2)
    assert [
        n for shard in shards for table in read(shard, source.filesystem) for n in table["id"].to_pylist()
    ] == list(range(9))
    killed = store.begin("features", "k")
    work(killed, source, shards[:3])
    again = store.begin("features", "k")
    done = again.adopt("made")
    assert sorted(done) == [shard.name for shard in shards[:3]]
    work(again, source, shards[3:])
    assert count_rows(again, "made", len(shards)) == 5
    tables = [pq.read_table(path, filesystem=again.filesystem) for path in files(again, "made")]
    assert [n for table in tables for n in table["twice"].to_pylist()] == [0, 4, 8, 12, 16]
