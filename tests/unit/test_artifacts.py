"""The store: an artifact exists when its manifest does, and readers see only what a manifest lists."""

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import local
from pipeline.artifacts.store import MANIFEST, Store, open_store
from stages.contract.context import InputError, StageError
from tests.support import with_own_stdout

FACTS = {"parts": {}, "inputs": {}, "metrics": {}, "created": "2026-01-01T00:00:00+00:00"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def write(store: Store, content: str = "hello", replace: bool = False):
    attempt = store.begin("ingest", "k1")
    attempt.write_json("stats.json", {"rows": 3})
    attempt.write_bytes("queries/part.txt", content.encode())
    return store.commit(attempt, FACTS, replace)


def test_opening_a_store_writes_nothing(store):
    assert not store.root.exists()
    assert store.manifests() == {} and store.runs() == []
    assert not store.root.exists()


def test_an_attempt_is_invisible_before_its_commit(store):
    attempt = store.begin("ingest", "k1")
    attempt.write_json("stats.json", {})
    assert store.manifests() == {}
    with pytest.raises(InputError, match="no artifact ingest/k1"):
        store.artifact("ingest", "k1")


def test_a_committed_artifact_is_read_back(store):
    artifact = write(store)
    assert artifact.read_json("stats.json") == {"rows": 3}
    assert [Path(path).name for path in artifact.files("queries")] == ["part.txt"]
    assert artifact.local("queries").is_dir() and artifact.local("stats.json").is_file()
    assert store.manifests()["ingest"]["k1"]["metrics"] == {}


def test_files_that_no_manifest_lists_are_not_seen(store):
    artifact = write(store)
    Path(artifact.base, "queries", "stray.txt").write_text("left by somebody")
    assert len(artifact.files("queries")) == 1


def test_a_prefix_is_a_directory_and_not_the_start_of_a_name(store):
    artifact = write(store)
    assert artifact.files("quer") == []
    with pytest.raises(StageError, match="has no 'quer'"):
        artifact.local("quer")


def test_a_file_of_another_size_is_refused_with_both_sizes(store):
    artifact = write(store)
    Path(artifact.files("queries")[0]).write_text("hello there")
    with pytest.raises(StageError, match=r"part.txt has 11 bytes, expected 5 bytes; .*--force ingest"):
        artifact.files("queries")
    with pytest.raises(StageError, match="has 11 bytes"):
        artifact.local("queries")


def test_a_lost_file_is_refused(store):
    artifact = write(store)
    Path(artifact.base, "stats.json").unlink()
    with pytest.raises(StageError, match=r"stats\.json is missing, expected"):
        artifact.read_json("stats.json")


def test_damage_of_equal_size_is_found_by_checksum(store):
    artifact = write(store)
    assert artifact.damage() == []
    Path(artifact.files("queries")[0]).write_text("jello")
    assert "part.txt has another content" in artifact.damage()[0]


def test_a_commit_reads_only_what_others_wrote(store, tmp_path, monkeypatch):
    """The rest has its checksum from when it was written, adopted files too; one that was changed since is read."""
    (tmp_path / "weights").write_bytes(b"123")
    with (tmp_path / "weights").open("rb") as file:
        local.keep_sum(file.fileno(), "sum")
    if local.kept_sum(tmp_path / "weights") is None:
        pytest.skip("this file system has no extended attributes")
    killed = store.begin("train", "k3")
    with killed.open("vectors/0") as file:
        pq.write_table(pa.table({"id": range(9)}), file)
    attempt, read = store.begin("train", "k3"), []
    attempt.adopt("vectors")
    with attempt.open("rotation.npy") as file:
        np.save(file, np.eye(3))
    attempt.upload(tmp_path / "weights", "weights")
    attempt.write_bytes("changed", b"one")
    Path(attempt.base, "changed").write_bytes(b"two")
    Path(attempt.base, "another").write_bytes(b"by a library")
    monkeypatch.setattr(local, "checksum", lambda path, take=local.checksum: read.append(path.name) or take(path))
    artifact = store.commit(attempt, FACTS)
    assert sorted(read) == ["another", "changed"]
    monkeypatch.undo()
    assert artifact.damage() == [] and len(artifact.manifest["files"]) == 5
    assert np.load(artifact.local("rotation.npy")).tolist() == np.eye(3).tolist()


def test_a_file_system_without_attributes_has_its_files_read(store, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "setxattr", refuse, raising=False)
    assert write(store).damage() == []
    monkeypatch.delattr(os, "setxattr")
    monkeypatch.delattr(os, "getxattr", raising=False)
    assert write(store, "newer", replace=True).damage() == []


def test_the_second_of_two_commits_gets_the_winner(store):
    first = write(store, "first")
    second = write(store, "second")
    assert second.attempt == first.attempt
    assert Path(second.files("queries")[0]).read_text() == "first"


def test_a_replacing_commit_leaves_the_older_files_to_their_readers(store):
    older = write(store, "older")
    newer = write(store, "newer", replace=True)
    assert newer.attempt != older.attempt
    assert Path(older.files("queries")[0]).read_text() == "older"
    assert Path(store.artifact("ingest", "k1").files("queries")[0]).read_text() == "newer"


def test_work_survives_a_killed_attempt_and_goes_after_the_commit(store):
    killed = store.begin("train", "k2")
    (killed.work / "checkpoint").write_text("step 10")
    again = store.begin("train", "k2")
    assert (again.work / "checkpoint").read_text() == "step 10"
    assert again.base != killed.base
    store.commit(again, FACTS)
    assert not again.work.exists()


def test_a_fresh_attempt_drops_the_work_of_the_one_before(store):
    (store.begin("train", "k2").work / "checkpoint").write_text("step 10")
    assert list(store.begin("train", "k2", fresh=True).work.iterdir()) == []


def test_finished_files_of_a_killed_attempt_are_adopted_and_half_written_ones_are_not(store):
    killed = store.begin("features", "k2")
    killed.write_bytes("shards/b", b"two")
    killed.write_bytes("shards/a/1", b"one")
    killed.write_bytes("other", b"three")
    with pytest.raises(RuntimeError), killed.open("shards/c") as file:
        file.write(b"half")
        raise RuntimeError("killed")
    again = store.begin("features", "k2")
    assert again.adopt("shards") == ["a/1", "b"]
    artifact = store.commit(again, FACTS)
    assert [entry["path"] for entry in artifact.manifest["files"]] == ["shards/a/1", "shards/b"]
    assert artifact.read_bytes("shards/b") == b"two"


def test_a_forced_attempt_adopts_nothing(store):
    store.begin("features", "k2").write_bytes("shards/a", b"one")
    assert store.begin("features", "k2", fresh=True).adopt("shards") == []


def test_what_was_committed_once_is_not_adopted(store):
    write(store)
    assert store.begin("ingest", "k1").adopt("queries") == []


def test_no_temporary_files_stay_behind(store):
    write(store)
    write(store)
    store.write_run({"id": "a", "started": "1"})
    names = [path.name for path in store.root.rglob("*") if path.is_file()]
    assert sorted(set(names)) == sorted({MANIFEST, "stats.json", "part.txt", "a.json"})


def test_directories_are_uploaded_whole(store, tmp_path):
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "weights").write_bytes(b"123")
    attempt = store.begin("train", "k3")
    attempt.upload(tmp_path / "model", "model")
    attempt.upload(tmp_path / "model" / "deep" / "weights", "single")
    artifact = store.commit(attempt, FACTS)
    assert (artifact.local("model") / "deep" / "weights").read_bytes() == b"123"
    assert artifact.local("single").read_bytes() == b"123"


