"""What a store promises, the same at every kind of place."""

import json
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import copies, leases
from pipeline.artifacts.leases import LeaseLost
from pipeline.artifacts.manifests import MANIFEST, encode
from pipeline.artifacts.store import Store
from stages.contract.context import InputError, StageError

pytestmark = pytest.mark.s3

FACTS = {"parts": {}, "inputs": {}, "metrics": {}, "created": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "run": "r"}


def quiet(line: str) -> None:
    """Says nothing."""


def write(store: Store, content: str = "hello", key: str = "k1", stage: str = "ingest", **commit):
    attempt = store.begin(stage, key)
    attempt.write_json("stats.json", {"rows": 3})
    attempt.write_bytes("queries/part.txt", content.encode())
    return store.commit(attempt, commit.pop("facts", FACTS), **commit)


def contents(artifact) -> dict[str, bytes]:
    return {entry["path"]: artifact.read_bytes(entry["path"]) for entry in artifact.manifest["files"]}


def test_nothing_is_there_before_the_commit_and_all_of_it_after(store):
    attempt = store.begin("ingest", "k1")
    attempt.write_bytes("queries/a", b"one")
    assert not store.has("ingest", "k1") and store.manifests() == {}
    with pytest.raises(InputError, match="no artifact ingest/k1"):
        store.artifact("ingest", "k1")
    artifact = store.commit(attempt, FACTS)
    assert store.has("ingest", "k1")
    assert contents(store.artifact("ingest", "k1")) == contents(artifact) == {"queries/a": b"one"}
    assert store.manifests()["ingest"]["k1"] == artifact.manifest
    assert artifact.damage() == []


def test_an_artifact_travels_without_secrets_and_opens_where_it_arrives(store):
    data = pickle.dumps(write(store))
    assert b"SECRET" not in data.upper()
    artifact = pickle.loads(data)
    assert artifact.read_json("stats.json") == {"rows": 3}
    assert sorted(path.name for path in artifact.local("queries").iterdir()) == ["part.txt"]


def test_bulk_data_streams_through_the_file_system(store):
    attempt = pickle.loads(pickle.dumps(store.begin("ingest", "k1")))
    table = pa.table({"id": list(range(1000))})
    attempt.filesystem.create_dir(f"{attempt.base}/rows", recursive=True)
    pq.write_table(table, f"{attempt.base}/rows/part.parquet", filesystem=attempt.filesystem)
    artifact = store.commit(attempt, FACTS)
    assert [entry["path"] for entry in artifact.manifest["files"]] == ["rows/part.parquet"]
    assert pq.read_table(artifact.files("rows")[0], filesystem=artifact.filesystem).equals(table)
    assert artifact.damage() == []


def test_directories_are_uploaded_whole_and_come_back_as_one(store, tmp_path):
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "deep" / "weights").write_bytes(b"1234")
    attempt = store.begin("train", "k1")
    attempt.upload(tmp_path / "model", "model")
    attempt.upload(tmp_path / "model" / "config.json", "single")
    artifact = store.commit(attempt, FACTS)
    model = artifact.local("model")
    assert (model / "deep" / "weights").read_bytes() == b"1234" and (model / "config.json").read_text() == "{}"
    assert artifact.local("single").read_text() == "{}"
    with pytest.raises(StageError, match="has no 'mod'"):
        artifact.local("mod")


def test_a_block_that_fails_writes_no_file(store):
    attempt = store.begin("ingest", "k1")
    with pytest.raises(RuntimeError), attempt.open("half") as file:
        file.write(b"half")
        raise RuntimeError
    with attempt.open("whole") as file:
        file.write(b"whole")
    assert contents(store.commit(attempt, FACTS)) == {"whole": b"whole"}


