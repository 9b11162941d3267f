"""Where artifacts live, and when they exist: `{store}/{stage}/{key}/`, whose `manifest.json` is written last.

    {store}/{stage}/{key}/manifest.json       what the artifact is and which files it has; without it nothing exists
    {store}/{stage}/{key}/{attempt}/…         the files that one attempt wrote
    {store}/{stage}/{key}/_work/              the running stage's own checkpoints; survive a kill, go after the commit
    {store}/{stage}/{key}/_lease.json         who computes this artifact; see leases.py
    {store}/runs/{run}.json                   each pipeline run: its configuration, keys and actions
    {store}/pins/{stage}-{key}.json           what `store.py gc` has to keep; see garbage.py
    {store}/pins/{stage}-{key}.{attempt}.json the same for an attempt that was registered in MLflow

`store` is a local directory or `s3://bucket/prefix`; both give the same guarantees (local.py, s3.py), and all of
this is written once for both. Every attempt writes to a fresh directory of its own, so what a killed attempt left
behind is in no manifest and no reader can see it. The alternative, one directory for a key that is emptied first,
takes the files from under a reader. An attempt's name starts with its lineage, a hash of the inputs' attempts: an
attempt takes over what a killed one of the same key left only where both read the same inputs.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.artifacts import leases
from pipeline.artifacts.copies import ensure_dir, translate_cache_errors
from pipeline.artifacts.local import LocalObjects
from pipeline.artifacts.manifests import FORMAT, MANIFEST, RUNS, Manifests, decode_run, encode, read_manifest
from pipeline.artifacts.objects import Objects, translate_os_errors
from stages.contract.context import InputError, StageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

THREADS = 16


@dataclass(frozen=True)
class Artifact:
    """A committed artifact; see `stages.contract.context`. `uri` opens with `python pipeline/store.py show`."""

    stage: str
    key: str
    uri: str
    manifest: dict[str, Any] = field(repr=False, compare=False)
    objects: Objects = field(repr=False, compare=False)

    @property
    def attempt(self) -> str:
        """Who wrote it: the same key written again has another attempt."""
        return self.manifest["attempt"]

    @property
    def base(self) -> str:
        """The directory that the manifest's file paths start from, as a path in `filesystem`."""
        return f"{self.objects.root}/{self._directory}"

    @property
    def filesystem(self) -> "FileSystem":
        """The file system that `base` and `files` are paths in."""
        return self.objects.filesystem

    def files(self, prefix: str = "") -> list[str]:
        """Paths of the listed files below `prefix/` (all without one), sorted.

        Raises StageError for a file that is not there with the size that the manifest tells.
        """
        listed = self._below(prefix)
        if listed:
            below = f"{self._directory}/{prefix}".rstrip("/")
            sizes = {entry.path: entry.size for entry in self.objects.files(below)}
            for entry in listed:
                self._check(entry, sizes.get(f"{self._directory}/{entry['path']}"))
        return [f"{self.base}/{entry['path']}" for entry in listed]

    def read_bytes(self, name: str) -> bytes:
        """The content of the file `name`, of the checksum that the manifest tells."""
        return self.local(name).read_bytes()

    def read_json(self, name: str) -> Any:
        """The parsed JSON file `name`."""
        return json.loads(self.read_bytes(name))

    def has(self, name: str) -> bool:
        """Whether the manifest lists the file `name`."""
        return self._entry(name) is not None

    def local(self, prefix: str) -> Path:
        """The local file `prefix`, or a local directory that holds the listed files below it.

        Sizes are verified; what has to be fetched is cached by its checksum, and verified by it. Raises StageError
        where the manifest lists neither.
        """
        entry = self._entry(prefix)
        listed = [entry] if entry else self._below(prefix)
        if not listed:
            raise StageError(f"{self.stage} {self.key} has no '{prefix}'; make it again with --force {self.stage}")
        if entry:
            self._check(entry, self.objects.size(f"{self._directory}/{prefix}"))
        else:
            self.files(prefix)
        for one in listed:
            self._fetch(one)
        return self.objects.work(self._directory) / prefix

    def damage(self) -> list[str]:
        """One line for each listed file that is missing or whose size or checksum differs. Reads every byte."""
        with ThreadPoolExecutor(THREADS) as pool:
            return [line for line in pool.map(self._damage, self.manifest["files"]) if line]

    @property
    def _directory(self) -> str:
        return f"{self.stage}/{self.key}/{self.attempt}"

    def _entry(self, name: str) -> dict[str, Any] | None:
        return next((entry for entry in self.manifest["files"] if entry["path"] == name), None)

    def _below(self, prefix: str) -> list[dict[str, Any]]:
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        return [entry for entry in self.manifest["files"] if entry["path"].startswith(start)]

    def _check(self, entry: dict[str, Any], size: int | None) -> None:
        if size != entry["size"]:
            there = "is missing" if size is None else f"has {size} bytes"
            path = f"{self.objects.uri}/{self._directory}/{entry['path']}"
            raise StageError(
                f"{path} {there}, expected {entry['size']} bytes; make it again with --force {self.stage}"
            )

    def _damage(self, entry: dict[str, Any]) -> str:
        path = f"{self._directory}/{entry['path']}"
        try:
            self._check(entry, self.objects.size(path))
            same = self.objects.checksum(path) == entry["sha256"]
        except StageError as error:
            return str(error)
        return "" if same else f"{self.objects.uri}/{path} has another content than when it was written"

    def _fetch(self, entry: dict[str, Any]) -> None:
        """Gives a file its name in the local copy of the artifact, which is the artifact itself in a local store."""
        path = f"{self._directory}/{entry['path']}"
        place = self.objects.work(path)
        source = self.objects.local(path, entry["size"], entry["sha256"])
        if source == place:
            return
        with translate_cache_errors():
            if place.is_file() and place.samefile(source):
                return
            place.parent.mkdir(parents=True, exist_ok=True)
            fresh = place.with_name(f".{uuid.uuid4().hex}")
            os.link(source, fresh)
            fresh.replace(place)


