"""The place that is a prefix of a bucket in S3 or anything that speaks its language; see `objects.Objects`.

Bulk data streams through pyarrow; small control objects and whole local files go by boto3, which can write under a
condition and gives an upload up when it fails (a pyarrow stream that an error closes becomes a whole object). The
conditional PUT is made without the SDK's own retries, since a retry of a request that had arrived is answered "412,
somebody was first" and that somebody is the writer itself: where an answer leaves the outcome open, reading back
settles it (Lance #8123, Hudi RFC-91, Iceberg's CommitStateUnknown). Nothing is deleted while an outcome is open.

Credentials come from the standard chain on each machine and are no part of any object here.
"""

import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from boto3.exceptions import Boto3Error
from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError, ClientError
from botocore.response import StreamingBody
from filelock import FileLock
from urllib3.exceptions import HTTPError

from pipeline.artifacts.copies import ensure_dir, make_room, translate_cache_errors
from pipeline.artifacts.local import Summed, checksum
from pipeline.artifacts.objects import PIECE, QUICK_SECONDS, THREADS, Entry, Found
from pipeline.artifacts.s3_clients import arrow_filesystem, client, server_time
from pipeline.artifacts.s3_errors import code, explain
from pipeline.wording import one_line
from stages.contract.bucket import require_answer
from stages.contract.cache import cache_root
from stages.contract.context import InputError, StageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

TRIES = 8  # of a conditional PUT whose outcome stays open; the waits between them double from WAIT seconds
WAIT = 0.2
BODIES = 3
"""Tries to read an answer to its end. Botocore repeats a request that fails, but none whose body breaks off; of an
answer in XML, "no such key" among them, it passes urllib3's own error on."""
PROBE = "_probe"
STANDARD = re.compile(r"https://s3(\.[a-z0-9-]+)*\.amazonaws\.com(\.cn)?/?")  # not the one of a private network


Result = TypeVar("Result")


class OutcomeUnknown(StageError):
    """A conditional write may have happened or not; nothing may be deleted before that is known."""


