"""The reference run, what cases share, and the table at the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import servers
from tests.faults.outcomes import table
from tests.faults.world import World, reference
from tests.s3.servers import CREDENTIALS

MADE = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run that nothing happens to."""
    home = tmp_path_factory.mktemp("whole")
    return reference(home, {"XDG_CACHE_HOME": str(home / "cache"), "PUMA_CACHE": str(home / "objects")})


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Bucket]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUMA_CACHE", str(tmp_path_factory.mktemp("bucket")))
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with servers.bucket_server() as server:
            yield server


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Mlflow]:
    with servers.mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="session")
def nodes() -> Iterator[servers.Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in servers.OPEN.items():
            patch.setenv(name, value)
        with servers.ray_nodes() as started:
            yield started


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the case's own with a short name, which is its store's in the bucket too."""
    return tmp_path_factory.mktemp("case")


@pytest.fixture(scope="session")
def made(pytestconfig: pytest.Config) -> list[str]:
    """The names of cases that came to an end."""
    return pytestconfig.stash.setdefault(MADE, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of the cases that came to an end."""
    if names := config.stash.get(MADE, []):
        terminalreporter.section("faults")
        terminalreporter.write_line(table(names))