def test_an_artifact_travels_to_another_process(store):
    artifact = pickle.loads(pickle.dumps(write(store)))
    assert artifact.read_json("stats.json") == {"rows": 3}


def test_runs_are_listed_newest_first(store):
    store.write_run({"id": "a", "started": "2026-01-01"})
    store.write_run({"id": "b", "started": "2026-01-02"})
    assert [run["id"] for run in store.runs()] == ["b", "a"]


@pytest.mark.parametrize("uri", ["gs://bucket", "http://host/store"])
def test_places_that_cannot_hold_a_store_are_refused(uri):
    with pytest.raises(InputError, match="not supported"):
        open_store(uri)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        open_store(str(tmp_path / "file"))


def test_a_damaged_manifest_is_named(store):
    write(store)
    (store.root / "ingest" / "k1" / MANIFEST).write_text("{")
    with pytest.raises(StageError, match=r"manifest.json is damaged.*--force ingest"):
        store.manifests()["ingest"]["k1"]


def test_a_manifest_of_a_newer_format_is_told_as_such_whatever_it_holds(store):
    write(store)
    (store.root / "ingest" / "k1" / MANIFEST).write_text('{"format": 2, "parts": []}')
    with pytest.raises(StageError, match=r"of format 2 and this Puma reads 1; update Puma"):
        store.artifact("ingest", "k1")


