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
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artifacts import leases
from pipeline.artifacts.artifact import Artifact, Attempt
from pipeline.artifacts.copies import ensure_dir
from pipeline.artifacts.local import LocalObjects
from pipeline.artifacts.manifests import (
    FORMAT,
    MANIFEST,
    RUNS,
    ListedFile,
    Manifests,
    decode_run,
    encode,
    encode_run,
    read_manifest,
)
from pipeline.artifacts.objects import THREADS, Objects, translate_os_errors
from stages.contract.context import InputError, StageError


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
        left = (f"{directory}/{lineage}-", f"{directory}/_work/{lineage}/")
        resumed = not fresh and any(entry.path.startswith(left) for entry in self.objects.files(directory))
        attempt = Attempt(stage, key, name, self.objects, fresh, there.tag if there else None, resumed)
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

    def discard(self, attempt: Attempt) -> None:
        """Deletes what an attempt wrote and did, so that no later one goes on from it."""
        self._drop_work(attempt)
        self.objects.remove_tree(f"{attempt.stage}/{attempt.key}/{attempt.name}")

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Records a pipeline run under its `id`; writing it again replaces the record."""
        self.objects.prepare()
        self.objects.put(f"{RUNS}/{run['id']}.json", encode_run(run))

    def record(self, run: str) -> Path:
        """Where the record of a pipeline run lies in a local store, whatever the current directory."""
        return self.root.resolve() / RUNS / f"{run}.json"

    def note(self, run: str, name: str, text: str) -> str:
        """Puts a text beside the record of a run; returns where it lies."""
        self.objects.put(f"{RUNS}/{run}.{name}", text.encode())
        return f"{self.uri}/{RUNS}/{run}.{name}"

    def runs(self, damaged: Callable[[StageError], None] = lambda error: None) -> list[dict[str, Any]]:
        """The records of all pipeline runs, newest first; `damaged` is called with each error."""
        paths = [entry.path for entry in self.objects.files(RUNS) if entry.path.endswith(".json")]
        return sorted(self.read_runs(paths, damaged), key=lambda record: record["started"], reverse=True)

    def read_runs(
        self, paths: Sequence[str], damaged: Callable[[StageError], None] | None = None
    ) -> list[dict[str, Any]]:
        """The records at `paths`, all of them at once. Raises StageError for what is none, or calls `damaged`."""
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

        place = open_s3(uri, endpoint)
        place.require_answer()
        return Store(place)
    if "://" in uri and not uri.startswith("file://"):
        raise InputError(f"store={uri} is not supported; give a directory or s3://bucket/prefix")
    with translate_os_errors(f"store={uri}"):
        root = Path(uri.removeprefix("file://")).expanduser().resolve()
        is_file = root.exists() and not root.is_dir()
    if is_file:
        raise InputError(f"store={uri} is a file; give a directory, for example store=.puma/store")
    return Store(root)


def list_files(objects: Objects, directory: str) -> list[ListedFile]:
    """Every file below `directory`, sorted by path."""
    entries = objects.files(directory)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda entry: objects.checksum(entry.path, trust=True), entries)
    return [
        {"path": entry.path.removeprefix(f"{directory}/"), "size": entry.size, "sha256": digest}
        for entry, digest in zip(entries, digests, strict=True)
    ]
