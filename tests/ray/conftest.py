"""One cluster for the files that need one: a start takes seconds. `tests/cluster` makes its own."""

import logging
from collections.abc import Iterator

import pytest

from tests.s3.servers import CREDENTIALS, moto_server
from tests.support import ray_cluster


@pytest.fixture(scope="package")
def bucket_server() -> Iterator[str]:
    """The address of an S3 server; it is in the environment before the cluster starts, which hands it on to tasks."""
    from pipeline.artifacts import s3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    with pytest.MonkeyPatch.context() as patch, moto_server() as address:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", address)
        s3.client(address, "us-east-1").create_bucket(Bucket="bucket")
        yield address


@pytest.fixture(scope="package")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory, bucket_server: str) -> Iterator[None]:
    """Three CPUs, a GPU in name only, and a cache directory that processes started from here share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process for each training, and no node goes away
        with ray_cluster(3, gpus=1):
            yield
