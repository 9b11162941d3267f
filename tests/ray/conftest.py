"""One cluster for the files that need one: a start takes seconds. `test_cluster` makes its own, before any of them."""

from collections.abc import Iterator

import pytest

from tests.support import ray_cluster


@pytest.fixture(scope="package")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Three CPUs, and a cache directory that processes started from here share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with ray_cluster(3):
            yield