def test_a_missing_file_another_size_and_another_content_are_told_apart(store):
    artifact = write(store)
    path = f"ingest/k1/{artifact.attempt}/queries/part.txt"
    store.objects.put(path, b"jello")
    assert artifact.files("queries")
    assert ["another content" in line for line in artifact.damage()] == [True]
    store.objects.put(path, b"hello there")
    with pytest.raises(StageError, match=r"part.txt has 11 bytes, expected 5 bytes; .*--force ingest"):
        artifact.files("queries")
    store.objects.remove([path])
    with pytest.raises(StageError, match=r"part\.txt is missing"):
        artifact.local("queries")
    assert "is missing" in artifact.damage()[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[: len(data) // 2], "holds no whole manifest"),
        (lambda data: b"", "holds no whole manifest"),
        (lambda data: data.replace(b'"rows": 3', b'"rows": 4'), "edited"),
        (lambda data: data.replace(b'"format": 1', b'"format": 2'), "of format 2 and this Puma reads 1; update Puma"),
        (lambda data: data.replace(b'"key": "k1"', b'"key": "k9"'), "manifest of ingest/k9: files of two stores"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused_and_does_not_hide_the_others(store, change, words):
    write(store, key="k0")
    write(store, facts={**FACTS, "rows": 3})
    path = f"ingest/k1/{MANIFEST}"
    store.objects.put(path, change(store.objects.read(path).data))
    with pytest.raises(StageError, match=words) as caught:
        store.artifact("ingest", "k1")
    assert "\n" not in str(caught.value) and "--force ingest" in str(caught.value)
    assert [manifest["key"] for manifest in store.manifests()["ingest"].values()] == ["k0"]
    again = store.begin("ingest", "k1", fresh=True)
    assert store.commit(again, FACTS, replace=True).attempt == again.name


def test_of_two_commits_the_first_stays(store):
    first, second = write(store, "first"), write(store, "second")
    assert second.attempt == first.attempt and contents(second)["queries/part.txt"] == b"first"


def test_a_replacing_commit_leaves_the_older_files_to_their_readers(store):
    older = write(store, "older")
    newer = write(store, "newer", replace=True)
    assert contents(older)["queries/part.txt"] == b"older"
    assert contents(store.artifact("ingest", "k1"))["queries/part.txt"] == b"newer"
    assert newer.attempt != older.attempt


def test_who_began_before_the_winner_replaced_does_not_replace_the_winner(store):
    write(store, "older")
    slow = store.begin("ingest", "k1", fresh=True)
    winner = write(store, "winner", replace=True)
    assert store.commit(slow, FACTS, replace=True).attempt == winner.attempt


def test_an_attempt_of_another_store_is_not_committed(store, tmp_path):
    with pytest.raises(StageError, match="two stores mixed"):
        store.commit(Store(tmp_path / "other").begin("ingest", "k1"), FACTS)


def test_finished_files_are_adopted_only_from_killed_attempts_with_the_same_inputs(store):
    inputs = {"ingest": "a"}
    for name, made_from in (("same", inputs), ("other", {"ingest": "b"})):
        killed = store.begin("features", "k1", inputs=made_from)
        killed.write_bytes(f"shards/{name}", name.encode())
        killed.write_bytes("elsewhere", b"")
        (killed.work / "checkpoint").write_text(name)
    again = store.begin("features", "k1", inputs=inputs)
    assert again.adopt("shards") == ["same"]
    assert (again.work / "checkpoint").read_text() == "same"
    assert contents(store.commit(again, FACTS)) == {"shards/same": b"same"}
    assert not again.work.exists()
    fresh = store.begin("features", "k1", fresh=True, inputs=inputs)
    assert fresh.adopt("shards") == [] and list(fresh.work.iterdir()) == []


def test_shared_work_lies_in_the_file_system_and_goes_after_the_commit(store):
    attempt = store.begin("train", "k1")
    attempt.filesystem.create_dir(attempt.work_uri, recursive=True)
    with attempt.filesystem.open_output_stream(f"{attempt.work_uri}/checkpoint") as file:
        file.write(b"step 10")
    attempt.write_bytes("model", b"")
    store.commit(attempt, FACTS)
    assert store.objects.files("train/k1/_work") == []


def test_runs_are_listed_newest_first(store):
    for name, day in (("a", 1), ("b", 3), ("c", 2)):
        store.write_run({"id": name, "started": f"2026-01-0{day}"})
    store.write_run({"id": "a", "started": "2026-01-04"})
    assert [run["id"] for run in store.runs()] == ["a", "b", "c"]
    assert store.note("a", "traceback.txt", "line").endswith("runs/a.traceback.txt")


def test_of_many_writers_create_and_swap_let_one_through(store):
    store.objects.prepare()
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: store.objects.create("race", b"%d" % number), range(8)))
        assert sum(tag is not None for tag in created) == 1
        tag = next(filter(None, created))
        swapped = list(pool.map(lambda number: store.objects.swap("race", b"new %d" % number, tag), range(8)))
    assert sum(tag is not None for tag in swapped) == 1
    assert store.objects.swap("nothing", b"", tag) is None


# Leases.


def test_a_second_run_waits_and_says_for_whom_and_since_when(store, monkeypatch):
    lines: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with store.locked("train", "k1", quiet):
            monkeypatch.setattr(leases, "POLL", 0.01)

            def wait() -> bool:
                with store.locked("train", "k1", lines.append):
                    return True

            waiting = pool.submit(wait)
            while not lines:
                assert not waiting.done()
        assert waiting.result(30)
    assert len(lines) == 1 and "train k1: waiting for " in lines[0] and " UTC" in lines[0] and "process" in lines[0]


def test_a_lease_that_grew_old_is_taken_over_and_its_holder_cannot_commit(store):
    with pytest.raises(LeaseLost, match="another run took over train/k1"), store.locked("train", "k1", quiet) as old:
        attempt = store.begin("train", "k1")
        attempt.write_bytes("model", b"loser")
        new = leases.try_acquire(store.objects, old.path, seconds=-1)  # to which every lease is old
        assert new.tag != old.tag
        with pytest.raises(LeaseLost):
            store.commit(attempt, FACTS, lease=old)
        assert not store.has("train", "k1")
        winner = write(store, "winner", stage="train", lease=new)
        store.commit(attempt, FACTS, lease=old)
    assert store.artifact("train", "k1").attempt == winner.attempt


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(store):
    context = multiprocessing.get_context("fork" if hasattr(store.objects, "endpoint") is False else "spawn")
    child = context.Process(target=take_and_die, args=(store,))
    child.start()
    child.join(60)
    assert json.loads(store.objects.read("train/k1/_lease.json").data)["state"] == "held"
    assert leases.holder(store.objects, "train/k1/_lease.json") is None
    lines: list[str] = []
    with store.locked("train", "k1", lines.append):
        assert lines == []


def take_and_die(store: Store) -> None:
    assert leases.try_acquire(store.objects, "train/k1/_lease.json")


def test_a_renewed_lease_stays_its_holder_s(store):
    with store.locked("train", "k1", quiet) as lease:
        first = lease.tag
        lease.renew()
        assert lease.tag != first
        assert leases.try_acquire(store.objects, lease.path) is None
    assert leases.holder(store.objects, lease.path) is None


def test_a_lease_that_cannot_be_renewed_because_nobody_answers_is_given_up(store, monkeypatch):
    hanging, lost = threading.Event(), threading.Event()
    lease = leases.try_acquire(store.objects, "train/k1/_lease.json", 0.3)
    monkeypatch.setattr(type(store.objects), "swap", lambda *given: hanging.wait(20) and None)
    start = time.monotonic()
    with leases.keep_alive(lease, lost.set):
        assert lost.wait(10)
    assert time.monotonic() - start < 10
    hanging.set()
    with pytest.raises(LeaseLost):
        lease.renew()


# What this and other versions left.


def test_an_older_manifest_without_a_digest_is_read(store):
    manifest = write(store).manifest
    plain = json.loads(encode(manifest))
    del plain["digest"]
    store.objects.put(f"ingest/k1/{MANIFEST}", json.dumps(plain).encode())
    assert store.artifact("ingest", "k1").manifest == manifest


def test_files_are_cached_once_by_their_checksum(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("PUMA_CACHE", str(tmp_path / "cache"))
    first, second = write(bucket, key="k1"), write(bucket, key="k2")
    places = [artifact.local("queries/part.txt") for artifact in (first, second)]
    assert places[0] != places[1] and places[0].samefile(places[1])
    monkeypatch.setattr(type(bucket.objects), "checksum", None)
    assert first.local("queries/part.txt") == places[0]
    places[0].write_bytes(b"cut")
    assert Path(first.local("queries") / "part.txt").read_bytes() == b"hello"


def test_a_copy_for_which_the_disk_has_no_room_takes_the_place_of_an_old_one(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("PUMA_CACHE", str(tmp_path / "cache"))
    old, new = write(bucket, "old", key="k1"), write(bucket, "new", key="k2")
    place = old.local("queries/part.txt")
    os.utime(place, (0, 0))
    monkeypatch.setattr(copies, "FREE_SHARE", 1)
    assert new.local("queries/part.txt").read_bytes() == b"new"
    assert not place.exists()
    assert old.local("queries/part.txt").read_bytes() == b"old"


def test_what_is_only_compared_with_is_fetched_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("PUMA_CACHE", str(tmp_path / "cache"))
    write(bucket, key="k1")
    write(bucket, key="k2")
    first = sorted(manifest["key"] for manifest in bucket.manifests()["ingest"].values())
    monkeypatch.setattr(type(bucket.objects), "read", None)
    assert sorted(manifest["key"] for manifest in bucket.manifests()["ingest"].values()) == first == ["k1", "k2"]
