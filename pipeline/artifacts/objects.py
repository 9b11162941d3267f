"""The few operations that a store asks of the place it lies in, and the place that is a local directory.

Both places, this one and `s3.py`, give the same guarantees: a file appears whole or not at all; `create` succeeds for
one of many writers; `swap` replaces exactly the content that the caller saw. All else (commit, leases, sweeping) is
written once on top, in `artifacts.py`, `leases.py` and `sweep.py`. Paths are relative to the place, with `/`.
"""

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from stages.contract.context import InputError, StageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

UNFINISHED = "_unfinished"  # where files lie while they are written, on the file system where they will end up
PIECE = 1 << 20
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

    uri: str
    """As the user writes it."""
    root: str
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
        """A file to write that appears when the block ends well, and never otherwise."""

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

    def settle(self, directory: str) -> None:
        """Makes sure that the files below outlive a loss of power."""

    def checksum(self, path: str, trust: bool = False) -> str:
        """SHA-256 of the content in hex; with `trust` the one that the writer stored with it will do."""

    def remove(self, paths: Iterable[str]) -> None:
        """Deletes files."""

    def remove_tree(self, path: str) -> None:
        """Deletes the directory `path` with all below."""

    def sweep(self, age: float, covered: Callable[[str], bool]) -> int:
        """Deletes what killed writers left halfway and is older than `age` seconds; returns how many pieces.

        Left alone are paths that are `covered` by somebody's lease, and whatever is younger than `QUICK_SECONDS`.
        """

    def work(self, path: str) -> Path:
        """A directory on this machine for the work that belongs to `path`; not made yet."""


@dataclass(frozen=True)
class LocalObjects:
    """A place in a local (or network) directory; see `Objects`."""

    root: str

    @property
    def uri(self) -> str:
        return self.root

    @property
    def filesystem(self) -> "FileSystem":
        from pyarrow.fs import LocalFileSystem  # late: a plan needs no pyarrow

        return LocalFileSystem()

    def prepare(self) -> None:
        with self._told():
            Path(self.root, UNFINISHED).mkdir(parents=True, exist_ok=True)

    def read(self, path: str, clock: bool = False) -> Found | None:
        with self._told():
            try:
                with Path(self.root, path).open("rb") as file:
                    data, written = file.read(), os.fstat(file.fileno()).st_mtime
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Found(data, hashlib.sha256(data).hexdigest(), (self._now() if clock else time.time()) - written)

    def size(self, path: str) -> int | None:
        with self._told():
            place = Path(self.root, path)
            return place.stat().st_size if place.is_file() else None

    def create(self, path: str, data: bytes) -> str | None:
        with self._told(), self._written(path, data) as unfinished:
            target = self._parent(path)
            try:
                os.link(unfinished, target)
            except FileExistsError:
                return None
            sync(target.parent)
        return hashlib.sha256(data).hexdigest()

    def swap(self, path: str, data: bytes, tag: str) -> str | None:
        from filelock import FileLock

        self.prepare()
        with self._told(), FileLock(Path(self.root, UNFINISHED, "swap.lock")), self._written(path, data) as unfinished:
            there = self.read(path)
            if there is None or there.tag != tag:
                return None
            os.replace(unfinished, self._parent(path))
            sync(self._parent(path).parent)
        return hashlib.sha256(data).hexdigest()

    def put(self, path: str, data: bytes) -> None:
        with self.open(path) as file:
            file.write(data)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        with self._told(), self._unfinished(path) as unfinished:
            with unfinished.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self._parent(path))
            sync(self._parent(path).parent)

    def upload(self, source: Path, path: str) -> None:
        with source.open("rb") as reading, self.open(path) as writing:
            shutil.copyfileobj(reading, writing, PIECE)

    def link(self, source: str, target: str) -> None:
        with self._told(), suppress(FileExistsError):
            os.link(Path(self.root, source), self._parent(target))

    def local(self, path: str, size: int, sha256: str) -> Path:
        return Path(self.root, path)

    def names(self, path: str) -> list[str]:
        with self._told():
            place = Path(self.root, path)
            if not place.is_dir():
                return []
            return sorted(entry.name for entry in place.iterdir() if entry.is_dir() and entry.name != UNFINISHED)

    def files(self, path: str) -> list[Entry]:
        found, now = [], time.time()
        with self._told():
            for folder, _, names in os.walk(Path(self.root, path), onerror=unless_gone):
                for name in names:
                    place = Path(folder, name)
                    with suppress(FileNotFoundError):
                        facts = place.stat()
                        below = place.relative_to(self.root).as_posix()
                        found.append(Entry(below, facts.st_size, now - facts.st_mtime))
        return sorted(found, key=lambda entry: entry.path)

    def settle(self, directory: str) -> None:
        with self._told():
            for folder, _, names in os.walk(Path(self.root, directory)):
                for name in names:
                    sync(Path(folder, name))
                sync(Path(folder))

    def checksum(self, path: str, trust: bool = False) -> str:
        with self._told():
            return checksum(Path(self.root, path))

    def remove(self, paths: Iterable[str]) -> None:
        with self._told():
            for path in paths:
                Path(self.root, path).unlink(missing_ok=True)

    def remove_tree(self, path: str) -> None:
        with self._told():
            try:
                shutil.rmtree(Path(self.root, path))
            except FileNotFoundError:
                pass
            except OSError as error:  # somebody has written there meanwhile, which is theirs
                if error.errno != errno.ENOTEMPTY:
                    raise

    def sweep(self, age: float, covered: Callable[[str], bool]) -> int:
        old = [entry.path for entry in self.files(UNFINISHED) if entry.age > max(age, QUICK_SECONDS)]
        left = [path for path in old if not path.endswith(".lock") and not covered(bound_for(path))]
        self.remove(left)
        return len(left)

    def work(self, path: str) -> Path:
        return Path(self.root, path)

    def _parent(self, path: str) -> Path:
        place = Path(self.root, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    @contextmanager
    def _unfinished(self, path: str) -> Iterator[Path]:
        """A place for what will be `path`; its name tells whose lease it is written under."""
        place = self._parent("/".join((UNFINISHED, "~".join((*path.split("/")[:2], uuid.uuid4().hex)))))
        try:
            yield place
        finally:
            place.unlink(missing_ok=True)

    @contextmanager
    def _written(self, path: str, data: bytes) -> Iterator[Path]:
        with self._unfinished(path) as place:
            with place.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield place

    def _now(self) -> float:
        """The time by the clock that also gave the files theirs: on a network directory that is the server's."""
        try:
            with self._unfinished("clock") as place:
                place.touch()
                return place.stat().st_mtime
        except OSError:  # a place that can only be read
            return time.time()

    def _told(self) -> AbstractContextManager[None]:
        return told(f"store={self.uri}")


@contextmanager
def told(place: str) -> Iterator[None]:
    """What the operating system refuses, in one line: what, where, how to mend."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StageError(f"no space is left for {place}; free some, or give another place") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            line = f"{place} may not be used ({error.strerror}: {error.filename}); mend its rights or choose another"
            raise InputError(line) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise InputError(f"{place} goes through a file ({error.filename}); give a directory") from error
        raise


def unless_gone(error: OSError) -> None:
    """What stops a walk: os.walk would take a directory that may not be read for an empty one."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def bound_for(unfinished: str) -> str:
    """The start of the path that an unfinished file is written for."""
    return unfinished.removeprefix(f"{UNFINISHED}/").replace("~", "/")


def sync(path: Path) -> None:
    """Puts a file or a directory on disk for good."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """SHA-256 of a local file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
