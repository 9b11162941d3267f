"""What a sweep deletes and what it leaves alone, the same at every kind of place."""

import pytest

from pipeline.artifacts import garbage, leases
from pipeline.artifacts.manifests import MANIFEST
from pipeline.artifacts.store import Store
from stages.contract.context import StageError
from tests.s3.test_contract import FACTS, contents, quiet, write

pytestmark = pytest.mark.s3


def record(store: Store, name: str, day: int, status: str = "finished", **stages: str) -> None:
    facts = {stage: {"key": key} for stage, key in stages.items()}
    store.write_run({"id": name, "started": f"2026-01-{day:02}", "status": status, "stages": facts})


def test_the_sweep_keeps_what_runs_pins_and_kept_artifacts_need(store):
    for key in ("old", "pinned", "input", "kept", "busy", "running"):
        made_from = {"ingest": {"key": "input", "attempt": "x"}} if key == "kept" else {}
        write(store, key=key, facts={**FACTS, "inputs": made_from})
    record(store, "r1", 1, ingest="old")
    record(store, "r2", 2, "running", ingest="running")
    record(store, "r3", 3, ingest="kept")
    garbage.pin(store, "ingest", "pinned")
    with store.locked("ingest", "busy", quiet):
        found = garbage.find_garbage(store, keep=1, grace=3600)
        assert list(found.artifacts) == [("ingest", "old")] and list(found.skipped) == [("ingest", "busy")]
        assert store.has("ingest", "old")
        garbage.delete(store, found)
    assert sorted(store.manifests()["ingest"]) == ["busy", "input", "kept", "pinned", "running"]
    assert store.objects.files("ingest/old") == []
    garbage.unpin(store, "ingest", "pinned")
    assert ("ingest", "pinned") in garbage.find_garbage(store, keep=1, grace=3600).artifacts


def test_the_sweep_leaves_what_came_into_use_meanwhile(store):
    write(store, key="old")
    record(store, "r1", 1)
    found = garbage.find_garbage(store, keep=1, grace=0)
    record(store, "r2", 2, ingest="old")
    garbage.delete(store, found)
    assert store.has("ingest", "old") and found.skipped == {("ingest", "old"): "came into use"}
    assert store.artifact("ingest", "old").damage() == []


def test_what_a_run_under_way_begins_to_share_is_kept(store):
    shared, waiting = write(store, key="vectors", stage="teacher"), write(store, key="old")
    record(store, "r1", 1, "running")
    found = garbage.find_garbage(store, keep=0, grace=0)
    assert sorted(found.artifacts) == [("ingest", "old"), ("teacher", "vectors")]
    facts = {"id": "r1", "started": "2026-01-01", "status": "running", "stages": {}}
    store.write_run({**facts, "shared": [("teacher", "vectors")]})
    garbage.delete(store, found)
    assert store.has("teacher", shared.key) and not store.has("ingest", waiting.key)
    assert found.skipped == {("teacher", "vectors"): "came into use"}


def test_only_what_is_deleted_counts_as_freed(store):
    write(store, key="old")
    write(store, key="used")
    store.begin("train", "k1").write_bytes("half", b"123")
    found = garbage.find_garbage(store, keep=0, grace=-60)
    sizes = dict(found.artifacts)
    assert found.bytes == sum(sizes.values()) + 3
    record(store, "r1", 1, "running", ingest="used", train="k1")
    garbage.delete(store, found)
    assert found.bytes == sizes["ingest", "old"]


def test_leftovers_of_killed_attempts_go_after_the_grace(store):
    kept = write(store, key="k1")
    store.begin("ingest", "k1", fresh=True).write_bytes("half", b"123")
    store.begin("ingest", "k2").write_bytes("half", b"123")
    record(store, "r1", 1, ingest="k1")
    assert garbage.find_garbage(store, keep=1, grace=3600).leftovers == {}
    found = garbage.find_garbage(store, keep=1, grace=-60)
    assert list(found.leftovers) == [("ingest", "k1"), ("ingest", "k2")] and found.artifacts == {}
    garbage.delete(store, found)
    assert store.artifact("ingest", "k1").attempt == kept.attempt and kept.damage() == []
    assert [path for path in map(str, store.objects.files("ingest")) if "half" in path] == []


def test_the_sweep_deletes_nothing_of_a_key_it_cannot_read(store):
    write(store)
    store.objects.put(f"ingest/k1/{MANIFEST}", b"{")
    found = garbage.find_garbage(store, keep=0, grace=-60)
    assert not found.artifacts and not found.leftovers and "damaged" in found.skipped["ingest", "k1"]


