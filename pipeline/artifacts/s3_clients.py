"""Connections to S3, one of each kind in a process, and what their answers say."""

import logging
import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from pipeline.artifacts.objects import THREADS
from pipeline.wording import one_line
from stages.contract.bucket import QUICK
from stages.contract.context import InputError

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem


@cache
def session(process: int) -> boto3.Session:
    """boto3's credentials and settings, of this process."""
    logging.getLogger("botocore.credentials").setLevel(logging.WARNING)  # it says in every process where it found them
    return boto3.Session()


def client(endpoint: str, region: str, once: bool = False, quick: bool = False) -> BaseClient:
    """The connections of this process; `once` gives up after one try, and `quick` besides within seconds."""
    return _client(endpoint, region, once, quick, os.getpid())


@cache
def _client(endpoint: str, region: str, once: bool, quick: bool, process: int) -> BaseClient:
    retries = {"total_max_attempts": 1} if once else {"mode": "standard", "total_max_attempts": 5}
    options: dict[str, Any] = {"retries": retries, "connect_timeout": 10, "read_timeout": 30}
    options |= QUICK if quick else {}
    options |= {"s3": {"addressing_style": "path"}} if endpoint else {}
    config = Config(max_pool_connections=2 * THREADS, **options)
    try:
        return session(process).client("s3", endpoint_url=endpoint or None, region_name=region or None, config=config)
    except (BotoCoreError, ValueError) as error:
        raise InputError(f"S3 cannot be reached as configured: {one_line(error)}") from error


@cache
def arrow_filesystem(endpoint: str, region: str) -> "S3FileSystem":
    """The file system for streams, one for each process; sent to another, it is that one's own.

    pyarrow's own pickle leaves out how often it asks again: workers gave up after three tries. Of its two strategies
    the standard one asks a hundred times again in the whole life of a process and then never (pyarrow 25 tells its
    quota of no success); this one waits 25 ms, then twice as long each time, 25 s in all.
    """
    from pyarrow.fs import AwsDefaultS3RetryStrategy, S3FileSystem  # heavy, and a plan needs no bulk data

    class Sent(S3FileSystem):  # type: ignore[misc]  # pyarrow has no types
        def __reduce__(self) -> tuple[Any, ...]:
            return arrow_filesystem, (endpoint, region)

    scheme, _, host = endpoint.rpartition("://")
    options = {"endpoint_override": host.rstrip("/"), "scheme": scheme} if endpoint else {}
    return Sent(
        region=region,
        connect_timeout=10,
        request_timeout=60,
        retry_strategy=AwsDefaultS3RetryStrategy(max_attempts=11),
        **options,
    )


def server_time(answer: dict[str, Any]) -> datetime:
    """The time by the clock of the server, which also gave the objects theirs; ours where it says none."""
    try:
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return datetime.now(UTC)
