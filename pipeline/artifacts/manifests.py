"""What a manifest is: written last and whole, checked whenever it is read, and read only when it is needed.

A manifest has the artifact's key with its parts in clear, who wrote it, from which inputs, and each file with its
size and checksum. It carries a digest of itself, so that a line edited by hand is noticed.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from pipeline.artifacts.local import LocalObjects
from pipeline.artifacts.objects import THREADS, Objects
from stages.contract.context import StageError

FORMAT = 1
MANIFEST = "manifest.json"
RUNS, PINS = "runs", "pins"
SHARED = ("teacher",)
"""Artifacts of no stage, which several have in common; see `pipeline.execution.shared`."""


class ListedFile(TypedDict):
    """A file in a manifest: its path below the attempt, bytes, and checksum."""

    path: str
    size: int
    sha256: str


def encode(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as it is stored, with its own digest."""
    whole = {name: value for name, value in manifest.items() if name != "digest"}
    return f"{json.dumps({**whole, 'digest': digest(whole)}, indent=1, ensure_ascii=False)}\n".encode()


class Damaged(StageError):
    """An artifact that is not whole."""


def remedy(stage: str) -> str:
    """How a damaged artifact is made again."""
    reader = "evaluate (or index, where that holds the teacher's vectors)" if stage in SHARED else stage
    return f"make it again with --force {reader}"


def decode(data: bytes, where: str, stage: str, key: str) -> dict[str, Any]:
    """The manifest in `data`, which was read at `where` as that of `stage` and `key`.

    Raises Damaged where it is truncated, edited or another artifact's, and StageError where it is of a newer format.
    """
    fix = remedy(stage)
    try:
        manifest = json.loads(data)
        found = manifest["format"]
        if found != FORMAT:  # first of all: another format may have other fields
            raise StageError(f"{where} is of format {found} and this Puma reads {FORMAT}; update Puma, or {fix}")
        identity = (manifest["stage"], manifest["key"], manifest["attempt"], manifest["files"])
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{where} is damaged: it holds no whole manifest; {fix}") from None
    if identity[:2] != (stage, key):
        other = f"{identity[0]}/{identity[1]}"
        raise Damaged(f"{where} is the manifest of {other}: files of two stores or artifacts were mixed; {fix}")
    if manifest.pop("digest", None) not in (None, digest(manifest)):
        raise Damaged(f"{where} is damaged: it was edited after it was written; {fix}")
    return manifest


def encode_run(record: Mapping[str, Any]) -> bytes:
    """The record of a run as it is stored."""
    return json.dumps(record, indent=1, ensure_ascii=False).encode()


def decode_run(data: bytes, where: str) -> dict[str, Any]:
    """The record of a run in `data`, which was read at `where`. Raises StageError where it holds something else."""
    try:
        record = json.loads(data)
        if record["id"]:
            return {"status": "", "started": "", "stages": {}, **record}
    except (ValueError, KeyError, TypeError):
        pass
    raise StageError(f"{where} is damaged: it holds no record of a run; delete it")


def digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over the manifest as canonical JSON."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(objects: Objects, stage: str, key: str) -> dict[str, Any] | None:
    """The committed manifest; None where there is none. Raises StageError for one that can't be trusted."""
    path = f"{stage}/{key}/{MANIFEST}"
    found = objects.read(path)
    return None if found is None else decode(found.data, f"{objects.uri}/{path}", stage, key)


class StageManifests(Mapping[str, dict[str, Any]]):
    """key → manifest of one stage's committed artifacts, each read when it is asked for, all of them at once."""

    def __init__(self, objects: Objects, stage: str) -> None:
        self.objects, self.stage = objects, stage
        self._read: dict[str, dict[str, Any] | None] = {}
        self._keys: list[str] | None = None

    def __getitem__(self, key: str) -> dict[str, Any]:
        if key not in self._read:
            self._read[key] = read_manifest(self.objects, self.stage, key)
        manifest = self._read[key]
        if manifest is None:
            raise KeyError(key)
        return manifest

    def __contains__(self, key: object) -> bool:
        if key in self._read:
            return self._read[key] is not None
        return self.objects.size(f"{self.stage}/{key}/{MANIFEST}") is not None

    def __iter__(self) -> Iterator[str]:
        self._fetch()
        return (key for key in self._keys or () if self._read[key] is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def peek(self, key: str) -> dict[str, Any] | None:
        """The manifest if it can be read and trusted."""
        self._fetch()
        return self._read.get(key)

    def values(self) -> list[dict[str, Any]]:  # type: ignore[override]  # no view: each call reads what is new
        """All that can be trusted, to compare with: what was read once on this machine is not fetched again.

        A copy may be of an older attempt. The parts that a key was made of are right in it: they never change.
        """
        keys = [key for key in self.objects.names(self.stage) if not key.startswith("_")]
        with ThreadPoolExecutor(THREADS) as pool:
            return [manifest for manifest in pool.map(self._copied, keys) if manifest]

    def _fetch(self) -> None:
        """Reads what isn't read yet, in parallel; what can't be trusted is left out, `self[key]` raises why."""
        if self._keys is None:
            self._keys = [key for key in self.objects.names(self.stage) if not key.startswith("_")]
            missing = [key for key in self._keys if key not in self._read]
            with ThreadPoolExecutor(THREADS) as pool:
                self._read |= dict(zip(missing, pool.map(self._readable, missing), strict=True))

    def _copied(self, key: str) -> dict[str, Any] | None:
        if self._read.get(key):
            return self._read[key]
        place = self.objects.work(f"{self.stage}/{key}/{MANIFEST}")  # of a local store the manifest itself
        try:
            return decode(place.read_bytes(), str(place), self.stage, key)
        except (OSError, StageError):
            manifest = self._read[key] = self._readable(key)
        if manifest and not isinstance(self.objects, LocalObjects):
            keep_copy(place, encode(manifest))
        return manifest

    def _readable(self, key: str) -> dict[str, Any] | None:
        try:
            return read_manifest(self.objects, self.stage, key)
        except StageError:
            return None


class Manifests(Mapping[str, StageManifests]):
    """stage → key → manifest of everything that is committed."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._stages: dict[str, StageManifests] = {}
        self._names: list[str] | None = None

    def __getitem__(self, stage: str) -> StageManifests:
        if stage not in self._stages:
            self._stages[stage] = StageManifests(self.objects, stage)
        return self._stages[stage]

    def __iter__(self) -> Iterator[str]:
        if self._names is None:
            self._names = stage_names(self.objects)
        return (stage for stage in self._names if self[stage])

    def __len__(self) -> int:
        return sum(1 for _ in self)


def keep_copy(place: Path, data: bytes) -> None:
    """Leaves a copy on this machine, whole or, where there is no room for it, not at all."""
    fresh = place.with_name(f".{uuid.uuid4().hex}")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(data)
        fresh.replace(place)


def stage_names(objects: Objects) -> list[str]:
    """The stages that have a directory, sorted."""
    return [name for name in objects.names("") if name not in (RUNS, PINS) and not name.startswith(("_", "."))]
