"""Memory-mapped tables: rows by number and by key, conditions, and one build for all processes."""

import os
import pickle
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from stages.contract.context import StageError
from stages.data import tables
from stages.data.schemas import CANDIDATES, FEATURES
from stages.data.tables import MappedTable


@dataclass
class Files:
    """An artifact of the Parquet files in a directory."""

    uri: str
    stage: str = "ingest"
    key: str = "k"
    manifest: dict = field(default_factory=lambda: {"attempt": "a"})

    @property
    def filesystem(self):
        return pyarrow.fs.LocalFileSystem()

    def files(self, prefix):
        return sorted(str(path) for path in Path(self.uri, prefix).glob("*.parquet"))


def candidate(number: int) -> dict:
    pools = ["p"] if number % 2 else ["p", "q"]
    return {"did": f"1:{number}", "dataset_id": 1, "modality": "text", "text": f"T{number}.", "pools": pools}


@pytest.fixture
def artifact(tmp_path):
    write(tmp_path / "art" / "candidates", [range(0, 1500), range(1500, 1500), range(1500, 3000)])
    return Files(str(tmp_path / "art"))


def write(directory: Path, parts) -> None:
    directory.mkdir(parents=True)
    for number, part in enumerate(parts):
        table = pa.Table.from_pylist([candidate(number) for number in part], CANDIDATES)
        pq.write_table(table, directory / f"{number}.parquet")


def test_every_row_is_found_by_its_key_and_by_its_number(artifact, tmp_path):
    table = MappedTable.open(artifact, "candidates", "did", cache=tmp_path / "cache")
    assert len(table) == 3000
    for number in (0, 1499, 1500, 2999):
        row = table.row(table.find(f"1:{number}"))
        assert (row["text"], row["image_id"]) == (f"T{number}.", None)
    assert {table.row(index)["did"] for index in range(3000)} == {f"1:{number}" for number in range(3000)}


def test_many_files_are_copied_side_by_side(tmp_path):
    parts = [range(start, start + 100) for start in range(0, 2000, 100)]
    write(tmp_path / "art" / "candidates", parts)
    table = MappedTable.open(Files(str(tmp_path / "art")), "candidates", "did", cache=tmp_path / "cache")
    assert len(list(table.directory.glob("*.arrow"))) == tables.COPIERS < len(parts)
    assert [table.row(table.find(f"1:{number}"))["text"] for number in (0, 99, 1200, 1999)] == [
        "T0.", "T99.", "T1200.", "T1999."
    ]  # fmt: skip
    assert {row["did"] for row in map(table.row, range(2000))} == {f"1:{number}" for number in range(2000)}


def test_what_is_not_there_is_a_key_error(artifact, tmp_path):
    table = MappedTable.open(artifact, "candidates", "did", cache=tmp_path / "cache")
    assert "1:5" in table and "1:3000" not in table
    with pytest.raises(KeyError):
        table.find("1:3000")
    with pytest.raises(IndexError):
        table.row(3000)
    with pytest.raises(IndexError):
        table.row(-1)


def test_the_order_of_rows_does_not_depend_on_the_files(artifact, tmp_path):
    write(tmp_path / "other" / "candidates", [range(2000, 3000), range(2000)])
    one = MappedTable.open(artifact, "candidates", "did", cache=tmp_path / "cache")
    other = MappedTable.open(Files(str(tmp_path / "other")), "candidates", "did", cache=tmp_path / "cache")
    assert one.column("did").to_pylist() == other.column("did").to_pylist()
    assert one.column("did")[7].as_py() == one.row(7)["did"]


@pytest.mark.parametrize(
    ("where", "count"),
    [({"pools": "q"}, 1500), ({"pools": "p"}, 3000), ({"did": ["1:1", "1:2"]}, 2), ({"text": "?"}, 0)],
)
def test_conditions_choose_rows(artifact, tmp_path, where, count):
    table = MappedTable.open(artifact, "candidates", "did", where=where, cache=tmp_path / "cache")
    assert len(table) == count == len(table.column("did"))