def test_the_sweep_keeps_the_weights_of_registered_students_and_not_what_they_were_made_from(store):
    made_from = {"ingest": {"key": "input", "attempt": "x"}}
    write(store, key="input")
    first = write(store, key="student", stage="train", facts={**FACTS, "inputs": made_from})
    garbage.keep_registered(store, "train", "student", first.attempt, "puma")
    second = write(store, "newer", key="student", stage="train", replace=True)
    found = garbage.find_garbage(store, keep=0, grace=-60)
    assert list(found.artifacts) == [("ingest", "input")] and found.leftovers == {}
    garbage.delete(store, found)
    assert contents(first)["queries/part.txt"] == b"hello" and second.damage() == []
    garbage.unpin(store, "train", "student")
    assert not garbage.find_garbage(store, keep=0, grace=-60).artifacts
    garbage.drop_registered(store, "train", "student")
    assert list(garbage.find_garbage(store, keep=0, grace=-60).artifacts) == [("train", "student")]


def test_a_student_that_is_registered_during_the_sweep_is_kept(store):
    older = write(store, key="student", stage="train")
    write(store, "newer", key="student", stage="train", replace=True)
    garbage.pin(store, "train", "student")
    found = garbage.find_garbage(store, keep=0, grace=-60)
    assert len(found.leftovers["train", "student"]) == 2
    garbage.keep_registered(store, "train", "student", older.attempt, "puma")
    garbage.delete(store, found)
    assert older.damage() == []


@pytest.mark.parametrize("damage", [lambda data: data[:40], lambda data: data.replace(b'"format": 1', b'"format": 2')])
def test_nothing_is_swept_while_a_manifest_that_counts_cannot_be_read(store, damage):
    write(store, key="input")
    write(store, key="kept", facts={**FACTS, "inputs": {"ingest": {"key": "input", "attempt": "x"}}})
    garbage.pin(store, "ingest", "kept")
    path = f"ingest/kept/{MANIFEST}"
    store.objects.put(path, damage(store.objects.read(path).data))
    with pytest.raises(StageError, match=f"nothing was deleted.*{path}") as caught:
        garbage.find_garbage(store, keep=0, grace=-60)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["runs/broken.json", "pins/ingest-k1.json"])
def test_nothing_is_swept_while_a_record_or_a_pin_cannot_be_read(store, place):
    write(store)
    store.objects.put(place, b'{"stage')
    with pytest.raises(StageError, match=f"{place}.*delete it"):
        garbage.find_garbage(store, keep=0, grace=-60)
    assert store.runs() == []


def test_what_a_killed_run_left_to_be_resumed_stays_as_long_as_its_run_counts(store):
    killed = store.begin("train", "k1")
    killed.write_bytes("shards/a", b"one")
    record(store, "r1", 1, "interrupted", train="k1")
    assert garbage.find_garbage(store, keep=1, grace=-60).leftovers == {}
    assert store.begin("train", "k1").adopt("shards") == ["a"]
    assert list(garbage.find_garbage(store, keep=0, grace=-60).leftovers) == [("train", "k1")]


def test_a_sweep_reads_each_record_once(store, monkeypatch):
    for number in range(4):
        write(store, key=f"old{number}")
        record(store, f"r{number}", 1 + number)
    reads: list[str] = []
    whole = type(store.objects).read
    monkeypatch.setattr(
        type(store.objects),
        "read",
        lambda self, path, *more, **named: (reads.append(path), whole(self, path, *more, **named))[1],
    )
    found = garbage.find_garbage(store, keep=1, grace=0)
    garbage.delete(store, found)
    assert len(found.artifacts) == 4 and store.manifests() == {}
    assert sorted(path for path in reads if path.startswith("runs/")) == [
        f"runs/r{number}.json" for number in range(4)
    ]


def test_the_lease_of_a_swept_key_goes_last(store, monkeypatch):
    store.begin("train", "k1").write_bytes("half", b"123")
    found = garbage.find_garbage(store, keep=0, grace=-60)
    whole = type(store.objects).remove_tree

    def remove_tree(objects, path):
        assert leases.try_acquire(store.objects, f"train/k1/{leases.LEASE}") is None  # still ours
        whole(objects, path)

    monkeypatch.setattr(type(store.objects), "remove_tree", remove_tree)
    garbage.delete(store, found)
    assert store.objects.files("train/k1") == []
