"""A local store that is full, read-only or in the wrong place; leases that are lost; many artifacts."""

import errno
import json
import os
import signal
import threading
import time

import pytest

from pipeline import store as command
from pipeline.artifacts import garbage, leases, local, manifests, processes
from pipeline.artifacts.leases import LeaseLost
from pipeline.artifacts.manifests import encode
from pipeline.artifacts.store import Store, open_store
from pipeline.execution import records as runs
from pipeline.planning.plan import plan
from pipeline.planning.sources import read_sources
from pipeline.wording import age_in_words
from stages.contract.context import InputError, StageError
from tests.made_stages import DEFAULT, STAGES, fail, go
from tests.support import with_own_stdout


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
    monkeypatch.setattr(local.Path, "mkdir", refuse(code))
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
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script's background job
    start = time.monotonic()
    try:
        done = go(store, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 25
    assert isinstance(done.error, StageError) and "another run took over train" in str(done.error)
    assert not store.manifests()["train"] and done.stages["train"]["action"] == "failed"


def test_a_holder_that_cannot_renew_stops_before_others_may_take_over(store, monkeypatch):
    lost = threading.Event()
    lease = leases.try_acquire(store.objects, "train/k1/_lease.json", 0.2)
    monkeypatch.setattr(local.LocalObjects, "swap", refuse(errno.EIO))
    with leases.keep_alive(lease, lost.set):
        assert lost.wait(10)
    with pytest.raises(LeaseLost):
        lease.renew()


def test_a_lease_that_is_lost_before_the_work_begins_is_no_interruption(store, monkeypatch):
    with (
        pytest.raises(LeaseLost, match="another run took over train k1"),
        leases.acquire(store.objects, "train/k1/_lease.json", print, "train k1", 0.2),
    ):
        monkeypatch.setattr(local.LocalObjects, "swap", refuse(errno.EIO))
        threading.Event().wait(10)


def test_a_lease_of_another_machine_is_waited_for(store, monkeypatch):
    assert leases.try_acquire(store.objects, "train/k1/_lease.json")
    processes.machine.cache_clear()
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "elsewhere")
    monkeypatch.setattr(processes, "process_start", lambda process: "")
    assert leases.try_acquire(store.objects, "train/k1/_lease.json") is None
    processes.machine.cache_clear()


def test_a_damaged_lease_counts_as_free(store):
    store.objects.put("train/k1/_lease.json", b"{")
    assert leases.try_acquire(store.objects, "train/k1/_lease.json")


def test_processes_are_told_apart_by_their_birth():
    assert processes.process_start(os.getpid()) == processes.process_start(os.getpid()) != ""
    assert processes.process_start(2**22 + 1) == ""


def test_a_process_that_the_system_hides_counts_as_alive(store, monkeypatch):
    """As under hidepid, where /proc shows no process of another user and only a signal tells that it is there."""
    path, number = "train/k1/_lease.json", os.getpid()
    assert leases.try_acquire(store.objects, path)
    real = local.Path.read_text

    def read_text(place, *more):
        return refuse(errno.ENOENT)() if str(place) == f"/proc/{number}/stat" else real(place, *more)

    monkeypatch.setattr(local.Path, "read_text", read_text)
    monkeypatch.setattr(os, "kill", refuse(errno.EPERM))
    assert processes.process_start(number) == processes.UNKNOWN and leases.holder(store.objects, path)
    record = {"host": {"machine": processes.machine(), "process": [number, "4711"]}, "stages": {}}
    assert not runs.is_dead(store, record, 0)
    monkeypatch.setattr(os, "kill", refuse(errno.ESRCH))
    assert processes.process_start(number) == "" and runs.is_dead(store, record, 0)


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
    whole = manifests.decode
    monkeypatch.setattr(manifests, "decode", lambda data, *where: reads.append(where[0]) or whole(data, *where))
    decisions = plan(STAGES, DEFAULT, store.manifests(), read_sources(STAGES, DEFAULT, tmp_path / "code"))
    assert {decision.action for decision in decisions} == {"run"}
    assert len(reads) == len(set(reads)) == 60