@dataclass(frozen=True)
class S3Objects:
    """A prefix of a bucket. `endpoint` is empty for AWS itself."""

    bucket: str
    prefix: str
    endpoint: str = ""
    region: str = ""

    @property
    def uri(self) -> str:
        return f"s3://{self.root}"

    @property
    def root(self) -> str:
        return f"{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def filesystem(self) -> "FileSystem":
        return arrow_filesystem(self.endpoint, self.region)

    def require_answer(self) -> None:
        """Before a command's other requests: raises InputError within seconds where no S3 server answers."""
        quick = client(self.endpoint, self.region, quick=True)
        require_answer(quick, self.bucket, self._start(""), f"store={self.uri}", "store_endpoint")

    def prepare(self) -> None:
        probe(self, os.getpid())

    def read(self, path: str, clock: bool = True) -> Found | None:
        return self._read(path, self._client)

    def _read(self, path: str, link: BaseClient) -> Found | None:
        with self._translate_errors():
            try:
                answer, data = self._get(path, link, lambda body: body.read())
            except link.exceptions.NoSuchKey:
                return None
        age = (server_time(answer) - answer["LastModified"]).total_seconds()
        return Found(data, answer["ETag"].strip('"'), age)

    def _get(
        self, path: str, link: BaseClient, consume: Callable[[StreamingBody], Result]
    ) -> tuple[dict[str, Any], Result]:
        """An answer, and what `consume` makes of its body; asked again where the body breaks off."""
        for left in reversed(range(BODIES)):
            try:
                answer = link.get_object(**self._at(path))
                return answer, consume(answer["Body"])
            except (BotoCoreError, HTTPError):
                if not left:
                    raise
        raise AssertionError("unreachable")

    def size(self, path: str) -> int | None:
        head = self._head(path)
        return head["ContentLength"] if head else None

    def create(self, path: str, data: bytes) -> str | None:
        return self._put_if(path, data, IfNoneMatch="*")

    def swap(self, path: str, data: bytes, tag: str) -> str | None:
        return self._put_if(path, data, IfMatch=tag)

    def put(self, path: str, data: bytes) -> None:
        with self._translate_errors():
            self._client.put_object(**self._at(path), Body=data, Metadata={"sha256": hashlib.sha256(data).hexdigest()})

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        with translate_cache_errors(), NamedTemporaryFile(dir=ensure_dir(cache_root() / "unfinished")) as file:
            summed = Summed(cast(BinaryIO, file))
            yield cast(BinaryIO, summed)
            file.flush()
            self._send(Path(file.name), path, summed.hexdigest())

    def upload(self, source: Path, path: str) -> None:
        self._send(source, path, checksum(source))

    def _send(self, source: Path, path: str, sha256: str) -> None:
        with self._translate_errors():
            self._client.upload_file(str(source), **self._at(path), ExtraArgs={"Metadata": {"sha256": sha256}})

    def link(self, source: str, target: str) -> None:
        with self._translate_errors():
            self._client.copy(self._at(source), **self._at(target))

    def local(self, path: str, size: int, sha256: str) -> Path:
        """The cached copy, fetched where it isn't there; its content is that of `sha256` or it does not appear.

        Of the processes of a node that ask for it at once, one fetches it.
        """
        target = cache_root() / "files" / sha256[:2] / sha256
        if is_there(target, size):
            return target
        with translate_cache_errors(), FileLock(ensure_dir(target.parent) / f".{sha256}.lock"):
            if is_there(target, size):
                return target
            make_room(size)
            for _ in range(BODIES):
                unfinished = target.with_name(f".{uuid.uuid4().hex}")
                try:
                    with self._translate_errors():
                        self._client.download_file(**self._at(path), Filename=str(unfinished))
                    if checksum(unfinished) == sha256:
                        unfinished.replace(target)
                        return target
                finally:
                    unfinished.unlink(missing_ok=True)
        raise StageError(f"{self.uri}/{path} has another content than when it was written")

    def names(self, path: str) -> list[str]:
        start = self._start(path)
        with self._translate_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=start, Delimiter="/"
            )
            found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        return sorted(name.removeprefix(start).rstrip("/") for name in found)

    def files(self, path: str) -> list[Entry]:
        found = [entry for entry in self._below(path) if not entry.path.endswith("/")]
        return sorted(found, key=lambda entry: entry.path)

    def _below(self, path: str) -> list[Entry]:
        """All objects below `path/`; what ends in a slash is pyarrow's mark of a directory."""
        start, above = self._start(path), len(self._start(""))
        found = []
        with self._translate_errors():
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start):
                now = server_time(page)
                for entry in page.get("Contents", ()):
                    age = (now - entry["LastModified"]).total_seconds()
                    found.append(Entry(entry["Key"][above:], entry["Size"], age))
        return found

    def flush(self, directory: str) -> None:
        """What S3 has answered for is there for good."""

    def checksum(self, path: str, trust: bool = False) -> str:
        stored = (self._head(path) or {}).get("Metadata", {}).get("sha256") if trust else None
        if stored:
            return stored
        with self._translate_errors():
            return self._get(path, self._client, digest)[1]

    def remove(self, paths: Iterable[str]) -> None:
        with self._translate_errors(), ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda path: self._client.delete_object(**self._at(path)), paths))

    def remove_tree(self, path: str) -> None:
        self.remove([entry.path for entry in self._below(path)])

    def drop_unfinished(self, age: float, covered: Callable[[str], bool]) -> int:
        """Gives up uploads in parts that nobody finished; they cost storage and no listing shows them."""
        start, count = self._start(""), 0
        with self._translate_errors():
            for page in self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=start
            ):
                for upload in page.get("Uploads", ()):
                    old = (server_time(page) - upload["Initiated"]).total_seconds() > max(age, QUICK_SECONDS)
                    if old and not covered(upload["Key"].removeprefix(start)):
                        place = {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                        self._client.abort_multipart_upload(**place)
                        count += 1
        return count

    def work(self, path: str) -> Path:
        return cache_root() / "work" / hashlib.sha256(f"{self.endpoint} {self.uri}".encode()).hexdigest()[:12] / path

    @property
    def _client(self) -> BaseClient:
        return client(self.endpoint, self.region)

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    def _start(self, path: str) -> str:
        """What all keys below a directory start with; without the slash those of its namesakes would too."""
        return f"{self._key(path)}/" if self._key(path) else ""

    def _at(self, path: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(path)}

    def _head(self, path: str) -> dict[str, Any] | None:
        with self._translate_errors():
            try:
                return self._client.head_object(**self._at(path))
            except self._client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise

    def _put_if(self, path: str, data: bytes, **condition: str) -> str | None:
        """A conditional PUT until its outcome is known: the tag of `data`, or None where the condition failed."""
        once, doubt = client(self.endpoint, self.region, once=True), None
        for trial in range(TRIES):
            time.sleep(WAIT * 2**trial if trial else 0)
            try:
                answer = once.put_object(**self._at(path), Body=data, **condition)
                return answer["ETag"].strip('"')
            except ClientError as error:
                status, doubt = error.response["ResponseMetadata"].get("HTTPStatusCode", 0), error
                if status == 404 and "IfMatch" in condition and code(error) != "NoSuchBucket":
                    return None
                if status not in (409, 412, 429) and status < 500:
                    raise self._explained(error) from error
                if status == 409:  # two conditional requests met, and this one was not carried out
                    continue
            except BotoCoreError as error:
                if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                    raise self._explained(error) from error
                status, doubt = 0, error
            try:
                found = self._read(path, once)
            except StageError:
                continue
            if found and found.data == data:
                return found.tag
            unchanged = found and found.tag == condition.get("IfMatch")
            if (found and not unchanged) or (status == 412 and (unchanged or "IfMatch" in condition)):
                return None
        raise OutcomeUnknown(
            f"{self.uri}/{path}: the store did not say whether it was written ({one_line(doubt)});"
            " nothing was deleted, and the same command finds out"
        )

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError, Boto3Error, HTTPError) as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> Exception:
        return explain(error, self.uri, self.bucket, self.endpoint or "AWS")