@dataclass(frozen=True)
class Attempt:
    """The place that a running stage writes to; see `stages.contract.context.Attempt`."""

    stage: str
    key: str
    name: str
    objects: Objects = field(repr=False)
    fresh: bool = False
    replaces: str | None = None
    """The tag of the manifest that was there when this attempt began."""

    @property
    def base(self) -> str:
        """The directory of the attempt's files, as a path in `filesystem`."""
        return f"{self.objects.root}/{self._directory}"

    @property
    def work(self) -> Path:
        """A local directory for the stage's own state."""
        return self.objects.work(f"{self.stage}/{self.key}/_work/{self._lineage}")

    @property
    def work_uri(self) -> str:
        """The directory for the stage's state that all nodes see, as a path in `filesystem`."""
        return f"{self.objects.root}/{self.stage}/{self.key}/_work/{self._lineage}"

    @property
    def filesystem(self) -> "FileSystem":
        """The file system that `base` and `work_uri` are paths in."""
        return self.objects.filesystem

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` as JSON to the file `name` of the artifact."""
        self.write_bytes(name, f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes the file `name` of the artifact, whole or not at all."""
        self.objects.put(f"{self._directory}/{name}", data)

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write; it becomes `name` of the artifact when the block ends well, and never otherwise."""
        return self.objects.open(f"{self._directory}/{name}")

    def upload(self, source: Path, name: str) -> None:
        """Copies a local file or directory to `name` in the artifact, each file whole or not at all."""
        source = Path(source)
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file():
                below = path.relative_to(source).as_posix() if source.is_dir() else ""
                self.objects.upload(path, f"{self._directory}/{name}/{below}".rstrip("/"))

    def adopt(self, prefix: str) -> list[str]:
        """Takes over the files below `prefix/` that killed attempts with the same inputs had finished; their names."""
        if self.fresh:
            return []
        directory = f"{self.stage}/{self.key}"
        found = self.objects.read(f"{directory}/{MANIFEST}")
        for other in self.objects.names(directory):
            mine = other.startswith(f"{self._lineage}-") and other != self.name
            if mine and not (found and f'"{other}"'.encode() in found.data):
                above = f"{directory}/{other}"
                for entry in self.objects.files(f"{above}/{prefix}"):
                    self.objects.link(entry.path, f"{self._directory}/{entry.path.removeprefix(f'{above}/')}")
        start = f"{self._directory}/{prefix}".rstrip("/")
        return [entry.path.removeprefix(f"{start}/") for entry in self.objects.files(start)]

    @property
    def _lineage(self) -> str:
        return self.name.partition("-")[0]

    @property
    def _directory(self) -> str:
        return f"{self.stage}/{self.key}/{self.name}"


class Store:
    """Artifacts and run records at one place, which is made by the first write. Picklable."""

    def __init__(self, place: Path | Objects, lease_seconds: float = leases.SECONDS) -> None:
        self.objects = LocalObjects(str(place)) if isinstance(place, Path) else place
        self.lease_seconds = lease_seconds

    @property
    def uri(self) -> str:
        """The store as `store=…` takes it."""
        return self.objects.uri

    @property
    def root(self) -> Path:
        """The directory of a local store."""
        return Path(self.objects.root)

    def manifests(self) -> Manifests:
        """stage → key → manifest of everything that is committed; read when asked for, and left out if unreadable."""
        return Manifests(self.objects)

    def artifact(self, stage: str, key: str) -> Artifact:
        """The committed artifact. Raises InputError where there is none."""
        manifest = read_manifest(self.objects, stage, key)
        if manifest is None:
            raise InputError(
                f"there is no artifact {stage}/{key} in {self.uri}; python pipeline/store.py ls shows all"
            )
        return Artifact(stage, key, f"{self.uri}/{stage}/{key}", manifest, self.objects)

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact is committed."""
        return self.objects.size(f"{stage}/{key}/{MANIFEST}") is not None

    def started(self, stage: str, key: str) -> bool:
        """Whether an attempt at the artifact has begun, committed or not."""
        return bool(self.objects.names(f"{stage}/{key}"))

    @contextmanager
    def locked(self, stage: str, key: str, say: Callable[[str], None] = print) -> Iterator[leases.Lease]:
        """Keeps other runs off this artifact until the block ends; see `leases.acquire`."""
        self.objects.prepare()
        path = f"{stage}/{key}/{leases.LEASE}"
        with leases.acquire(self.objects, path, say, f"{stage} {key}", self.lease_seconds) as lease:
            yield lease

    def begin(self, stage: str, key: str, fresh: bool = False, inputs: Mapping[str, str] | None = None) -> Attempt:
        """A new attempt; `inputs` are the attempts of what it reads.

        Its work directory is the one that a killed attempt with the same inputs left, unless `fresh`.
        """
        directory = f"{stage}/{key}"
        there = self.objects.read(f"{directory}/{MANIFEST}")
        lineage = hashlib.sha256(json.dumps(dict(inputs or {}), sort_keys=True).encode()).hexdigest()[:8]
        name = f"{lineage}-{uuid.uuid4().hex[:16]}"
        attempt = Attempt(stage, key, name, self.objects, fresh, there.tag if there else None)
        if fresh:
            self._drop_work(attempt)
        if isinstance(self.objects, LocalObjects):  # elsewhere directories are only names
            with translate_os_errors(f"store={self.uri}"):
                Path(attempt.base).mkdir(parents=True, exist_ok=True)
                attempt.work.mkdir(parents=True, exist_ok=True)
        else:
            ensure_dir(attempt.work)
        return attempt

    def commit(
        self,
        attempt: Attempt,
        manifest: Mapping[str, Any],
        replace: bool = False,
        lease: leases.Lease | None = None,
    ) -> Artifact:
        """Makes what the attempt wrote exist: lists its files, writes the manifest, then drops the work directory.

        With `replace` the manifest that was there when the attempt began gives way, at once and whole. Without, the
        first manifest stays: who comes second gets the winner's artifact. Raises LeaseLost where `lease` is gone.
        """
        if attempt.objects != self.objects:
            raise StageError(f"an attempt in {attempt.objects.uri} can't be committed to {self.uri}: two stores mixed")
        directory = f"{attempt.stage}/{attempt.key}"
        identity = {"format": FORMAT, "stage": attempt.stage, "key": attempt.key, "attempt": attempt.name}
        self.objects.flush(f"{directory}/{attempt.name}")
        data = encode({**identity, **manifest, "files": list_files(self.objects, f"{directory}/{attempt.name}")})
        if lease:
            lease.renew()
        if replace and attempt.replaces:
            self.objects.swap(f"{directory}/{MANIFEST}", data, attempt.replaces)
        else:
            self.objects.create(f"{directory}/{MANIFEST}", data)
        self._drop_work(attempt)
        return self.artifact(attempt.stage, attempt.key)

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Records a pipeline run under its `id`; writing it again replaces the record."""
        self.objects.prepare()
        self.objects.put(f"{RUNS}/{run['id']}.json", json.dumps(run, indent=1, ensure_ascii=False).encode())

    def note(self, run: str, name: str, text: str) -> str:
        """Puts a text beside the record of a run; returns where it lies."""
        self.objects.put(f"{RUNS}/{run}.{name}", text.encode())
        return f"{self.uri}/{RUNS}/{run}.{name}"

    def runs(self, damaged: Callable[[StageError], None] = lambda error: None) -> list[dict[str, Any]]:
        """The records of all pipeline runs, newest first; `damaged` is told of those that hold no record."""
        paths = [entry.path for entry in self.objects.files(RUNS) if entry.path.endswith(".json")]
        return sorted(self.read_runs(paths, damaged), key=lambda record: record["started"], reverse=True)

    def read_runs(
        self, paths: Sequence[str], damaged: Callable[[StageError], None] | None = None
    ) -> list[dict[str, Any]]:
        """The records at `paths`, all of them at once. Raises StageError for what is none, or tells `damaged`."""
        records = []
        with ThreadPoolExecutor(THREADS) as pool:
            for path, found in zip(paths, pool.map(self.objects.read, paths), strict=True):
                try:
                    records += [decode_run(found.data, f"{self.uri}/{path}")] if found else []
                except StageError as error:
                    if damaged is None:
                        raise
                    damaged(error)
        return records

    def _drop_work(self, attempt: Attempt) -> None:
        work = f"{attempt.stage}/{attempt.key}/_work"
        self.objects.remove_tree(work)
        shutil.rmtree(self.objects.work(work), ignore_errors=True)


def open_store(uri: str, endpoint: str = "") -> Store:
    """The store at a directory or at `s3://bucket/prefix`. Raises InputError for a place that can't hold one."""
    if uri.startswith("s3://"):
        from pipeline.artifacts.s3 import open_s3

        return Store(open_s3(uri, endpoint))
    if "://" in uri and not uri.startswith("file://"):
        raise InputError(f"store={uri} is not supported; give a directory or s3://bucket/prefix")
    with translate_os_errors(f"store={uri}"):
        root = Path(uri.removeprefix("file://")).expanduser().resolve()
        is_file = root.exists() and not root.is_dir()
    if is_file:
        raise InputError(f"store={uri} is a file; give a directory, for example store=.puma/store")
    return Store(root)


def list_files(objects: Objects, directory: str) -> list[dict[str, Any]]:
    """[{path, size, sha256}] of every file below `directory`, sorted by path."""
    entries = objects.files(directory)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda entry: objects.checksum(entry.path, trust=True), entries)
    return [
        {"path": entry.path.removeprefix(f"{directory}/"), "size": entry.size, "sha256": digest}
        for entry, digest in zip(entries, digests, strict=True)
    ]
