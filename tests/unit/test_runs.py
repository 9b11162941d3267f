"""Runs that were killed get an end from the next run; living ones, here and elsewhere, are left alone."""

import json
import os
from pathlib import Path

import pytest

from pipeline.artifacts import leases
from pipeline.artifacts.processes import this_process
from pipeline.artifacts.store import Store
from pipeline.execution import records as runs

HERE = "sqlite:///mlflow.db"


def record(store: Store, name: str, host: dict, status: str = "running", uri: str = HERE) -> None:
    stages = {"train": {"key": "k", "action": "run"}, "ingest": {"key": "i", "action": "cached"}}
    tracked = {"run_id": f"m-{name}", "tracking_uri": uri}
    store.write_run({"id": name, "status": status, "host": host, "stages": stages, "mlflow": tracked})


def status(store: Store, name: str) -> str:
    return json.loads(Path(store.root, "runs", f"{name}.json").read_text())["status"]


def age(store: Store, name: str) -> None:
    path = Path(store.root, "runs", f"{name}.json")
    os.utime(path, (path.stat().st_mtime - 2 * runs.QUIET_SECONDS,) * 2)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_a_run_whose_process_is_gone_is_marked_here_and_in_mlflow(store):
    dead = {**this_process(), "process": [os.getpid(), "another birth"]}
    record(store, "dead", dead)
    record(store, "alive", this_process())
    record(store, "done", dead, "finished")
    ended = []
    assert runs.mark_killed(store, ended.append, HERE) == ["dead"]
    assert ended == ["m-dead"]
    assert {name: status(store, name) for name in ("dead", "alive", "done")} == {
        "dead": "interrupted",
        "alive": "running",
        "done": "finished",
    }


def test_a_run_that_ends_while_it_is_looked_at_keeps_its_own_end(store, monkeypatch):
    record(store, "late", {"machine": "elsewhere", "process": [1, "x"]})

    def finishes(*looked_at) -> bool:
        record(store, "late", {}, "finished")
        return True

    monkeypatch.setattr(runs, "is_dead", finishes)
    ended = []
    assert runs.mark_killed(store, ended.append, HERE) == [] and ended == []
    assert status(store, "late") == "finished"


def test_a_run_of_another_machine_is_dead_when_it_is_quiet_and_holds_no_lease(store):
    elsewhere = {"machine": "elsewhere", "process": [1, "x"]}
    record(store, "fresh", elsewhere)
    record(store, "quiet", elsewhere)
    age(store, "quiet")
    with store.locked("train", "k"):
        assert runs.mark_killed(store, lambda run: None, HERE) == []
    assert leases.holder(store.objects, f"train/k/{leases.LEASE}") is None
    assert runs.mark_killed(store, lambda run: None, HERE) == ["quiet"]


@pytest.mark.parametrize(
    ("machine", "uri", "here"),
    [("elsewhere", HERE, HERE), ("elsewhere", "http://mlflow", "http://other"), ("elsewhere", "http://m", "http://m")],
)
def test_a_run_is_ended_in_the_mlflow_that_knows_it(store, machine, uri, here):
    """The file of another machine is another file, of whatever name; a server is the same for all."""
    record(store, "quiet", {"machine": machine, "process": [1, "x"]}, uri=uri)
    age(store, "quiet")
    ended = []
    assert runs.mark_killed(store, ended.append, here) == ["quiet"]
    assert ended == (["m-quiet"] if uri == here == "http://m" else [])