def test_a_rewritten_artifact_is_built_again(artifact, tmp_path):
    MappedTable.open(artifact, "candidates", "did", cache=tmp_path / "cache")
    pq.write_table(pa.Table.from_pylist([candidate(7)], CANDIDATES), f"{artifact.uri}/candidates/1.parquet")
    again = Files(artifact.uri, manifest={"attempt": "b"})
    assert len(MappedTable.open(again, "candidates", "did", cache=tmp_path / "cache")) == 3001


def test_it_opens_again_where_it_arrives(artifact, tmp_path):
    table = MappedTable.open(artifact, "candidates", "did", cache=tmp_path / "cache")
    assert pickle.loads(pickle.dumps(table)).row(3) == table.row(3)


def test_many_processes_build_one_table(artifact, tmp_path):
    with ProcessPoolExecutor(3) as pool:
        lengths = [pool.submit(length, artifact, tmp_path / "cache") for _ in range(3)]
        assert [one.result() for one in lengths] == [3000] * 3
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def length(artifact, cache) -> int:
    return len(MappedTable.open(artifact, "candidates", "did", cache=cache))


def test_a_killed_build_leaves_nothing_that_is_opened(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        MappedTable.open(artifact, "candidates", "did", cache=tmp_path / "cache")
    monkeypatch.undo()
    assert len(MappedTable.open(artifact, "candidates", "did", cache=tmp_path / "cache")) == 3000


def killed(*_):
    raise KeyboardInterrupt


def test_tables_that_nobody_opens_are_deleted_by_the_next_build(artifact, tmp_path):
    cache = tmp_path / "cache"
    old = MappedTable.open(artifact, "candidates", "did", cache=cache)
    long_ago = time.time() - (tables.KEEP_DAYS + 1) * 86_400
    os.utime(old.directory, (long_ago, long_ago))
    MappedTable.open(artifact, "candidates", "did", where={"pools": "q"}, cache=cache)
    assert not old.directory.exists()
    assert old.row(0)["dataset_id"] == 1  # what is mapped stays readable


def test_a_table_that_another_process_finishes_meanwhile_stops_no_build(artifact, tmp_path, monkeypatch):
    (tmp_path / "cache" / "other.building").mkdir(parents=True)
    whole = Path.is_dir

    def finishes(path: Path) -> bool:
        found = whole(path)
        if path.name == "other.building":
            path.rename(path.with_name("other"))
        return found

    monkeypatch.setattr(Path, "is_dir", finishes)
    assert len(MappedTable.open(artifact, "candidates", "did", cache=tmp_path / "cache")) == 3000


def test_vectors_come_as_arrays(tmp_path):
    directory = tmp_path / "art" / "features"
    directory.mkdir(parents=True)
    rows = [{"side": "query", "id": "1:1", "vector": np.array([1, 2, 3, 4], np.float16)}]
    pq.write_table(pa.Table.from_pylist(rows, FEATURES(4)), directory / "0.parquet")
    table = MappedTable.open(Files(str(tmp_path / "art")), "features", "id", cache=tmp_path / "cache")
    vector = table.row(0)["vector"]
    assert vector.dtype == np.float16 and vector.tolist() == [1, 2, 3, 4]


def test_an_artifact_without_the_files_says_so(artifact, tmp_path):
    with pytest.raises(StageError, match="holds no images/"):
        MappedTable.open(artifact, "images", "image_id", cache=tmp_path / "cache")


def test_the_cache_of_all_nodes_is_the_one_that_they_are_reported(artifact, tmp_path, monkeypatch):
    monkeypatch.setenv("PUMA_CACHE", str(tmp_path / "shared"))
    assert MappedTable.open(artifact, "candidates", "did").directory.parent == tmp_path / "shared" / "tables"
    monkeypatch.delenv("PUMA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert MappedTable.open(artifact, "candidates", "did").directory.parent == tmp_path / "own" / "puma" / "tables"
