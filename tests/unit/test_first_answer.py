"""The first request to a bucket: whatever is no S3 server is one line, before anything else is asked of it."""

import socket

import pytest

from pipeline.artifacts.store import open_store
from stages.contract import bucket
from stages.contract.context import InputError
from stages.data.sources.remote import source
from tests.answering import answering

LISTED = "<ListBucketResult><Name>bucket</Name><KeyCount>0</KeyCount></ListBucketResult>"
REFUSED = "<Error><Code>{}</Code><Message>no</Message></Error>"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(bucket, "PATIENCE", 0.05)
    monkeypatch.setattr(bucket, "WAIT", 0.01)


@pytest.fixture(params=["store", "data.path"])
def reach(request, monkeypatch):
    """Goes to `s3://bucket/below` at an address, as a command does with that setting."""
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)

    def go(address: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        open_store("s3://bucket/below", address) if request.param == "store" else source("s3://bucket/below")

    go.setting = request.param
    return go


def refusal(reach, address: str) -> str:
    with pytest.raises(InputError) as caught:
        reach(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        (200, "<!doctype html><html><head><title>Welcome<br></head></html>"),
        (200, "<html><body>Welcome</body></html>"),
        (404, "<html><body>There is no such page</body></html>"),
        (405, ""),
        (500, REFUSED.format("InternalError")),
        (503, REFUSED.format("SlowDown")),
    ],
)
def test_what_answers_and_is_no_s3_server_is_named_with_the_setting(reach, answer):
    with answering(answer) as (address, _):
        assert refusal(reach, address).startswith(
            f"{reach.setting}=s3://bucket/below: {address} does not answer as an S3 server does ("
        )


def test_a_server_that_is_silent_or_not_there_is_named(reach, monkeypatch):
    monkeypatch.setitem(bucket.QUICK, "read_timeout", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert f"{address} does not answer as an S3 server does (Read timeout" in refusal(reach, address)
    assert f"{address} does not answer as an S3 server does (Could not connect" in refusal(reach, address)


def test_a_bucket_that_is_not_there_is_called_that(reach):
    with answering((404, REFUSED.format("NoSuchBucket"))) as (address, asked):
        said = refusal(reach, address)
    assert said.startswith(f"{reach.setting}=s3://bucket/below: there is no bucket 'bucket' at {address}; create it")
    assert len(asked) == 1


def test_a_server_that_was_busy_for_a_moment_is_asked_again_and_refusals_are_left_to_those_who_ask_more(
    reach, monkeypatch
):
    monkeypatch.setattr(bucket, "PATIENCE", 60)
    with answering((503, REFUSED.format("SlowDown")), (200, LISTED)) as (address, asked):
        reach(address)
    assert len(asked) == 2 and all(path.startswith("/bucket?") and "prefix=below" in path for path in asked)
    with answering((403, REFUSED.format("AccessDenied"))) as (address, asked):
        reach(address)
        reach(address)
    assert len(asked) == (2 if reach.setting == "store" else 1)  # a source is asked for many times in a process
