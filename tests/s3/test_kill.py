"""A small pipeline killed at many points: the same command then finishes, with the same files.

`PUMA_KILLS=all` makes them five times as many.

Each child is forked from this warm process and kills itself at the n-th line of the store's own code, so that every
place where a kill can matter is met, and the same one each time.
"""

import json
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline
from pipeline.artifacts import leases, s3, s3_clients
from pipeline.artifacts.store import Store, open_store
from pipeline.execution import runner
from tests.made_stages import go
from tests.s3.test_contract import FACTS, quiet

pytestmark = [pytest.mark.s3, pytest.mark.slow]

CODE = str(Path(pipeline.__file__).parent)
POINTS = {"local": 150, "moto": 42} if os.environ.get("PUMA_KILLS") == "all" else {"local": 30, "moto": 8}


@pytest.fixture
def light(monkeypatch):
    """Without what takes time and has no part in this: the state of the repository and versions of packages."""
    monkeypatch.setattr(runner, "git_state", dict)
    monkeypatch.setattr(runner, "package_versions", dict)
    monkeypatch.setattr(leases, "POLL", 0.01)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # against a loss of power, not against a kill


def in_child(action: Callable[[], None]) -> int:
    """The exit status of a forked child that does `action`; negative for a signal."""
    child = os.fork()
    if not child:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_lines(action: Callable[[], None], kill_at: int = 0) -> int:
    """How many lines of the pipeline's code `action` runs in this thread; kills this process at number `kill_at`."""
    seen = 0

    def line(frame, event, argument):
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def enter(frame, event, argument):
        return line if frame.f_code.co_filename.startswith(CODE) else None

    sys.settrace(enter)
    try:
        action()
    finally:
        sys.settrace(None)
    return seen


def shape(store: Store) -> dict[str, dict[str, str]]:
    """{stage/key: {file: checksum}} of everything committed, all of it verified."""
    found = {}
    for stage, known in store.manifests().items():
        for key in known:
            artifact = store.artifact(stage, key)
            assert artifact.damage() == []
            found[f"{stage}/{key}"] = {entry["path"]: entry["sha256"] for entry in artifact.manifest["files"]}
    return found


@pytest.mark.parametrize("place", list(POINTS))
def test_after_a_kill_at_any_point_the_same_command_finishes_with_the_same_files(
    hooks, light, tmp_path, place, request, monkeypatch
):
    address = request.getfixturevalue("moto") if place == "moto" else ""
    monkeypatch.setattr(s3_clients, "_client", lambda endpoint, region, once, quick, process: once_made[once])
    monkeypatch.setattr(s3, "probe", lambda objects, process: None)
    if address:  # made here and first used in the children, which so share no connection
        once_made = {once: new_client(address, once) for once in (False, True)}

    def new_store(name: str) -> Store:
        if address:
            return Store(s3.S3Objects("bucket", name, address, "us-east-1"))
        return open_store(str(tmp_path / name))

    def once() -> None:
        error = go(store, tmp_path).error
        if error:
            raise error

    def finish() -> None:
        before = shape(store)
        once()
        (tmp_path / "shapes").write_text(json.dumps([before, shape(store)]))

    store = new_store(uuid.uuid4().hex)
    assert in_child(lambda: (tmp_path / "lines").write_text(str(count_lines(once))) and None) == 0
    assert in_child(finish) == 0
    lines, expected = int((tmp_path / "lines").read_text()), json.loads((tmp_path / "shapes").read_text())[1]
    assert len(expected) == 3 and lines > POINTS[place]
    for number in range(POINTS[place]):
        point = 1 + number * (lines - 1) // POINTS[place]
        store = new_store(uuid.uuid4().hex)
        assert in_child(lambda point=point: count_lines(once, point) and None) == -signal.SIGKILL
        assert in_child(finish) == 0, f"line {point} of {lines}"
        before, after = json.loads((tmp_path / "shapes").read_text())
        assert before.items() <= expected.items(), f"line {point} of {lines}"
        assert after == expected, f"line {point} of {lines}"


def new_client(address: str, once: bool):
    from botocore.config import Config

    retries = {"total_max_attempts": 1 if once else 3}
    config = Config(retries=retries, s3={"addressing_style": "path"}, max_pool_connections=32)
    return s3_clients.session(os.getpid()).client("s3", endpoint_url=address, region_name="us-east-1", config=config)


@pytest.mark.parametrize("store", ["local", "moto"], indirect=True)
def test_of_eight_processes_one_computes_and_all_agree(hooks, light, tmp_path, store):
    """Each process adds a byte to a file whenever it computes."""
    counted = tmp_path / "computed"
    hooks.actions["train"] = lambda context: counted.open("ab").write(b"x")
    barrier = threading.Barrier(8)  # threads here only start the processes together
    results: list[int] = []

    def racer(number: int) -> None:
        barrier.wait()
        results.append(spawn(number))

    def spawn(number: int) -> int:
        def compute() -> None:
            s3_clients.session.cache_clear()
            done = go(store, tmp_path)
            assert done.error is None
            facts = {name: entry["attempt"] for name, entry in done.stages.items()}
            (tmp_path / f"agreed-{number}").write_text(json.dumps(facts, sort_keys=True))

        return in_child(compute)

    threads = [threading.Thread(target=racer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 8
    assert counted.read_bytes() == b"x"
    assert len({(tmp_path / f"agreed-{number}").read_text() for number in range(8)}) == 1


def test_objects_outlive_a_kill_of_their_server(aws, tmp_path):
    from tests.s3.conftest import make_bucket
    from tests.s3.servers import ministack_server

    with ministack_server(tmp_path / "data") as address:
        make_bucket(address)
        store = open_store("s3://bucket/p", address)
        with store.locked("ingest", "k1", quiet) as lease:
            attempt = store.begin("ingest", "k1")
            attempt.write_bytes("file", b"content")
            artifact = store.commit(attempt, FACTS, lease=lease)
    with ministack_server(tmp_path / "data") as address:
        again = open_store("s3://bucket/p", address).artifact("ingest", "k1")
        assert again.attempt == artifact.attempt and again.damage() == []