def test_a_cached_plan_reads_only_its_own_artifacts(hooks, store, tmp_path, monkeypatch):
    go(store, tmp_path)
    fill(store, 60)
    reads: list[str] = []
    whole = manifests.decode
    monkeypatch.setattr(manifests, "decode", lambda data, *where: reads.append(where[0]) or whole(data, *where))
    decisions = plan(STAGES, DEFAULT, store.manifests(), read_sources(STAGES, DEFAULT, tmp_path / "code"))
    assert {decision.action for decision in decisions} == {"cached"}
    assert len(reads) == 3


def test_ls_tells_the_state_of_each_key(hooks, store, tmp_path, capfd):
    done = go(store, tmp_path)
    store.begin("train", "0" * 16)
    store.objects.put(f"evaluate/{done.stages['evaluate']['key']}/manifest.json", b"{")
    with store.locked("ingest", "1" * 16, print):
        assert with_own_stdout(command.main, ["ls", "--json", f"store={store.uri}"]) == 0
    rows = json.loads(capfd.readouterr().out)["artifacts"]
    assert sorted((row["stage"], row["state"]) for row in rows) == [
        ("evaluate", "damaged"),
        ("ingest", "running"),
        ("ingest", "whole"),
        ("train", "unfinished"),
        ("train", "whole"),
    ]
    whole = next(row for row in rows if row["stage"] == "train" and row["state"] == "whole")
    assert whole["run"] == done.run.id and 0 <= whole["age"] < 600 and whole["pinned"] is False
    assert with_own_stdout(command.main, ["verify", f"store={store.uri}"]) == 1
    assert "holds no whole manifest" in capfd.readouterr().out


def test_gc_shows_first_and_deletes_when_told(hooks, store, tmp_path, capfd):
    done = go(store, tmp_path)
    place = f"store={store.uri}"
    assert with_own_stdout(command.main, ["pin", done.stages["ingest"]["key"], place]) == 0
    assert with_own_stdout(command.main, ["gc", "--keep", "0", place]) == 0
    told = capfd.readouterr().out
    assert f"would delete train/{done.stages['train']['key']}" in told and "--apply deletes them" in told
    assert store.has("train", done.stages["train"]["key"])
    assert with_own_stdout(command.main, ["gc", "--keep", "0", "--apply", place]) == 0
    assert f"deleted train/{done.stages['train']['key']}" in capfd.readouterr().out
    assert list(store.manifests()) == ["ingest"]
    assert with_own_stdout(command.main, ["gc", "--keep", "-1", place]) == 2


def test_the_sweep_leaves_files_that_are_being_written_alone(store):
    store.objects.prepare()
    for key in ("held", "free"):
        place = store.root / local.UNFINISHED / f"train~{key}~1"
        place.write_bytes(b"half")
        os.utime(place, (0, 0))
    (store.root / local.UNFINISHED / "train~free~2").write_bytes(b"just now")
    with store.locked("train", "held"):
        assert store.objects.drop_unfinished(0, garbage.in_use(store)) == 1
    left = sorted(path.name for path in (store.root / local.UNFINISHED).iterdir())
    assert [name for name in left if "lock" not in name] == ["train~free~2", "train~held~1"]


def test_an_unfinished_file_tells_what_it_is_written_for(store):
    with store.objects.open("train/k1/a/model/weights"):
        (unfinished,) = store.objects.files(local.UNFINISHED)
    assert local.bound_for(unfinished.path).startswith("train/k1/")


