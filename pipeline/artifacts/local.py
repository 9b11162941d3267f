"""The place that is a local (or network) directory; see `objects.Objects`.

A file's checksum is taken while it is written and stays with it as an extended attribute, as S3 keeps it with an
object, so a commit reads no such file again. Read again is what others write through the file system, as Ray Data
does, and everything where the file system or the system has no such attributes.
"""

import errno
import hashlib
import io
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from filelock import FileLock

from pipeline.artifacts.objects import PIECE, QUICK_SECONDS, Entry, Found, translate_os_errors
from stages.contract.context import InputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from pyarrow.fs import FileSystem

SUM = "user.puma.sha256"
UNFINISHED = "_unfinished"  # where files lie while they are written, on the file system where they will end up


@dataclass(frozen=True)
class LocalObjects:
    """A directory that holds a store."""

    root: str

    @property
    def uri(self) -> str:
        return self.root

    @property
    def filesystem(self) -> "FileSystem":
        from pyarrow.fs import LocalFileSystem  # late: a plan needs no pyarrow

        return LocalFileSystem()

    def prepare(self) -> None:
        with self._translate_errors():
            try:
                Path(self.root, UNFINISHED).mkdir(parents=True, exist_ok=True)
            except FileNotFoundError:  # of a file system that makes no directories, such as /proc
                raise InputError(f"{self.root} can't be made there; choose another directory") from None

    def read(self, path: str, clock: bool = False) -> Found | None:
        with self._translate_errors():
            try:
                with Path(self.root, path).open("rb") as file:
                    data, written = file.read(), os.fstat(file.fileno()).st_mtime
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Found(data, hashlib.sha256(data).hexdigest(), (self._now() if clock else time.time()) - written)

    def size(self, path: str) -> int | None:
        with self._translate_errors():
            place = Path(self.root, path)
            return place.stat().st_size if place.is_file() else None

    def create(self, path: str, data: bytes) -> str | None:
        with self._translate_errors(), self._write_aside(path, data) as unfinished:
            target = self._with_parent(path)
            try:
                os.link(unfinished, target)
            except FileExistsError:
                return None
            flush_to_disk(target.parent)
        return hashlib.sha256(data).hexdigest()

    def swap(self, path: str, data: bytes, tag: str) -> str | None:
        self.prepare()
        with (
            self._translate_errors(),
            FileLock(Path(self.root, UNFINISHED, "swap.lock")),
            self._write_aside(path, data) as unfinished,
        ):
            there = self.read(path)
            if there is None or there.tag != tag:
                return None
            os.replace(unfinished, self._with_parent(path))
            flush_to_disk(self._with_parent(path).parent)
        return hashlib.sha256(data).hexdigest()

    def put(self, path: str, data: bytes) -> None:
        with self.open(path) as file:
            file.write(data)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        with self._translate_errors(), self._unfinished(path) as unfinished:
            with unfinished.open("wb") as file:
                summed = Summed(file)
                yield cast(BinaryIO, summed)
                file.flush()
                keep_sum(file.fileno(), summed.hexdigest())
                os.fsync(file.fileno())
            os.replace(unfinished, self._with_parent(path))
            flush_to_disk(self._with_parent(path).parent)

    def upload(self, source: Path, path: str) -> None:
        with source.open("rb") as reading, self.open(path) as writing:
            shutil.copyfileobj(reading, writing, PIECE)

    def link(self, source: str, target: str) -> None:
        with self._translate_errors(), suppress(FileExistsError):
            os.link(Path(self.root, source), self._with_parent(target))

    def local(self, path: str, size: int, sha256: str) -> Path:
        return Path(self.root, path)

    def names(self, path: str) -> list[str]:
        with self._translate_errors():
            place = Path(self.root, path)
            if not place.is_dir():
                return []
            return sorted(entry.name for entry in place.iterdir() if entry.is_dir() and entry.name != UNFINISHED)

    def files(self, path: str) -> list[Entry]:
        found, now = [], time.time()
        with self._translate_errors():
            for folder, _, names in os.walk(Path(self.root, path), onerror=unless_gone):
                for name in names:
                    place = Path(folder, name)
                    with suppress(FileNotFoundError):
                        facts = place.stat()
                        below = place.relative_to(self.root).as_posix()
                        found.append(Entry(below, facts.st_size, now - facts.st_mtime))
        return sorted(found, key=lambda entry: entry.path)

    def flush(self, directory: str) -> None:
        with self._translate_errors():
            for folder, _, names in os.walk(Path(self.root, directory)):
                for name in names:
                    flush_to_disk(Path(folder, name))
                flush_to_disk(Path(folder))

    def checksum(self, path: str, trust: bool = False) -> str:
        with self._translate_errors():
            place = Path(self.root, path)
            return (kept_sum(place) if trust else None) or checksum(place)

    def remove(self, paths: Iterable[str]) -> None:
        with self._translate_errors():
            for path in paths:
                Path(self.root, path).unlink(missing_ok=True)

    def remove_tree(self, path: str) -> None:
        with self._translate_errors():
            try:
                shutil.rmtree(Path(self.root, path))
            except FileNotFoundError:
                pass
            except OSError as error:  # somebody has written there meanwhile, which is theirs
                if error.errno != errno.ENOTEMPTY:
                    raise

    def drop_unfinished(self, age: float, covered: Callable[[str], bool]) -> int:
        old = [entry.path for entry in self.files(UNFINISHED) if entry.age > max(age, QUICK_SECONDS)]
        left = [path for path in old if not path.endswith(".lock") and not covered(bound_for(path))]
        self.remove(left)
        return len(left)

    def work(self, path: str) -> Path:
        return Path(self.root, path)

    def _with_parent(self, path: str) -> Path:
        place = Path(self.root, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    @contextmanager
    def _unfinished(self, path: str) -> Iterator[Path]:
        """A place for what will be `path`; its name says under whose lease it is written."""
        place = self._with_parent("/".join((UNFINISHED, "~".join((*path.split("/")[:2], uuid.uuid4().hex)))))
        try:
            yield place
        finally:
            place.unlink(missing_ok=True)

    @contextmanager
    def _write_aside(self, path: str, data: bytes) -> Iterator[Path]:
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

    def _translate_errors(self) -> AbstractContextManager[None]:
        return translate_os_errors(f"store={self.uri}")


def unless_gone(error: OSError) -> None:
    """What stops a walk: os.walk would take a directory that may not be read for an empty one."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def bound_for(unfinished: str) -> str:
    """The start of the path that an unfinished file is written for."""
    return unfinished.removeprefix(f"{UNFINISHED}/").replace("~", "/")


def flush_to_disk(path: Path) -> None:
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


class Summed(io.RawIOBase):
    """A file to write, front to back, whose SHA-256 is known at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: "Buffer", /) -> int:  # type: ignore[override]  # all of it is written, always
        self.sum.update(data)
        return self.file.write(data)

    def hexdigest(self) -> str:
        """SHA-256 of what was written, in hex."""
        return self.sum.hexdigest()


def keep_sum(descriptor: int, sha256: str) -> None:
    """Leaves a file's checksum with it, and of which size and time it is."""
    with suppress(AttributeError, OSError):  # the system or the file system has no such attributes
        os.setxattr(descriptor, SUM, f"{sha256} {version(os.fstat(descriptor))}".encode())


def kept_sum(path: Path) -> str | None:
    """The checksum that `keep_sum` left; None where there is none, or the file was written again since."""
    try:
        sha256, _, of = os.getxattr(path, SUM).decode().partition(" ")
    except (AttributeError, OSError):
        return None
    return sha256 if of == version(path.stat()) else None


def version(facts: os.stat_result) -> str:
    """What changes when a file is written."""
    return f"{facts.st_size} {facts.st_mtime_ns}"
