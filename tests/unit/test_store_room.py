"""A local store that is full, read-only or in the wrong place; leases that are lost; many artifacts."""

import errno
import json
import os
import threading
import time

import pytest

from pipeline import leases, objects
from pipeline import store as command
from pipeline.artifacts import Store, open_store
from pipeline.leases import LeaseLost
from pipeline.manifests import encode
from pipeline.plan import plan
from pipeline.sources import read_sources
from stages.context import InputError, StageError
from tests.made_stages import DEFAULT, STAGES, go


def refuse(code: int):
    def call(*arguments, **named):
        raise OSError(code, os.strerror(code), "file")

    return call


def test_a_full_disk_is_one_line_and_the_same_command_then_finishes(hooks, store, tmp_path, monkeypatch):
    fsync, room = os.fsync, []

    def full(context):
        room.append(False)

    def sync(descriptor):
        if room == [False]:
            room.append(True)
            refuse(errno.ENOSPC)()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    hooks.actions["train"] = full
    error = go(store, tmp_path).error
    assert isinstance(error, StageError) and "\n" not in str(error)
    assert f"stage train failed: no space is left for store={store.uri}; free some" in str(error)
    hooks.actions.clear()
    done = go(store, tmp_path)
    assert done.error is None and done.stages["ingest"]["action"] == "cached"
    assert all(artifact.damage() == [] for artifact in done.run.artifacts.values())


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_store_is_refused_before_anything_runs(hooks, store, tmp_path, monkeypatch, code):
    monkeypatch.setattr(objects.Path, "mkdir", refuse(code))
    error = go(store, tmp_path).error
    assert (
        isinstance(error, InputError)
        and "may not be used" in str(error)
        and "\n" not in str(error)
        and hooks.calls == []
    )


def test_a_store_below_a_file_is_refused(hooks, tmp_path):
    (tmp_path / "file").touch()
    error = go(open_store(str(tmp_path / "file" / "store")), tmp_path).error
    assert isinstance(error, InputError) and "goes through a file" in str(error)


def test_only_with_absent_inputs_names_them(hooks, store, tmp_path):
    with pytest.raises(InputError, match="--only evaluate needs ingest, train, not in the store"):
        go(store, tmp_path, only="evaluate")


def test_a_run_that_loses_its_lease_stops_and_commits_nothing(hooks, store, tmp_path, monkeypatch):
    store.lease_seconds = 0.4

    def stolen(context):
        path = f"train/{context.output.key}/{leases.LEASE}"
        there = store.objects.read(path)
        facts = {**json.loads(there.data), "token": "another", "holder": "another"}
        while not store.objects.swap(path, leases.encode(facts), store.objects.read(path).tag):
            pass
        threading.Event().wait(30)  # ended by the keeper of the lease

    hooks.actions["train"] = stolen
    start = time.monotonic()
    done = go(store, tmp_path)
    assert time.monotonic() - start < 25
    assert isinstance(done.error, StageError) and "another run took over train" in str(done.error)
    assert not store.manifests()["train"] and done.stages["train"]["action"] == "failed"


def test_a_holder_that_cannot_renew_stops_before_others_may_take_over(store, monkeypatch):
    lost = threading.Event()
    lease = leases.take(store.objects, "train/k1/_lease.json", 0.2)
    monkeypatch.setattr(objects.LocalObjects, "swap", refuse(errno.EIO))
    lease.keep(threading.Event(), lost.set)
    assert lost.is_set()
    with pytest.raises(LeaseLost):
        lease.renew()


def test_a_lease_of_another_machine_is_waited_for(store, monkeypatch):
    assert leases.take(store.objects, "train/k1/_lease.json")
    leases.machine.cache_clear()
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "elsewhere")
    monkeypatch.setattr(leases, "birth", lambda process: "")
    assert leases.take(store.objects, "train/k1/_lease.json") is None
    leases.machine.cache_clear()


def test_a_damaged_lease_counts_as_free(store):
    store.objects.put("train/k1/_lease.json", b"{")
    assert leases.take(store.objects, "train/k1/_lease.json")