def test_a_pinned_uri_is_pinned_in_its_own_store(hooks, store, tmp_path, capfd):
    uri = go(store, tmp_path).stages["train"]["uri"]
    elsewhere = f"store={tmp_path / 'elsewhere'}"
    assert with_own_stdout(command.main, ["pin", uri, elsewhere]) == 0
    assert [key for _, key in pinned(store)] == [uri.rpartition("/")[2]]
    assert with_own_stdout(command.main, ["unpin", uri, elsewhere]) == 0
    assert pinned(store) == [] and not (tmp_path / "elsewhere").exists()


def pinned(store: Store) -> list[tuple[str, str]]:
    return [(pin["stage"], pin["key"]) for pin in garbage.read_pins(store)]


def test_what_is_registered_is_reported_and_let_go_of_when_asked(hooks, store, tmp_path, capfd):
    train = go(store, tmp_path).run.artifacts["train"]
    garbage.keep_registered(store, "train", train.key, train.attempt, "puma")
    place = f"store={store.uri}"
    assert with_own_stdout(command.main, ["ls", place]) == 0
    assert "registered" in capfd.readouterr().out
    assert with_own_stdout(command.main, ["unpin", train.key, place]) == 0
    assert "still registered as puma; --registered lets go" in capfd.readouterr().out
    assert with_own_stdout(command.main, ["unpin", train.key, "--registered", place]) == 0
    assert "still" not in capfd.readouterr().out and pinned(store) == []


def test_a_broken_record_of_a_run_is_named_and_stops_nobody(hooks, store, tmp_path, capfd):
    go(store, tmp_path)
    store.objects.put("runs/29990101-broken.json", b"{")
    assert go(store, tmp_path).error is None
    assert with_own_stdout(command.main, ["ls", "--json", f"store={store.uri}"]) == 0
    told = capfd.readouterr()
    assert len(json.loads(told.out)["runs"]) == 2
    assert told.err.count("\n") == 1 and "runs/29990101-broken.json is damaged" in told.err


def test_interrupted_and_wrong_commands_are_one_line_and_one_object(hooks, store, tmp_path, monkeypatch, capfd):
    go(store, tmp_path)
    monkeypatch.setattr("pipeline.artifacts.store.Artifact.damage", fail(KeyboardInterrupt()))
    assert with_own_stdout(command.main, ["verify", "--json", f"store={store.uri}"]) == 130
    told = capfd.readouterr()
    assert json.loads(told.out) == {"error": "interrupted"} and told.err == "error: interrupted\n"
    assert with_own_stdout(command.main, ["show", "nothing", "--json", f"store={store.uri}"]) == 2
    assert "there is no artifact 'nothing'" in json.loads(capfd.readouterr().out)["error"]


@pytest.mark.parametrize("call", ["stat", "iterdir", "open"])
def test_a_store_that_may_not_be_read_is_one_line(store, monkeypatch, call):
    store.objects.put("ingest/k1/manifest.json", b"{}")
    monkeypatch.setattr(local.Path, call, refuse(errno.EACCES))
    asks = {
        "stat": lambda: store.objects.size("ingest/k1/manifest.json"),
        "iterdir": lambda: store.objects.names("ingest"),
        "open": lambda: store.objects.checksum("ingest/k1/manifest.json"),
    }
    with pytest.raises(InputError, match="may not be used"):
        asks[call]()


def test_a_directory_that_may_not_be_read_is_not_taken_for_an_empty_one(store, monkeypatch):
    store.objects.put("ingest/k1/a/file", b"")
    monkeypatch.setattr(os, "scandir", refuse(errno.EACCES))
    with pytest.raises(InputError, match="may not be used"):
        store.objects.files("ingest")
    with pytest.raises(InputError, match="may not be used"), monkeypatch.context() as patch:
        patch.setattr(local.Path, "exists", refuse(errno.EACCES))
        open_store("somewhere")


@pytest.mark.parametrize(
    ("seconds", "told"), [(None, ""), (5, "5 s"), (180, "3 min"), (7300, "2 h"), (200_000, "2 d")]
)
def test_ages_are_reported_in_their_largest_unit(seconds, told):
    assert age_in_words(seconds) == told
