"""The few operations that a store asks of the place it lies in.

Both places, a directory (`local.py`) and a bucket (`s3.py`), give the same guarantees: a file appears whole or not at
all; `create` succeeds for one of many writers; `swap` replaces exactly the content that the caller saw. All else
(commit, leases, garbage collection) is written once on top. Paths are relative to the place, with `/`.
"""

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from stages.contract.context import InputError, StageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

PIECE = 1 << 20
THREADS = 16  # requests at once
QUICK_SECONDS = 60  # what is written without a lease (leases, records, pins) is written in less


@dataclass(frozen=True)
class Found:
    """A small object as it was read: its bytes, the tag that `swap` asks for, and seconds since it was written."""

    data: bytes
    tag: str
    age: float


@dataclass(frozen=True)
class Entry:
    """A listed file: its path, its size in bytes, and seconds since it was written."""

    path: str
    size: int
    age: float


class Objects(Protocol):
    """A place that holds a store. Picklable, without secrets: a worker on another node opens it by itself."""

    @property
    def uri(self) -> str:
        """As the user writes it."""

    @property
    def root(self) -> str:
        """The same as a path in `filesystem`."""

    @property
    def filesystem(self) -> "FileSystem":
        """For bulk data, by whatever reads and writes `pyarrow.fs`."""

    def prepare(self) -> None:
        """Before the first write: raises InputError where the place can't give the guarantees, or can't be written."""

    def read(self, path: str, clock: bool = False) -> Found | None:
        """A small object, None where there is none; with `clock` its age is by the clock of the place."""

    def size(self, path: str) -> int | None:
        """Bytes of a file, None where there is none."""

    def create(self, path: str, data: bytes) -> str | None:
        """Writes where nothing is yet; the tag, or None where something is. `data` must be unique to the writer."""

    def swap(self, path: str, data: bytes, tag: str) -> str | None:
        """Replaces the content that has this tag; the new tag, or None where another content is there or none."""

    def put(self, path: str, data: bytes) -> None:
        """Writes whatever is there."""

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """A file to write, front to back, that appears when the block ends well, and never otherwise."""

    def upload(self, source: Path, path: str) -> None:
        """Copies one local file here."""

    def link(self, source: str, target: str) -> None:
        """Copies a file inside the place without moving its bytes through this machine."""

    def local(self, path: str, size: int, sha256: str) -> Path:
        """The file on local disk."""

    def names(self, path: str) -> list[str]:
        """The directories right below `path`, sorted; those for this module's own use are left out."""

    def files(self, path: str) -> list[Entry]:
        """All files below the directory `path`, sorted by path."""

    def flush(self, directory: str) -> None:
        """Makes sure that the files below outlive a loss of power."""

    def checksum(self, path: str, trust: bool = False) -> str:
        """SHA-256 of the content in hex; with `trust` the one that the writer stored with it will do."""

    def remove(self, paths: Iterable[str]) -> None:
        """Deletes files."""

    def remove_tree(self, path: str) -> None:
        """Deletes the directory `path` with all below."""

    def drop_unfinished(self, age: float, covered: Callable[[str], bool]) -> int:
        """Deletes what killed writers left halfway and is older than `age` seconds; returns how many pieces.

        Left alone are paths that are `covered` by somebody's lease, and whatever is younger than `QUICK_SECONDS`.
        """

    def work(self, path: str) -> Path:
        """A directory on this machine for the work that belongs to `path`; not made yet."""


@contextmanager
def translate_os_errors(place: str) -> Iterator[None]:
    """What the operating system refuses, in one line: what, where, how to fix it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StageError(f"no space is left for {place}; free some, or give another place") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            line = f"{place} may not be used ({error.strerror}: {error.filename}); change its rights or choose another"
            raise InputError(line) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise InputError(f"{place} goes through a file ({error.filename}); give a directory") from error
        raise