# The command that looks into a store.

WHOLE = {**FACTS, "parts": {"params": {"train.steps": 7}}, "seconds": 1.5, "run": "r1", "git": {}}


@pytest.fixture
def command(store, capfd):
    from pipeline import store as command

    attempt = store.begin("ingest", "0123456789abcdef")
    attempt.write_json("stats.json", {"rows": 3})
    store.commit(attempt, WHOLE)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = with_own_stdout(command.main, [*arguments, f"store={store.root}"])
        told = capfd.readouterr()
        return code, told.out, told.err

    return call


def test_ls_lists_artifacts_and_runs(command, store):
    store.write_run({"id": "r1", "started": "2026-01-01", "status": "finished", "recipe": "demo"})
    code, out, _ = command("ls", "--json")
    listed = json.loads(out)
    assert code == 0
    assert [(row["stage"], row["key"], row["files"]) for row in listed["artifacts"]] == [
        ("ingest", "0123456789abcdef", 1)
    ]
    assert listed["runs"][0]["status"] == "finished"
    assert "0123456789abcdef" in command("ls")[1]


@pytest.mark.parametrize("how", ["0123456789abcdef", "0123", "uri"])
def test_show_takes_a_key_the_start_of_one_or_a_uri(command, store, how):
    name = str(store.root / "ingest" / "0123456789abcdef") if how == "uri" else how
    code, out, _ = command("show", name, "--json")
    shown = json.loads(out)
    assert code == 0 and shown["key"] == "0123456789abcdef" and Path(shown["uri"]).is_dir()
    assert [entry["path"] for entry in shown["files"]] == ["stats.json"]
    assert "param train.steps: 7" in command("show", name)[1]


def test_verify_finds_damage_and_fails(command, store):
    assert command("verify")[0] == 0
    path = Path(store.artifact("ingest", "0123456789abcdef").files()[0])
    path.write_bytes(b"x" * path.stat().st_size)
    code, out, _ = command("verify")
    assert code == 1 and "another content" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shwo", "x"], "did you mean 'show'"),
        (["show"], "show takes one KEY or URI"),
        (["show", "s3://"], "s3:// is no artifact: STORE/STAGE/KEY"),
        (["show", "ffff"], "there is no artifact 'ffff'"),
        ([], "the commands: ls, show, verify, gc, pin, unpin"),
        (["ls", "--jsno"], "unknown option '--jsno'; did you mean '--json'?"),
    ],
)
def test_wrong_words_exit_with_two_and_one_line(command, arguments, words):
    code, out, err = command(*arguments)
    assert code == 2 and out == "" and words in err and err.count("\n") == 1
