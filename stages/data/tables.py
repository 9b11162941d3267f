"""Random access to Parquet by row number and by key, in flat memory shared by all processes of a node.

Training reaches for rows in random order, from every worker process. Loading the tables into each of them multiplies
the memory by the number of processes; Parquet alone has no random access. So the listed files are copied once per node
into a few uncompressed Arrow IPC files, side by side, as one stream does not fill the way to a bucket, with two
arrays: the sorted 64-bit hashes of the keys, and the physical row of each. All are memory-mapped: the page cache
holds one copy, and opening takes milliseconds.

Row i is the i-th by hash of its key, not the i-th in the files, so that the order of rows is the same however many
files a parallel writer happened to write.
"""

import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from stages.contract.cache import cache_root
from stages.contract.context import Artifact, StageError
from stages.data.keys import hash64, hash_ids

ROWS_PER_BATCH = 1024
COPIERS = 8
"""Files that are copied at a time. Each holds a batch in memory; reading, decoding and writing leave the GIL."""
KEEP_DAYS = 14
"""Tables that nobody opened for this long are deleted when another is built; they are copies and can be made again."""


class MappedTable:
    """The rows of one dataset of an artifact; see the module. Picklable: it opens again where it arrives."""

    def __init__(self, directory: Path, key: str, origin: tuple[Any, ...]):
        self.directory, self.key, self.origin = directory, key, origin
        readers = [pa.ipc.open_file(pa.memory_map(str(path))) for path in sorted(directory.glob("rows-*.arrow"))]
        self.schema = readers[0].schema
        self.batches = [reader.get_batch(number) for reader in readers for number in range(reader.num_record_batches)]
        self.starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])
        self.hashes = np.load(directory / "hashes.npy", mmap_mode="r")
        self.places = np.load(directory / "places.npy", mmap_mode="r")

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        prefix: str,
        key: str,
        where: dict[str, Any] | None = None,
        cache: Path | None = None,
        columns: list[str] | None = None,
    ) -> "MappedTable":
        """Opens the Parquet files below `prefix/` of `artifact`, built on first use on this node.

        `key` names the string column to find rows by. `where` keeps rows whose column equals the value (a list of
        values: any of them; a list column: contains it). `columns` are those that rows have, or None for all. Raises
        StageError where the artifact has no such files.
        """
        root = cache or cache_root() / "tables"
        directory = root / _identity(artifact, prefix, key, where, columns)
        if not directory.exists():
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{directory}.lock"):
                if not directory.exists():
                    _expire(root)
                    _build(artifact, prefix, key, where, directory, columns)
        os.utime(directory)
        return cls(directory, key, (artifact, prefix, key, where, cache, columns))

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedTable.open, self.origin

    def __len__(self) -> int:
        return len(self.places)

    def row(self, index: int) -> dict[str, Any]:
        """Row number `index` as a dictionary; vectors are numpy arrays. Raises IndexError outside 0 … len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a table of {len(self)} rows")
        return self._at(int(self.places[index]))

    def find(self, key: str) -> int:
        """The number of the row with this key. Raises KeyError."""
        wanted = np.uint64(hash64(key))
        index = int(np.searchsorted(self.hashes, wanted))
        while index < len(self) and self.hashes[index] == wanted:
            batch, offset = self._locate(int(self.places[index]))
            if batch.column(self.key)[offset].as_py() == key:
                return index
            index += 1
        raise KeyError(key)

    def __contains__(self, key: str) -> bool:
        try:
            self.find(key)
        except KeyError:
            return False
        return True

    def column(self, name: str) -> pa.ChunkedArray:
        """One column in the order of the row numbers; copies it into memory."""
        pieces = [batch.column(name) for batch in self.batches]
        return pa.chunked_array(pieces, self.schema.field(name).type).take(pa.array(self.places))

    def _locate(self, place: int) -> tuple[pa.RecordBatch, int]:
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self.batches[number], place - int(self.starts[number])

    def _at(self, place: int) -> dict[str, Any]:
        batch, offset = self._locate(place)
        return {name: _value(batch.column(at)[offset]) for at, name in enumerate(self.schema.names)}


def _value(scalar: pa.Scalar) -> Any:
    """A Python value; a numpy array for a vector, which as a list of floats would cost a hundred times more."""
    if isinstance(scalar, pa.FixedSizeListScalar) and scalar.is_valid:
        return scalar.values.to_numpy(zero_copy_only=False)
    return scalar.as_py()


def _identity(
    artifact: Artifact, prefix: str, key: str, where: dict[str, Any] | None, columns: list[str] | None
) -> str:
    """A name that changes with anything that changes the table, the attempt that wrote the files included."""
    files = artifact.files(prefix)
    parts = [artifact.stage, artifact.key, artifact.manifest.get("attempt"), files, key, where, columns, COPIERS]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return f"{artifact.stage}-{prefix}-{digest[:16]}"


def _build(
    artifact: Artifact, prefix: str, key: str, where: dict[str, Any] | None, directory: Path, columns: list[str] | None
) -> None:
    """Writes the table beside its place and renames it there; a killed build leaves nothing that would be opened."""
    files = artifact.files(prefix)
    if not files:
        raise StageError(f"{artifact.uri} holds no {prefix}/: run its stage again with --force {artifact.stage}")
    building = directory.with_name(f"{directory.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    schema = pq.read_schema(files[0], filesystem=artifact.filesystem).remove_metadata()
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    shares = [files[number::COPIERS] for number in range(min(COPIERS, len(files)))]
    copy = partial(_copy, schema=schema, filesystem=artifact.filesystem, key=key, where=where or {})
    with ThreadPoolExecutor(COPIERS) as copiers:
        targets = [building / f"rows-{number}.arrow" for number in range(len(shares))]
        hashes = np.concatenate(list(copiers.map(copy, shares, targets)))
    order = np.argsort(hashes, kind="stable")
    np.save(building / "hashes.npy", hashes[order])
    np.save(building / "places.npy", order.astype(np.int64))
    building.rename(directory)


def _copy(
    files: list[str], target: Path, *, schema: pa.Schema, filesystem: Any, key: str, where: dict[str, Any]
) -> np.ndarray:
    """Streams the kept rows of Parquet `files` into one Arrow file; the uint64 hashes [N] of their keys."""
    hashes = [np.empty(0, dtype=np.uint64)]
    with pa.ipc.new_file(str(target), schema) as writer:
        for path in files:
            with pq.ParquetFile(path, filesystem=filesystem) as source:
                for batch in source.iter_batches(batch_size=ROWS_PER_BATCH, columns=schema.names):
                    kept = _keep(batch, where).select(schema.names)
                    if kept.num_rows:
                        writer.write_batch(kept.cast(schema))
                        hashes.append(hash_ids(kept.column(key).to_pylist()))
    return np.concatenate(hashes)


def _keep(batch: pa.RecordBatch, where: dict[str, Any]) -> pa.RecordBatch:
    """The rows of `batch` that meet every condition of `where`; see `MappedTable.open`."""
    for name, value in where.items():
        column = batch.column(name)
        wanted = pa.array(value if isinstance(value, list | tuple) else [value])
        if pa.types.is_list(column.type):
            hits = pc.is_in(pc.list_flatten(column), wanted.cast(column.type.value_type))
            parents = pc.unique(pc.list_parent_indices(column).filter(hits))
            batch = batch.take(parents)
        else:
            batch = batch.filter(pc.is_in(column, wanted.cast(column.type)))
    return batch


def _expire(root: Path) -> None:
    """Deletes tables that were not opened for `KEEP_DAYS`. Whoever has one mapped keeps it: the pages stay."""
    oldest = time.time() - KEEP_DAYS * 86_400
    for table in root.iterdir():
        with suppress(FileNotFoundError):  # another process may give the table that it builds its name
            if table.is_dir() and table.stat().st_mtime < oldest:
                shutil.rmtree(table, ignore_errors=True)
