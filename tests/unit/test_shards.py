"""Shards without Ray: every row once, whatever the files; a killed attempt's files are taken over, its rest is not."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from pipeline.artifacts.store import Store
from stages.contract.context import StageError
from stages.data.schemas import EMBEDDINGS
from stages.distributed import pools
from stages.distributed.shards import Target, count_rows, cut, files, read, shard_work, write_file

SCHEMA = pa.schema([("id", pa.int64())])


def artifact(directory: Path, sizes: list[int], group: int):
    """Parquet files of these sizes, in row groups of `group`, with the numbers from 0 on."""
    paths, first = [], 0
    for number, size in enumerate(sizes):
        path = str(directory / f"part-{number}.parquet")
        pq.write_table(pa.table({"id": range(first, first + size)}, SCHEMA), path, row_group_size=group)
        paths.append(path)
        first += size
    return SimpleNamespace(files=lambda prefix: paths, filesystem=LocalFileSystem())


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(0, 9), max_size=4), group=st.integers(1, 5), rows=st.integers(1, 12))
def test_shards_hold_every_row_once_in_order(tmp_path_factory, sizes, group, rows):
    source = artifact(tmp_path_factory.mktemp("rows"), sizes, group)
    shards = cut(source, "x", rows)
    found = [[n for table in read(one, source.filesystem) for n in table["id"].to_pylist()] for one in shards]
    assert [n for shard in found for n in shard] == list(range(sum(sizes)))
    assert all(len(shard) == rows for shard in found[:-1]) and all(found)
    assert [one.name for one in shards] == sorted({one.name for one in shards})


def doubled(models: str, table: pa.Table) -> pa.Table:
    """Stands for what models compute."""
    if models == "broken":
        raise ValueError("killed here")
    return table.append_column("twice", pa.array([2 * n for n in table["id"].to_pylist()], pa.int64()))


def even(table: pa.Table) -> pa.Table:
    return table.filter(pa.array([n % 2 == 0 for n in table["id"].to_pylist()], pa.bool_()))


def unchanged(table: pa.Table) -> pa.Table:
    return table


def work(output, source, shards, models="models") -> None:
    for one in shard_work([Target(output, "made", unchanged)], shards, source, doubled, keep=even):
        one(models)


def content(output) -> dict[str, bytes]:
    return {Path(path).name: Path(path).read_bytes() for path in files(output, "made")}


def test_a_second_attempt_takes_over_what_is_whole_and_gives_the_same_bytes(tmp_path):
    source = artifact(tmp_path, [7, 6], 3)
    shards = cut(source, "x", 2)
    whole = Store(tmp_path / "whole").begin("features", "k")
    work(whole, source, shards)
    store = Store(tmp_path / "store")
    killed = store.begin("features", "k")
    work(killed, source, shards[:3])
    with pytest.raises(ValueError, match="killed"):
        work(killed, source, shards[3:4], "broken")
    again = store.begin("features", "k")
    todo = shard_work([Target(again, "made", unchanged)], shards, source, doubled, keep=even)
    assert [one.own["shard"] for one in todo] == shards[3:]
    for one in todo:
        one("models")
    assert content(again) == content(whole)
    assert count_rows(again, "made", len(shards)) == 7


def test_missing_files_stop_the_stage(tmp_path):
    source = artifact(tmp_path, [4], 4)
    output = Store(tmp_path / "store").begin("features", "k")
    shards = cut(source, "x", 2)
    work(output, source, shards[:1])
    with pytest.raises(StageError, match="1 of 2 files arrived"):
        count_rows(output, "made", len(shards))


def test_a_shard_of_which_nothing_is_kept_is_a_file_without_rows(tmp_path):
    source = artifact(tmp_path, [4], 4)
    output = Store(tmp_path / "store").begin("features", "k")
    shards = cut(source, "x", 1)
    work(output, source, shards)
    assert [pq.read_metadata(path).num_rows for path in files(output, "made")] == [1, 0, 1, 0]


def test_vectors_are_written_plain_and_repeated_words_with_a_dictionary(tmp_path):
    output, vectors = Store(tmp_path / "store").begin("index", "k"), np.eye(4, dtype=np.float16)
    columns = {"did": ["9:1", "9:2", "9:3", "9:4"], "dataset_id": [9] * 4, "modality": ["text"] * 4}
    table = pa.table(columns | {"pools": [["a", "b"]] * 4, "vector": vectors.tolist()}, EMBEDDINGS(4))
    write_file(table, output, "made/0.parquet")
    (path,) = files(output, "made")
    group = pq.read_metadata(path).row_group(0)
    stored = {group.column(at).path_in_schema.partition(".")[0]: group.column(at) for at in range(group.num_columns)}
    assert pq.read_table(path).equals(table)
    assert {name for name, column in stored.items() if column.has_dictionary_page} == set(stored) - {"vector"}
    assert {name for name, column in stored.items() if column.is_stats_set} == set(stored) - {"vector"}


def test_an_index_tells_its_rate_only_where_this_run_has_embedded_every_row(tmp_path, monkeypatch):
    def todo(output, shards: list) -> list:
        made = [Target(output, "made", lambda table: table.append_column("vector", vectors(len(table))))]
        return shard_work(made, shards, source, doubled, keep=even)

    def embedded(output) -> dict:
        monkeypatch.setattr(pools, "student_work", lambda *_: todo(output, shards))
        context = SimpleNamespace(output=output, inputs={"train": None})
        return pools.embed_pools(context, {"pools": ["p"], "rows": 5}, "made")

    def vectors(rows: int) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 4 * rows, pa.float16()), 4)

    monkeypatch.setattr(pools.checkpoint, "place", lambda artifact: artifact)
    monkeypatch.setattr(pools, "carry_out", lambda context, models, work, label: [one("models") for one in work])
    source, store = artifact(tmp_path, [7, 3], 3), Store(tmp_path / "store")
    shards = cut(source, "x", 2)
    first = embedded(store.begin("index", "k"))
    assert pools.rate(first, 5, 2.0) == {"rows_per_second": 2.5} and first["dim"] == 4
    shutil.rmtree(Path(first["files"][0]).parents[2])
    for one in todo(store.begin("index", "k"), shards[:2]):
        one("models")
    assert pools.rate(embedded(store.begin("index", "k")), 5, 2.0) == {}
