"""Where artifacts live, and when they exist: `{store}/{stage}/{key}/`, whose `manifest.json` is written last.

    {store}/{stage}/{key}/manifest.json       what the artifact is and which files it has; without it nothing exists
    {store}/{stage}/{key}/{attempt}/…         the files that one attempt wrote
    {store}/{stage}/{key}/_unfinished/        files that are being written; renamed when they are whole
    {store}/{stage}/{key}/_work/              the running stage's own checkpoints; survive a kill, go after the commit
    {store}/{stage}/{key}/_lock               held by the one process that computes this artifact
    {store}/runs/{run}.json                   each pipeline run: its configuration, keys and actions

Every attempt writes to a fresh directory of its own: what a killed attempt left behind is in no manifest, so no reader
can see it. The alternative, one directory for a key that is emptied first, takes the files from under a reader.
Only local directories for now; callers get a store from `open_store` and know nothing of its kind.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from stages.context import InputError, StageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A committed artifact; see `stages.context.Artifact`. `uri` opens with `python pipeline/store.py show`."""

    stage: str
    key: str
    uri: str
    manifest: dict[str, Any] = field(repr=False, compare=False)

    @property
    def attempt(self) -> str:
        """Who wrote it: the same key written again has another attempt."""
        return self.manifest["attempt"]

    @property
    def base(self) -> str:
        """The directory that the manifest's file paths start from."""
        return f"{self.uri}/{self.attempt}"

    @property
    def filesystem(self) -> "FileSystem":
        """The file system that `base` and `files` are paths in."""
        return local_filesystem()

    def files(self, prefix: str = "") -> list[str]:
        """Paths of the listed files below `prefix/` (all without one), sorted.

        Raises StageError for a file that is not there with the size that the manifest tells.
        """
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        return [self._checked(entry) for entry in self._entries() if entry["path"].startswith(start)]

    def read_bytes(self, name: str) -> bytes:
        """The content of the file `name`."""
        return self.local(name).read_bytes()

    def read_json(self, name: str) -> Any:
        """The parsed JSON file `name`."""
        return json.loads(self.read_bytes(name))

    def has(self, name: str) -> bool:
        """Whether the manifest lists the file `name`."""
        return any(entry["path"] == name for entry in self._entries())

    def local(self, prefix: str) -> Path:
        """The local file `prefix`, or the directory that holds the listed files below it, sizes verified.

        Raises StageError where the manifest lists neither.
        """
        if self.has(prefix):
            return Path(self._checked(next(entry for entry in self._entries() if entry["path"] == prefix)))
        if not self.files(prefix):
            raise StageError(f"{self.stage} {self.key} has no '{prefix}'; make it again with --force {self.stage}")
        return Path(self.base, prefix)

    def damage(self) -> list[str]:
        """One line for each listed file that is missing or whose size or checksum differs. Reads every byte."""
        found = []
        for entry in self._entries():
            try:
                digest = checksum(Path(self._checked(entry)))
            except StageError as error:
                found.append(str(error))
                continue
            if digest != entry["sha256"]:
                found.append(f"{self.base}/{entry['path']} has another content than when it was written")
        return found

    def _entries(self) -> list[dict[str, Any]]:
        return self.manifest["files"]

    def _checked(self, entry: dict[str, Any]) -> str:
        path = f"{self.base}/{entry['path']}"
        size = os.path.getsize(path) if os.path.isfile(path) else None
        if size != entry["size"]:
            there = "is missing" if size is None else f"has {size} bytes"
            raise StageError(
                f"{path} {there}, expected {entry['size']} bytes; make it again with --force {self.stage}"
            )
        return path


