"""What a stage reads, an artifact that is whole, and what it writes, an attempt that no reader sees yet."""

import json
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.artifacts.copies import translate_cache_errors
from pipeline.artifacts.local import LocalObjects, checksum
from pipeline.artifacts.manifests import MANIFEST, Damaged, ListedFile, read_manifest, remedy
from pipeline.artifacts.objects import THREADS, Objects
from stages.contract.context import StageError, Where

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


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

        Raises StageError for a file that is not there with the size in the manifest.
        """
        listed = self._below(prefix)
        if listed:
            below = f"{self._directory}/{prefix}".rstrip("/")
            sizes = {entry.path: entry.size for entry in self.objects.files(below)}
            for entry in listed:
                self._check(entry, sizes.get(f"{self._directory}/{entry['path']}"))
        return [f"{self.base}/{entry['path']}" for entry in listed]

    def read_bytes(self, name: str) -> bytes:
        """The content of the file `name`, of the checksum in the manifest."""
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
            raise StageError(f"{self.stage} {self.key} has no '{prefix}'; {remedy(self.stage)}")
        if entry:
            self._check(entry, self.objects.size(f"{self._directory}/{prefix}"))
        else:
            self.files(prefix)
        for file in listed:
            self._fetch(file)
        return self.objects.work(self._directory) / prefix

    def damage(self) -> list[str]:
        """One line for each listed file that is missing or whose size or checksum differs. Reads every byte."""
        with ThreadPoolExecutor(THREADS) as pool:
            return [line for line in pool.map(self._damage, self.manifest["files"]) if line]

    @property
    def _directory(self) -> str:
        return f"{self.stage}/{self.key}/{self.attempt}"

    def _entry(self, name: str) -> ListedFile | None:
        return next((entry for entry in self.manifest["files"] if entry["path"] == name), None)

    def _below(self, prefix: str) -> list[ListedFile]:
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        return [entry for entry in self.manifest["files"] if entry["path"].startswith(start)]

    def _check(self, entry: ListedFile, size: int | None) -> None:
        if size != entry["size"]:
            there = "is missing" if size is None else f"has {size} bytes"
            path = f"{self.objects.uri}/{self._directory}/{entry['path']}"
            raise Damaged(f"{path} {there}, expected {entry['size']} bytes; {remedy(self.stage)}")

    def _damage(self, entry: ListedFile) -> str:
        path = f"{self._directory}/{entry['path']}"
        try:
            self._check(entry, self.objects.size(path))
            same = self.objects.checksum(path) == entry["sha256"]
        except StageError as error:
            return str(error)
        return "" if same else f"{self.objects.uri}/{path} has another content than when it was written"

    def _fetch(self, entry: ListedFile) -> None:
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
    resumed: bool = False
    """Whether an earlier attempt left work for this one, which then takes less time than the whole."""

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
        """A file to write, front to back; when the block ends well, and only then, it is `name` of the artifact."""
        return self.objects.open(f"{self._directory}/{name}")

    def upload(self, source: Path, name: str) -> None:
        """Copies a local file or directory to `name` in the artifact, each file whole or not at all."""
        for path, place in named_files(Path(source), name):
            self.objects.upload(path, f"{self._directory}/{place}")

    def send(self, source: Path) -> Where:
        """A local directory or file for workers on any node; see `stages.contract.context.Attempt`."""
        if isinstance(self.objects, LocalObjects):
            return partial(Path, source)
        return self._copied_from(source) or self._sent(source)

    def _copied_from(self, source: Path) -> Where | None:
        """What an artifact of the bucket holds and `source` is this machine's copy of; None where it is no such."""
        root = self.objects.work("").resolve()
        parts = source.resolve().relative_to(root).parts if source.resolve().is_relative_to(root) else ()
        if len(parts) < 4:
            return None
        (stage, key, attempt), name = parts[:3], "/".join(parts[3:])
        manifest = read_manifest(self.objects, stage, key)
        if manifest is None or manifest["attempt"] != attempt:
            return None
        return partial(Artifact(stage, key, self.objects.uri, manifest, self.objects).local, name)

    def _sent(self, source: Path) -> Where:
        """A copy in the work directory, which an attempt that went before may have made."""
        directory, name, listed = f"{self.stage}/{self.key}/_work/{self._lineage}", f"sent/{source.name}", []
        for path, below in named_files(source, name):
            entry: ListedFile = {"path": below, "size": path.stat().st_size, "sha256": checksum(path)}
            place = f"{directory}/{below}"
            there = self.objects.size(place) == entry["size"]
            if not there or self.objects.checksum(place, trust=True) != entry["sha256"]:
                self.objects.upload(path, place)
            listed.append(entry)
        manifest = {"attempt": f"_work/{self._lineage}", "files": listed}
        return partial(Artifact(self.stage, self.key, self.objects.uri, manifest, self.objects).local, name)

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


def named_files(source: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Each file of a directory, or the file, and what it is called where `name` stands for `source`."""
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.is_file():
            yield path, f"{name}/{path.relative_to(source).as_posix()}" if source.is_dir() else name
