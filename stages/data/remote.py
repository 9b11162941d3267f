"""A source in object storage, read in place: the few things of `pathlib.Path` that reading a source needs.

Credentials, region and endpoint come from the standard AWS variables and files. Picklable: tasks read by themselves.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, BinaryIO

from stages.context import InputError

SCHEME = "s3://"
MEND = "check the bucket and the AWS_* variables"


@dataclass(frozen=True)
class RemotePath:
    """A file or folder `s3://bucket/prefix`; `path` is without the scheme."""

    path: str

    @cached_property
    def filesystem(self) -> Any:
        from pyarrow.fs import FileSystem

        return FileSystem.from_uri(str(self))[0]

    def __str__(self) -> str:
        return f"{SCHEME}{self.path}"

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path}

    def __truediv__(self, below: object) -> "RemotePath":
        return RemotePath(f"{self.path}/{below}")

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        """The last part without its ending."""
        return PurePosixPath(self.path).stem

    @property
    def parent(self) -> "RemotePath":
        """The folder that holds it."""
        return RemotePath(str(PurePosixPath(self.path).parent))

    def __lt__(self, other: "RemotePath") -> bool:
        return self.path < other.path

    def relative_to(self, root: "RemotePath") -> PurePosixPath:
        """The path below `root`."""
        return PurePosixPath(self.path).relative_to(root.path)

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """The files of one folder by the pattern of their names; a pattern of folders is not understood."""
        from pyarrow.fs import FileSelector

        folder, _, names = pattern.rpartition("/")
        place = (self / folder if folder else self).path
        for info in self.filesystem.get_file_info(FileSelector(place, allow_not_found=True)):
            if info.is_file and fnmatchcase(info.base_name, names):
                yield RemotePath(info.path)

    def is_dir(self) -> bool:
        """Whether anything lies below."""
        return self._type() == "Directory"

    def is_file(self) -> bool:
        """Whether it is an object."""
        return self._type() == "File"

    def stat(self) -> SimpleNamespace:
        """`st_size`. Raises FileNotFoundError."""
        info = self.filesystem.get_file_info(self.path)
        if not info.is_file:
            raise FileNotFoundError(str(self))
        return SimpleNamespace(st_size=info.size)

    def open(self, mode: str = "r", encoding: str | None = None, errors: str | None = None) -> Any:
        """The content as a stream, of bytes for `rb`, else of text."""
        stream: BinaryIO = io.BufferedReader(self.filesystem.open_input_file(self.path), 2**20)
        return stream if mode == "rb" else io.TextIOWrapper(stream, encoding or "utf-8", errors)

    def read_bytes(self) -> bytes:
        """The whole content."""
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole content as text."""
        return self.read_bytes().decode(encoding)

    def _type(self) -> str:
        try:
            return self.filesystem.get_file_info(self.path).type.name
        except OSError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"data.path={self} can't be read: {reason}; {MEND}") from None


def source(path: str) -> Path | RemotePath:
    """The place that `data.path` names. Raises InputError for an address that nothing here can read."""
    if path.startswith(SCHEME):
        return RemotePath(path.removeprefix(SCHEME).strip("/"))
    if "://" in path:
        raise InputError(f"data.path={path} can't be read; give a directory or s3://bucket/prefix")
    return Path(path).expanduser()


def listing(root: RemotePath) -> list[tuple[str, int, str]]:
    """(path below the root, bytes, ETag) of all objects, by listing alone."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = root.path.partition("/")
    start = f"{prefix}/" if prefix else ""
    try:
        pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start)
        found = [(entry["Key"], entry["Size"], entry["ETag"]) for page in pages for entry in page.get("Contents", ())]
    except (BotoCoreError, ClientError) as error:
        raise InputError(f"data.path={root} can't be listed: {error}; {MEND}") from None
    return [(key.removeprefix(start), size, tag) for key, size, tag in found]