def open_s3(uri: str, endpoint: str = "") -> S3Objects:
    """The place at `s3://bucket/prefix`; endpoint and region as configured, else by the standard variables."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"store={uri} names no bucket; write s3://bucket/prefix")
    if endpoint and "://" not in endpoint:
        raise InputError(f"store_endpoint={endpoint} is no address; write http://host:port or https://host")
    found = client(endpoint, "").meta
    resolved = "" if not endpoint and STANDARD.fullmatch(found.endpoint_url) else found.endpoint_url
    return S3Objects(bucket, prefix.strip("/"), resolved, found.region_name or "us-east-1")


def is_there(copy: Path, size: int) -> bool:
    """Whether a file is in the cache; copies that nobody has asked for in a long time are given up."""
    with translate_cache_errors():
        if not copy.is_file() or copy.stat().st_size != size:
            return False
        os.utime(copy)
    return True


def digest(body: StreamingBody) -> str:
    """SHA-256 of a body in hex."""
    found = hashlib.sha256()
    for piece in body.iter_chunks(PIECE):
        found.update(piece)
    return found.hexdigest()


@cache
def probe(objects: S3Objects, process: int) -> None:
    """Asks the bucket for what must be refused, once in each process.

    Raises InputError for a server that writes in spite of a condition, where two runs would overwrite each other.
    """
    none, match = {"IfNoneMatch": "*"}, {"IfMatch": "0" * 32}
    for name, condition in (("If-None-Match", none), ("If-Match", match)):
        if not refuses(objects, condition, int(condition is none)):  # the first PUT of a bucket may find nothing there
            raise InputError(
                f"{objects.endpoint or 'AWS'} ignores {name} on bucket '{objects.bucket}', so two runs could"
                " overwrite each other's artifacts; take a store with conditional writes, or a local directory"
            )


def refuses(objects: S3Objects, condition: dict[str, str], allowed: int) -> bool:
    """Whether the bucket refuses a conditional PUT, of which `allowed` may succeed; one refusal is proof."""
    once, doubt = client(objects.endpoint, objects.region, once=True), None
    for trial in range(TRIES):
        time.sleep(WAIT * 2**trial if doubt else 0)
        try:
            once.put_object(**objects._at(f"{PROBE}.json"), Body=uuid.uuid4().hex.encode(), **condition)
            allowed, doubt = allowed - 1, None
        except (ClientError, BotoCoreError) as error:  # an answer that was lost proves nothing
            doubt = error
            answer = getattr(error, "response", None) or {}
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            if status == 412:
                return True
            if status < 500 and status != 409:
                raise objects._explained(error) from error
        if allowed < 0:
            return False
    raise objects._explained(doubt or TimeoutError("it did not say whether it respects conditions")) from doubt
