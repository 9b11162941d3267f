"""The places that a store can lie in: a directory, two S3 servers, and any real bucket that the environment names.

PUMA_TEST_STORE=s3://bucket/prefix (with the standard AWS variables) runs the contract there too.
"""

import logging
import os
import time
import uuid
from types import SimpleNamespace

import pytest

from pipeline.artifacts import s3
from pipeline.artifacts.store import Store, open_store
from tests.made_stages import hooks
from tests.s3.servers import Proxy, ministack_server, moto_server

__all__ = ["hooks"]
REAL = os.environ.get("PUMA_TEST_STORE", "")
PLACES = ["local", "moto", "ministack", *(["real"] if REAL else [])]


@pytest.fixture(scope="session")
def aws(tmp_path_factory):
    """Credentials that made servers take, and a cache of the tests' own."""
    patch = pytest.MonkeyPatch()
    if not REAL:
        for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("PUMA_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(s3, "WAIT", 0.01)
    patch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 50)))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    yield
    patch.undo()


@pytest.fixture(scope="session")
def moto(aws):
    with moto_server() as address:
        make_bucket(address)
        yield address


@pytest.fixture(scope="session")
def ministack(aws, tmp_path_factory):
    with ministack_server(tmp_path_factory.mktemp("ministack") / "data") as address:
        make_bucket(address)
        yield address


def make_bucket(address: str) -> None:
    s3.client(address, "us-east-1").create_bucket(Bucket="bucket")


@pytest.fixture(params=PLACES)
def store(request, tmp_path) -> Store:
    """An empty store at each kind of place."""
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    if request.param == "real":
        return open_store(f"{REAL}/{uuid.uuid4().hex}")
    return open_store(f"s3://bucket/{uuid.uuid4().hex}", request.getfixturevalue(request.param))


@pytest.fixture
def bucket(moto) -> Store:
    """An empty store on the quickest S3 server."""
    return open_store(f"s3://bucket/{uuid.uuid4().hex}", moto)


@pytest.fixture
def proxy(moto):
    proxy = Proxy(moto)
    yield proxy
    proxy.close()


@pytest.fixture
def behind(proxy) -> Store:
    """An empty store behind the proxy."""
    return open_store(f"s3://bucket/{uuid.uuid4().hex}", proxy.address)
