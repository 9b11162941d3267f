"""A source in object storage, read in place: the few things of `pathlib.Path` that reading a source needs.

Credentials, region and endpoint come from the standard AWS variables and files. Picklable: tasks read by themselves.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, BinaryIO

from stages.contract.bucket import QUICK, require_answer
from stages.contract.context import InputError

SCHEME = "s3://"
ADVICE = "check the bucket and the AWS_* variables"
LINKED = "copy the folder with its links followed: cp -rL {} COPY"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


@dataclass(frozen=True)
class RemotePath:
    """A file or folder `s3://bucket/prefix`; `path` is without the scheme, `setting` is what named it, for errors."""

    path: str
    setting: str = field(default="data.path", compare=False)

    @property
    def filesystem(self) -> Any:
        """The `pyarrow.fs.FileSystem` that `path` is in; one for all files of a bucket."""
        return _open_bucket(self.path.partition("/")[0], *(os.environ.get(name) for name in ENDPOINTS))

    def __str__(self) -> str:
        return f"{SCHEME}{self.path}"

    def __truediv__(self, below: object) -> "RemotePath":
        return replace(self, path=f"{self.path}/{below}")

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        """The last part without its ending."""
        return PurePosixPath(self.path).stem

    @property
    def suffix(self) -> str:
        """The ending, with its dot."""
        return PurePosixPath(self.path).suffix

    @property
    def parent(self) -> "RemotePath":
        """The folder that holds it."""
        return replace(self, path=str(PurePosixPath(self.path).parent))

    def __lt__(self, other: "RemotePath") -> bool:
        return self.path < other.path

    def relative_to(self, root: "RemotePath") -> PurePosixPath:
        """The path below `root`."""
        return PurePosixPath(self.path).relative_to(root.path)

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """The files of one folder by the pattern of their names; a pattern of folders is not understood."""
        from pyarrow.fs import FileSelector

        folder, _, names = pattern.rpartition("/")
        place = self / folder if folder else self
        for info in place._info(FileSelector(place.path, allow_not_found=True)):
            if info.is_file and fnmatchcase(info.base_name, names):
                yield replace(self, path=info.path)

    def is_dir(self) -> bool:
        """Whether anything lies below."""
        return self._info(self.path).type.name == "Directory"

    def is_file(self) -> bool:
        """Whether it is an object."""
        return self._info(self.path).is_file

    def stat(self) -> SimpleNamespace:
        """`st_size`. Raises FileNotFoundError, and InputError where it may not be read."""
        with self._permitted():
            info = self.filesystem.get_file_info(self.path)
        if not info.is_file:
            raise FileNotFoundError(str(self))
        return SimpleNamespace(st_size=info.size)

    def open(
        self, mode: str = "r", encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> Any:
        """The content as a stream, of bytes for `rb`, else of text. Raises InputError where it may not be read."""
        with self._permitted():
            stream: BinaryIO = io.BufferedReader(self.filesystem.open_input_file(self.path), 2**20)
        return stream if mode == "rb" else io.TextIOWrapper(stream, encoding or "utf-8", errors, newline)

    def read_bytes(self) -> bytes:
        """The whole content."""
        with self._permitted(), self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole content as text."""
        return self.read_bytes().decode(encoding)

    def _info(self, wanted: Any) -> Any:
        """What the bucket says of a path, or of a folder's content. Raises InputError where it does not answer."""
        try:
            return self.filesystem.get_file_info(wanted)
        except (OSError, ValueError) as error:
            raise self._refusal(error) from None

    @contextmanager
    def _permitted(self) -> Iterator[None]:
        """Raises InputError for what the bucket lists and does not give; a network that fails stays an OSError."""
        try:
            yield
        except OSError as error:
            if "ACCESS_DENIED" not in str(error):
                raise
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:200]
        return InputError(f"{self.setting}={self} can't be read: {reason}; {ADVICE}")


Place = Path | RemotePath


def source(path: str, setting: str = "data.path") -> Place:
    """The place that `setting` names. Raises InputError for an address that is silent, or that nothing here reads."""
    if path.startswith(SCHEME):
        below = path.removeprefix(SCHEME).rstrip("/")
        if not all(below.split("/")):
            raise InputError(f"{setting}={path} lacks a bucket or a folder's name; give s3://bucket/prefix")
        _ask_first(below, setting, *(os.environ.get(name) for name in ENDPOINTS))
        return RemotePath(below, setting)
    if "://" in path:
        raise InputError(f"{setting}={path} can't be read; give a directory or s3://bucket/prefix")
    place = Path(path).expanduser()
    _require_readable(place, setting)
    return place


def _require_readable(place: Path, setting: str) -> None:
    """Raises InputError for what is there and may not be looked into, where a pattern would find nothing."""
    try:
        if place.is_dir():
            with os.scandir(place) as found:
                next(found, None)
            os.stat(os.path.join(place, "."))  # names can be listed of a directory that nobody may enter
        elif place.is_file():
            place.open("rb").close()
    except OSError as error:
        raise InputError(
            f"{setting}={place} can't be read ({error.strerror}); change its rights, or run as a user who may"
        ) from None


@lru_cache
def _ask_first(path: str, setting: str, *_endpoints: str | None) -> None:
    """Once in a process, before a plan reads anything; see `require_answer`."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    bucket, _, prefix = path.partition("/")
    try:
        client = boto3.client("s3", config=Config(**QUICK))
    except (BotoCoreError, ValueError):  # a profile or an address that is none: who reads says so
        return
    require_answer(client, bucket, prefix, f"{setting}={SCHEME}{path}", ENDPOINTS[1])


@lru_cache
def _open_bucket(bucket: str, *_endpoints: str | None) -> Any:
    """Its file system, opened from the bucket's name alone: a file's name may hold what no address can.

    Kept, since opening takes as long as reading a picture does; anew where the environment names another server.
    """
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"{SCHEME}{bucket}")[0]


def walk(root: RemotePath, deep: bool = True) -> Iterator[tuple[str, int, str]]:
    """(path below the root, bytes, ETag) of all objects, by listing alone; without `deep` of the folder's own.

    A page is asked for only when it is wanted.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = root.path.partition("/")
    start = f"{prefix}/" if prefix else ""
    wanted = {"Bucket": bucket, "Prefix": start, **({} if deep else {"Delimiter": "/"})}
    try:
        pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(**wanted)
        for page in pages:
            for entry in page.get("Contents", ()):
                yield entry["Key"].removeprefix(start), entry["Size"], entry["ETag"]
    except (BotoCoreError, ClientError) as error:
        raise InputError(f"{root.setting}={root} can't be listed: {error}; {ADVICE}") from None