def test_processes_are_told_apart_by_their_birth():
    assert leases.birth(os.getpid()) == leases.birth(os.getpid()) != ""
    assert leases.birth(2**22 + 1) == ""


def fill(store: Store, count: int) -> None:
    """`count` artifacts of many keys, none of them the current one."""
    for number in range(count):
        stage, key = STAGES[number % len(STAGES)].name, f"{number:016x}"
        facts = {
            "format": 1, "stage": stage, "key": key, "attempt": "a", "inputs": {}, "created": f"2026-01-01T{number}",
            "parts": {"version": 1, "code": {}, "params": {f"{stage}.word": str(number)}, "inputs": {}, "data": None},
            "files": [{"path": f"part-{part}", "size": 1, "sha256": "0" * 64} for part in range(20)],
        }  # fmt: skip
        store.objects.put(f"{stage}/{key}/manifest.json", encode(facts))


def test_a_plan_against_many_artifacts_reads_each_once(hooks, store, tmp_path, monkeypatch):
    fill(store, 60)
    reads: list[str] = []
    whole = objects.LocalObjects.read
    monkeypatch.setattr(objects.LocalObjects, "read", lambda place, path: reads.append(path) or whole(place, path))
    decisions = plan(STAGES, DEFAULT, store.manifests(), read_sources(STAGES, DEFAULT, tmp_path / "code"))
    assert {decision.action for decision in decisions} == {"run"}
    assert len(reads) == len(set(reads)) == 60


def test_a_cached_plan_reads_only_its_own_artifacts(hooks, store, tmp_path, monkeypatch):
    go(store, tmp_path)
    fill(store, 60)
    reads: list[str] = []
    whole = objects.LocalObjects.read
    monkeypatch.setattr(objects.LocalObjects, "read", lambda place, path: reads.append(path) or whole(place, path))
    decisions = plan(STAGES, DEFAULT, store.manifests(), read_sources(STAGES, DEFAULT, tmp_path / "code"))
    assert {decision.action for decision in decisions} == {"cached"}
    assert len(reads) == 3


def test_ls_tells_the_state_of_each_key(hooks, store, tmp_path, capsys):
    done = go(store, tmp_path)
    store.begin("train", "0" * 16)
    store.objects.put(f"evaluate/{done.stages['evaluate']['key']}/manifest.json", b"{")
    with store.locked("ingest", "1" * 16, print):
        assert command.main(["ls", "--json", f"store={store.uri}"]) == 0
    rows = json.loads(capsys.readouterr().out)["artifacts"]
    assert sorted((row["stage"], row["state"]) for row in rows) == [
        ("evaluate", "damaged"),
        ("ingest", "running"),
        ("ingest", "whole"),
        ("train", "unfinished"),
        ("train", "whole"),
    ]
    whole = next(row for row in rows if row["stage"] == "train" and row["state"] == "whole")
    assert whole["run"] == done.run.id and 0 <= whole["age"] < 600 and whole["pinned"] is False
    assert command.main(["verify", f"store={store.uri}"]) == 1
    assert "holds no whole manifest" in capsys.readouterr().out


def test_gc_shows_first_and_deletes_when_told(hooks, store, tmp_path, capsys):
    done = go(store, tmp_path)
    place = f"store={store.uri}"
    assert command.main(["pin", done.stages["ingest"]["key"], place]) == 0
    assert command.main(["gc", "--keep", "0", place]) == 0
    told = capsys.readouterr().out
    assert f"would delete train/{done.stages['train']['key']}" in told and "--apply deletes them" in told
    assert store.has("train", done.stages["train"]["key"])
    assert command.main(["gc", "--keep", "0", "--apply", place]) == 0
    assert f"deleted train/{done.stages['train']['key']}" in capsys.readouterr().out
    assert list(store.manifests()) == ["ingest"]
    assert command.main(["gc", "--keep", "-1", place]) == 2


@pytest.mark.parametrize(
    ("seconds", "told"), [(None, ""), (5, "5 s"), (180, "3 min"), (7300, "2 h"), (200_000, "2 d")]
)
def test_ages_are_told_in_their_largest_unit(seconds, told):
    assert command.spell_age(seconds) == told
