"""Vectors of a user's own: a Parquet file, or a directory of them, with the columns `id` and `vector`.

A column `side`, `query` or `candidate`, tells ids apart that both sides have; without it one vector serves both.
Vectors may have any width and any float type, in lists of fixed or of variable size. Other columns are not read.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import InputError, StageError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from stages.data.tables import MappedTable


def describe_files(path: Path) -> dict[str, list[int]]:
    """{name: [size, time of change]} of a file, or of all files of a directory that are not hidden."""
    found = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    names = {one.name if one == path else one.relative_to(path).as_posix(): one.stat() for one in found}
    shown = {name: status for name, status in names.items() if not any(part[0] == "." for part in name.split("/"))}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in sorted(shown.items())}


@dataclass(frozen=True)
class VectorFiles:
    """The files at `path`, in the form in which `MappedTable` opens an artifact; picklable."""

    path: Path
    setting: str
    """Its name, for errors."""
    stage: str = "vectors"

    @property
    def key(self) -> str:
        """What the files are, as a hash."""
        return hashlib.sha256(json.dumps(describe_files(self.path)).encode()).hexdigest()[:16]

    @property
    def uri(self) -> str:
        """Where they lie."""
        return str(self.path)

    @property
    def manifest(self) -> dict[str, Any]:
        """Nothing is known of who wrote them."""
        return {}

    @property
    def filesystem(self) -> Any:
        """The machine's own."""
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()

    def files(self, prefix: str = "") -> list[str]:
        """The paths of all files, sorted; they have no prefix."""
        if self.path.is_file():
            return [str(self.path)]
        return [str(self.path / name) for name in describe_files(self.path) if name.endswith(".parquet")]

    def check(self) -> None:
        """Raises InputError where there are no vectors to read; looks at the files' ends and the first row alone."""
        import pyarrow.parquet as pq

        rows, first = 0, None
        for path in self.files():
            try:
                with pq.ParquetFile(path) as file:
                    schema, count = file.schema_arrow, file.metadata.num_rows
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(f"{self.setting}: {path} is no Parquet file: {reason}; write it anew") from error
            _check_schema(schema, f"{self.setting}: {path}")
            read = (*_read_of(schema), str(schema.field("vector").type.value_type))
            first = first or read
            if read != first:
                differ = f"has {_told(read)}, other files {_told(first)}"
                raise InputError(f"{self.setting}: {path} {differ}; write them alike")
            rows += count
        if not rows:
            raise InputError(
                f"{self.setting}={self.path} holds no vectors; give a Parquet file with the columns id and vector, a"
                " directory of such files, or the directory of a sentence-transformers model, with its modules.json"
            )

    def width(self) -> int:
        """Values of the first vector.

        Raises:
            InputError: it has none.
        """
        import pyarrow.parquet as pq

        for path in self.files():
            with pq.ParquetFile(path, buffer_size=2**16) as file:  # does not read the row group for its first row
                for batch in file.iter_batches(batch_size=1, columns=["vector"]):
                    if value := batch["vector"][0].as_py():
                        return len(value)
                    raise InputError(f"{self.setting}: the first vector of {path} is empty; leave its row out")
        return 0

    def table(self, side: str) -> "MappedTable":
        """The rows of a side, for look-ups by id; copied to this node's cache when it is first asked."""
        from stages.data.tables import MappedTable

        where = {"side": side} if "side" in self._read() else None
        return MappedTable.open(self, "", "id", where=where, columns=self._read())  # type: ignore

    def hashes(self, side: str) -> "np.ndarray":
        """Sorted hashes of a side's ids, 8 bytes each."""
        import numpy as np

        from stages.data.keys import NOTHING, hash_ids

        parts = [np.empty(0, np.uint64), *(hash_ids(ids) for ids in self._ids(side))]
        found = np.sort(np.concatenate(parts))
        return found[found != NOTHING]

    def _read(self) -> list[str]:
        """The columns that are read."""
        import pyarrow.parquet as pq

        return _read_of(pq.read_schema(self.files()[0]))

    def _ids(self, side: str) -> Iterator[list[str | None]]:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        columns = [name for name in self._read() if name != "vector"]
        for path in self.files():
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=columns):
                    rows = batch.filter(pc.equal(batch["side"], side)) if "side" in columns else batch
                    yield rows["id"].to_pylist()


def _told(read: tuple[str, ...]) -> str:
    """Columns, and the type of the last one's values."""
    *columns, kind = read
    return f"{', '.join(columns)} of {kind}"


def _read_of(schema: "pa.Schema") -> list[str]:
    return [name for name in ("id", "side", "vector") if name in schema.names]


def _check_schema(schema: "pa.Schema", where: str) -> None:
    """Raises InputError where the columns are others."""
    import pyarrow as pa

    def is_text(kind: pa.DataType) -> bool:
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)

    if missing := [name for name in ("id", "vector") if name not in schema.names]:
        raise InputError(f"{where} has no column '{missing[0]}'; the columns are id and vector")
    for name in ("id", *(["side"] if "side" in schema.names else [])):
        if not is_text(schema.field(name).type):
            raise InputError(f"{where}: the column '{name}' is {schema.field(name).type}; write it as strings")
    kind = schema.field("vector").type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not pa.types.is_floating(kind.value_type):
        raise InputError(f"{where}: the column 'vector' is {kind}; write it as lists of floats")


def check_unique(hashes: "np.ndarray", what: str) -> None:
    """Raises StageError where sorted hashes hold an id more than once: which vector is meant is not known."""
    if repeated := int((hashes[1:] == hashes[:-1]).sum()):
        raise StageError(
            f"{what} holds {repeated:,} ids more than once; leave one row of each, or tell queries and candidates"
            " apart in a column side"
        )


def look_up(table: "MappedTable", ids: list[str], width: int, what: str) -> "np.ndarray":
    """The vectors [N, T] of N ids as float32.

    Raises:
        StageError: one is not there, or has another width than T.
    """
    import numpy as np

    vectors_NT = np.zeros((len(ids), width), np.float32)
    for place, identity in enumerate(ids):
        try:
            vector = table.row(table.find(identity))["vector"]
        except KeyError:
            raise StageError(f"{what} has no vector of {identity}; add it") from None
        if vector is None or len(vector) != width:
            found = "none" if vector is None else len(vector)
            raise StageError(f"{what}: the vector of {identity} has {found} values and others have {width}; mend it")
        vectors_NT[place] = vector
    return vectors_NT
