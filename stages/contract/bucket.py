"""The first request to a bucket, before any work: a wrong address is one line within seconds.

The requests of a run's work have patience for minutes, since a server may be restarted under it; a command that has
not begun has its user in front of it.
"""

import time
from typing import Any

from stages.contract.context import InputError

IN_NO_KEY = True  # a check that ends the command
QUICK: dict[str, Any] = {"connect_timeout": 2, "read_timeout": 3, "retries": {"total_max_attempts": 1}}
"""Options of `botocore.config.Config`, seconds; tries are counted here."""
PATIENCE = 1
"""Seconds in which what fails at once is tried again: a busy server says so, and so does a network that just came."""
WAIT = 0.2
NO_BUCKET = "NoSuchBucket"


def require_answer(client: Any, bucket: str, prefix: str, place: str, setting: str) -> None:
    """Raises InputError, in one line, where no S3 server answers, or none that has the bucket; asks for one name.

    What the server refuses, or the credentials, is left to those who ask it for more.

    Args:
        client: of boto3, with `QUICK`.
        place: what is to be reached, as the user wrote it, for the message.
        setting: what holds the server's address.
    """
    end = time.monotonic() + PATIENCE
    where = client.meta.endpoint_url
    while reason := unanswered(client, bucket, prefix):
        if reason == NO_BUCKET:
            raise InputError(f"{place}: there is no bucket '{bucket}' at {where}; create it, or correct the name")
        if time.monotonic() > end:
            raise InputError(
                f"{place}: {where} does not answer as an S3 server does ({reason}); check {setting} and the network"
            )
        time.sleep(WAIT)


def unanswered(client: Any, bucket: str, prefix: str) -> str:
    """Why a request got no answer of S3's, or `NO_BUCKET`; nothing where it got one."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError
    from botocore.parsers import ResponseParserError

    try:
        answer = client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except ClientError as error:
        name, status = error.response["Error"].get("Code", ""), error.response["ResponseMetadata"]["HTTPStatusCode"]
        if name == NO_BUCKET:
            return name
        in_words = name and not name.isdigit()  # as S3 tells, and no web page does
        return short(error) if status >= 500 or not (in_words or status in (401, 403)) else ""
    except (ConnectionError, HTTPClientError, ResponseParserError) as error:
        return short(error)
    except BotoCoreError:  # credentials, or a name that no bucket has
        return ""
    return "" if "Name" in answer else "an answer without the bucket's name"


def short(error: Exception) -> str:
    """What it says, in one line."""
    return " ".join(str(error).split())[:200]