@dataclass(frozen=True)
class Attempt:
    """The place that a running stage writes to; see `stages.context.Attempt`."""

    stage: str
    key: str
    base: str
    work: Path
    fresh: bool = False

    @property
    def work_uri(self) -> str:
        """`work` as a path in `filesystem`."""
        return str(self.work)

    @property
    def filesystem(self) -> "FileSystem":
        """The file system that `base` and `work_uri` are paths in."""
        return local_filesystem()

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` as JSON to the file `name` of the artifact."""
        self.write_bytes(name, f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes the file `name` of the artifact, whole or not at all."""
        with self.open(name) as file:
            file.write(data)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file to write; it becomes `name` of the artifact when the block ends well, and never otherwise."""
        target = Path(self.base, name)
        unfinished = Path(self.base).parent / "_unfinished" / uuid.uuid4().hex
        for directory in (target.parent, unfinished.parent):
            directory.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)

    def upload(self, source: Path, name: str) -> None:
        """Copies a local file or directory to `name` in the artifact, each file whole or not at all."""
        source = Path(source)
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file():
                below = path.relative_to(source).as_posix() if source.is_dir() else ""
                with path.open("rb") as reading, self.open(f"{name}/{below}".rstrip("/")) as writing:
                    shutil.copyfileobj(reading, writing, 1 << 20)

    def adopt(self, prefix: str) -> list[str]:
        """Links the files below `prefix/` that killed attempts of this key had finished; their names, sorted."""
        if self.fresh:
            return []
        mine = Path(self.base)
        known = read_manifest(mine.parent / MANIFEST)["attempt"] if (mine.parent / MANIFEST).is_file() else ""
        for other in mine.parent.iterdir():
            if other.name.startswith("_") or not other.is_dir() or other.name in (mine.name, known):
                continue
            for path in (other / prefix).rglob("*"):
                target = mine / path.relative_to(other)
                if path.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with suppress(FileExistsError):
                        os.link(path, target)
        there = mine / prefix
        return sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Store:
    """Artifacts and run records in a local directory, which is made by the first write."""

    root: Path

    def manifests(self) -> dict[str, dict[str, dict[str, Any]]]:
        """stage → key → manifest of everything that is committed."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for path in sorted(self.root.glob(f"*/*/{MANIFEST}")):
            found.setdefault(path.parts[-3], {})[path.parts[-2]] = read_manifest(path)
        return found

    def artifact(self, stage: str, key: str) -> Artifact:
        """The committed artifact. Raises InputError where there is none."""
        directory = self.root / stage / key
        if not self.has(stage, key):
            raise InputError(
                f"there is no artifact {stage}/{key} in {self.root}; python pipeline/store.py ls shows all"
            )
        return Artifact(stage, key, str(directory), read_manifest(directory / MANIFEST))

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact is committed."""
        return (self.root / stage / key / MANIFEST).is_file()

    @contextmanager
    def locked(self, stage: str, key: str, say: Callable[[str], None] = print) -> Iterator[None]:
        """Keeps other runs off this artifact until the block ends; the lock of a killed process is free at once."""
        from filelock import FileLock, Timeout

        directory = self.root / stage / key
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / "_lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{stage}: another run computes {key}; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def begin(self, stage: str, key: str, fresh: bool = False) -> Attempt:
        """A new attempt. Its work directory is the one that a killed attempt left, unless `fresh`."""
        directory = self.root / stage / key
        if fresh:
            shutil.rmtree(directory / "_work", ignore_errors=True)
        base = directory / uuid.uuid4().hex[:8]
        for made in (base, directory / "_work"):
            made.mkdir(parents=True, exist_ok=True)
        return Attempt(stage, key, str(base), directory / "_work", fresh)

    def commit(self, attempt: Attempt, manifest: dict[str, Any], replace: bool = False) -> Artifact:
        """Makes what the attempt wrote exist: lists its files, writes the manifest, then drops the work directory.

        With `replace` an older manifest of the key gives way at once and whole. Without, the first manifest stays:
        who comes second gets the winner's artifact.
        """
        directory = self.root / attempt.stage / attempt.key
        identity = {"format": FORMAT, "stage": attempt.stage, "key": attempt.key, "attempt": Path(attempt.base).name}
        whole = {**identity, **manifest, "files": list_files(Path(attempt.base))}
        write_whole(directory / MANIFEST, whole, replace)
        for left in (attempt.work, directory / "_unfinished"):
            shutil.rmtree(left, ignore_errors=True)
        return self.artifact(attempt.stage, attempt.key)

    def write_run(self, run: dict[str, Any]) -> None:
        """Records a pipeline run under its `id`; writing it again replaces the record."""
        (self.root / "runs").mkdir(parents=True, exist_ok=True)
        write_whole(self.root / "runs" / f"{run['id']}.json", run, replace=True)

    def runs(self) -> list[dict[str, Any]]:
        """The records of all pipeline runs, newest first."""
        records = [json.loads(path.read_text(encoding="utf-8")) for path in (self.root / "runs").glob("*.json")]
        return sorted(records, key=lambda record: record["started"], reverse=True)


def open_store(uri: str) -> Store:
    """The store at a directory. Raises InputError for a place that can't hold one."""
    if "://" in uri and not uri.startswith("file://"):
        raise InputError(f"store={uri} is not supported yet; give a directory, for example store=.puma/store")
    root = Path(uri.removeprefix("file://")).expanduser().resolve()
    if root.exists() and not root.is_dir():
        raise InputError(f"store={uri} is a file; give a directory, for example store=.puma/store")
    return Store(root)


def read_manifest(path: Path) -> dict[str, Any]:
    """The parsed manifest. Raises StageError where it was written by another version or damaged from outside."""
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] == FORMAT:
            return manifest
    except (ValueError, KeyError, TypeError):
        pass
    raise StageError(f"{path} is damaged or of another format; remove the directory {path.parent} and run again")


def write_whole(path: Path, value: Any, replace: bool) -> None:
    """Writes JSON so that a reader, or a machine that loses power, has the whole file or the one before.

    Without `replace` a file that is already there stays as it is.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    if replace:
        os.replace(temporary, path)
    else:
        with suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def list_files(base: Path) -> list[dict[str, Any]]:
    """[{path, size, sha256}] of every file below `base`, sorted by path."""
    paths = sorted(path for path in base.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        digests = pool.map(checksum, paths)
    return [
        {"path": path.relative_to(base).as_posix(), "size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    ]


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_filesystem() -> "FileSystem":
    """Imported late: a plan needs no pyarrow."""
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()
