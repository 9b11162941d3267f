"""What goes wrong between here and a bucket: answers that get lost, servers that are busy, refuse or ignore."""

import errno
import json
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipeline import store as command
from pipeline.artifacts import garbage, s3, s3_clients
from pipeline.artifacts.copies import expire_copies
from pipeline.artifacts.manifests import MANIFEST
from pipeline.artifacts.store import open_store
from stages.contract.context import InputError, StageError
from tests.made_stages import go
from tests.s3.test_contract import FACTS, contents, quiet, write
from tests.support import with_own_stdout

pytestmark = pytest.mark.s3


def is_commit(request) -> bool:
    return request.method == "PUT" and request.conditional and request.path.endswith(MANIFEST)


@pytest.mark.parametrize("fault", ["done 500", "done reset", "500", "503", "409", "reset", "slow"])
def test_a_commit_whose_answer_is_lost_or_refused_succeeds_once(behind, proxy, fault):
    attempt = behind.begin("ingest", "k1")
    attempt.write_bytes("file", b"content")
    proxy.once(fault, is_commit)
    artifact = behind.commit(attempt, FACTS)
    assert artifact.attempt == attempt.name and contents(artifact) == {"file": b"content"}
    assert any(action for _, _, action in proxy.log)


@pytest.mark.parametrize("fault", ["500", "reset", "409"])
def test_a_commit_that_another_won_meanwhile_takes_the_winner_s(behind, proxy, fault):
    attempt = behind.begin("ingest", "k1")
    attempt.write_bytes("file", b"loser")
    rivals = [write]

    def rule(request):
        if is_commit(request) and rivals:
            proxy.rule = lambda later: None
            rivals.pop()(open_store(behind.uri, f"http://{proxy.target}"), "winner")
            return fault
        return None

    proxy.rule = rule
    artifact = behind.commit(attempt, FACTS)
    assert artifact.attempt != attempt.name and contents(artifact)["queries/part.txt"] == b"winner"


@pytest.mark.parametrize("fault", ["done 500", "500", "503", "409"])
def test_a_replacing_commit_settles_its_outcome_too(behind, proxy, fault):
    older = write(behind, "older")
    proxy.once(fault, is_commit)
    newer = write(behind, "newer", replace=True)
    assert newer.attempt != older.attempt and contents(newer)["queries/part.txt"] == b"newer"


def test_an_outcome_that_stays_unknown_is_an_error_and_deletes_nothing(behind, proxy):
    attempt = behind.begin("ingest", "k1")
    attempt.write_bytes("file", b"content")
    (attempt.work / "checkpoint").write_text("step 10")
    proxy.rule = lambda request: "500" if request.path.endswith(MANIFEST) else None
    with pytest.raises(s3.OutcomeUnknown, match="nothing was deleted") as caught:
        behind.commit(attempt, FACTS)
    assert "\n" not in str(caught.value)
    assert not [path for method, path, _ in proxy.log if method == "DELETE"]
    proxy.rule = lambda request: None
    assert (attempt.work / "checkpoint").exists()
    assert contents(behind.commit(attempt, FACTS)) == {"file": b"content"}


@pytest.mark.parametrize("fault", ["done 500", "done reset", "503"])
def test_a_lease_is_had_and_renewed_through_lost_answers(behind, proxy, fault):
    proxy.once(fault, lambda request: request.method == "PUT" and request.path.endswith("_lease.json"))
    with behind.locked("train", "k1", quiet) as lease:
        proxy.once(fault, lambda request: request.method == "PUT" and request.path.endswith("_lease.json"))
        lease.renew()


@pytest.mark.parametrize("fault", ["truncate", "500", "reset", "slow"])
def test_a_download_that_breaks_off_is_made_again(behind, proxy, fault):
    artifact = write(behind, f"content of {fault} " * 1000)
    proxy.once(fault, lambda request: request.method == "GET" and request.path.endswith("part.txt"))
    assert (artifact.local("queries") / "part.txt").read_text() == f"content of {fault} " * 1000


@pytest.mark.parametrize("fault", ["truncate", "500", "503", "reset"])
def test_rows_are_written_and_read_by_arrow_in_spite_of_a_fault(behind, proxy, fault):
    rows, attempt = pa.table({"number": range(1000)}), behind.begin("ingest", "k1")
    proxy.once(fault, lambda request: request.method == "PUT" and "/rows/" in request.path)
    pq.write_table(rows, f"{attempt.base}/rows/0.parquet", filesystem=attempt.filesystem)
    artifact = behind.commit(attempt, FACTS)
    proxy.once(fault, lambda request: request.method == "GET" and "/rows/" in request.path)
    assert pq.read_table(artifact.files("rows")[0], filesystem=artifact.filesystem) == rows
    assert [method for method, _, action in proxy.log if action] == ["PUT", "GET"]


@pytest.mark.parametrize("fault", ["500", "503", "reset"])
def test_arrow_asks_again_whether_a_file_is_there(behind, proxy, fault):
    artifact = write(behind)
    proxy.once(fault, lambda request: request.method == "HEAD")
    (path,) = artifact.files("queries")
    assert artifact.filesystem.get_file_info(path).is_file
    assert [method for method, _, action in proxy.log if action] == ["HEAD"]


def test_a_file_system_asks_as_often_where_it_arrives(behind):
    filesystem = write(behind).filesystem
    for sent in (pickle.dumps(filesystem), ray.cloudpickle.dumps(filesystem)):
        assert pickle.loads(sent) is filesystem  # that of the process, which has its retries


def test_a_download_of_another_content_is_refused_and_not_cached(behind):
    artifact = write(behind, "never before")
    behind.objects.put(f"ingest/k1/{artifact.attempt}/queries/part.txt", b"never BEFORE")
    for _ in range(2):
        with pytest.raises(StageError, match="another content than when it was written"):
            artifact.local("queries")


def test_a_server_that_ignores_conditions_is_refused_with_the_reason(behind, proxy):
    proxy.rule = lambda request: "ignore" if request.conditional else None
    s3.probe.cache_clear()
    with pytest.raises(InputError, match="ignores If-None-Match on bucket 'bucket', so two runs could overwrite"):
        behind.objects.prepare()


def test_a_server_that_ignores_only_if_match_is_refused_too(behind, proxy):
    proxy.rule = lambda request: "ignore" if "If-Match" in request.headers else None
    with pytest.raises(InputError, match="ignores If-Match"):
        behind.objects.prepare()


@pytest.mark.parametrize("fault", ["done 500", "500", "reset", "409"])
def test_a_fault_during_the_probe_is_no_verdict(behind, proxy, fault):
    proxy.once(fault, lambda request: request.method == "PUT")
    behind.objects.prepare()


@pytest.mark.parametrize(
    ("answer", "when", "words"),
    [
        ("403 AccessDenied", "PUT", "may not be written with these credentials"),
        ("403 AccessDenied", "GET", "may not be read with these credentials"),
        ("403 InvalidAccessKeyId", "PUT", "does not accept these credentials (InvalidAccessKeyId)"),
        ("403 SignatureDoesNotMatch", "PUT", "does not accept these credentials"),
        ("400 ExpiredToken", "PUT", "does not accept these credentials (ExpiredToken)"),
        ("403 RequestTimeTooSkewed", "PUT", "the clock of this machine differs from that of"),
    ],
)
def test_what_a_server_refuses_is_one_line_before_anything_runs(hooks, behind, proxy, tmp_path, answer, when, words):
    proxy.rule = lambda request: answer if request.method == when else None
    try:
        error = go(behind, tmp_path).error
    except InputError as raised:  # by the plan
        error = raised
    assert isinstance(error, InputError)
    assert words in str(error) and "\n" not in str(error)
    assert hooks.calls == []
    proxy.rule = lambda request: None
    assert behind.objects.files("") == []


def call(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    script = Path(command.__file__)
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, env=env, check=False, timeout=120
    )
    assert done.stderr.count("\n") <= 1, done.stderr
    return done.returncode, done.stderr


def test_a_bucket_that_is_not_there_and_a_server_that_does_not_answer(aws, moto, capfd):
    assert with_own_stdout(command.main, ["ls", "store=s3://nowhere/x", f"store_endpoint={moto}"]) == 2
    assert f"there is no bucket 'nowhere' at {moto}; create it" in capfd.readouterr().err
    assert with_own_stdout(command.main, ["ls", "store=s3://bucket/x", "store_endpoint=http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9 does not answer" in capfd.readouterr().err


def test_no_credentials_are_reported_with_where_to_put_them(moto, tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    env |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL_S3": moto}
    code, line = call("ls", "store=s3://bucket/x", env=env)
    assert code == 2 and "there are no credentials for s3://bucket/x: set AWS_PROFILE" in line
    code, line = call("ls", "store=s3://bucket/x", env={**env, "AWS_PROFILE": "nobody"})
    assert code == 2 and "nobody" in line


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["store=s3://"], "names no bucket"),
        (["store=s3://b/p", "store_endpoint=host:9000"], "is no address; write http://host:port"),
        (["store=s3://b/p", "store_endpoint=http://"], "S3 cannot be reached as configured"),
        (["store=s3://a b/p", "store_endpoint=http://127.0.0.1:9"], "store=s3://a b/p can't be: Parameter validation"),
    ],
)
def test_addresses_that_cannot_work_are_refused(aws, capfd, overrides, words):
    assert with_own_stdout(command.main, ["ls", *overrides]) == 2
    assert words in capfd.readouterr().err


def test_a_whole_run_goes_through_a_flaky_server(hooks, behind, proxy, tmp_path):
    faults = ["done 500", "503", "reset", "500", "done reset", "slow"]

    def rule(request):
        return faults[len(proxy.log) // 5 % len(faults)] if len(proxy.log) % 5 == 4 else None

    proxy.rule = rule
    done = go(behind, tmp_path)
    assert done.error is None, done.error
    assert {entry["action"] for entry in done.stages.values()} == {"run"}
    proxy.rule = lambda request: None
    assert all(artifact.damage() == [] for artifact in done.run.artifacts.values())
    assert {entry["action"] for entry in go(behind, tmp_path).stages.values()} == {"cached"}


def test_the_command_line_works_on_a_bucket(hooks, bucket, tmp_path, capfd):
    done = go(bucket, tmp_path)
    place = [f"store={bucket.uri}", f"store_endpoint={bucket.objects.endpoint}"]
    uri = done.stages["train"]["uri"]

    def answer(*arguments: str) -> dict:
        assert with_own_stdout(command.main, [*arguments, "--json", *place]) == 0
        return json.loads(capfd.readouterr().out)

    assert {(row["stage"], row["state"]) for row in answer("ls")["artifacts"]} == {
        ("ingest", "whole"),
        ("train", "whole"),
        ("evaluate", "whole"),
    }
    assert answer("show", uri)["uri"] == uri
    assert answer("pin", uri) == {"pinned": uri}
    assert len(answer("verify")["checked"]) == 3
    assert [name.partition("/")[0] for name in answer("gc", "--keep", "0", "--apply")["artifacts"]] == ["evaluate"]
    assert len(answer("ls")["artifacts"]) == 2
    assert answer("unpin", uri) == {"unpinned": uri}
    for name in ("ls", "verify", "gc"):
        assert with_own_stdout(command.main, [name, *place]) == 0
    assert "would delete" not in capfd.readouterr().out  # the last run still needs them


def test_a_stream_is_asked_for_again_more_than_a_hundred_times_in_the_life_of_a_process(behind, proxy):
    """pyarrow's standard strategy would not."""
    attempt, met = behind.begin("ingest", "k1"), []
    with attempt.filesystem.open_output_stream(f"{attempt.base}/file") as file:
        file.write(bytes(2**12))

    def rule(request):
        met.append(request)
        return "500" if len(met) % 2 else None

    proxy.rule = rule
    for _ in range(60):
        assert attempt.filesystem.open_input_file(f"{attempt.base}/file").read() == bytes(2**12)
    assert len(met) > 200


@pytest.mark.parametrize("times", [1, 2])
def test_a_control_object_whose_body_breaks_off_is_read_again(behind, proxy, times):
    written = write(behind)
    left = ["truncate"] * times
    proxy.rule = lambda request: left.pop() if left and request.path.endswith(MANIFEST) else None
    assert behind.artifact("ingest", "k1").attempt == written.attempt
    proxy.rule = lambda request: "truncate" if request.path.endswith(MANIFEST) else None
    with pytest.raises(StageError) as caught:
        behind.artifact("ingest", "k1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("times", [1, 5])
def test_an_answer_that_there_is_no_such_object_is_asked_for_again_where_it_breaks_off(behind, proxy, times):
    left = ["truncate"] * times
    proxy.rule = lambda request: left.pop() if left and request.method == "GET" else None
    if times == 1:
        assert behind.objects.read("never/written") is None
        return
    with pytest.raises(StageError) as caught:
        behind.objects.read("never/written")
    assert "\n" not in str(caught.value)


def test_a_checksum_is_taken_through_a_body_that_breaks_off(behind, proxy):
    artifact = write(behind, "words " * 1000)
    proxy.once("truncate", lambda request: request.method == "GET" and request.path.endswith("part.txt"))
    assert artifact.damage() == []


def test_only_unfinished_uploads_of_this_store_that_no_lease_covers_are_given_up(aws, moto, monkeypatch):
    monkeypatch.setattr(s3, "QUICK_SECONDS", -60)
    name = uuid.uuid4().hex
    store, client = open_store(f"s3://bucket/{name}", moto), s3.client(moto, "us-east-1")
    paths = [f"{name}/train/held/a/model", f"{name}/train/free/a/model", f"{name}2/train/free/a/model"]
    for path in paths:
        client.create_multipart_upload(Bucket="bucket", Key=path)
    with store.locked("train", "held", quiet):
        assert store.objects.drop_unfinished(-60, garbage.in_use(store)) == 1
    left = [upload["Key"] for upload in client.list_multipart_uploads(Bucket="bucket", Prefix=name)["Uploads"]]
    assert sorted(left) == sorted(paths[::2])


@pytest.fixture
def fresh_clients():
    """For tests that change the environment by which clients are made."""
    s3_clients._client.cache_clear()
    yield
    s3_clients._client.cache_clear()


def test_pins_go_to_the_store_of_the_artifact(fresh_clients, bucket, tmp_path, monkeypatch, capfd):
    artifact, other = write(bucket), open_store(str(tmp_path / "other"))
    place = [f"store={other.uri}"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", bucket.objects.endpoint)
    assert with_own_stdout(command.main, ["pin", artifact.uri, *place]) == 0
    assert [entry.path for entry in bucket.objects.files("pins")] == ["pins/ingest-k1.json"]
    assert with_own_stdout(command.main, ["unpin", artifact.uri, *place]) == 0
    assert bucket.objects.files("pins") == [] and not other.root.exists()


def test_an_endpoint_that_was_given_is_kept_and_aws_itself_needs_none(fresh_clients, aws, monkeypatch):
    private = "https://bucket.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com"
    assert s3.open_s3("s3://b/p", private).endpoint == private
    assert s3.open_s3("s3://b/p").endpoint == ""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", private)
    s3_clients._client.cache_clear()
    assert s3.open_s3("s3://b/p").endpoint == private


@pytest.mark.parametrize("action", ["begin", "local"])
def test_a_cache_that_can_only_be_read_is_one_line(bucket, monkeypatch, action):
    artifact = write(bucket, f"unlike others: {action}")

    def refuse(*given, **named):
        raise OSError(errno.EROFS, "Read-only file system", "cache")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InputError, match=r"the cache .* \(PUMA_CACHE\) may not be used"):
        artifact.local("queries") if action == "local" else bucket.begin("ingest", "k9")


def test_copies_that_nobody_asked_for_in_a_long_time_are_deleted(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("PUMA_CACHE", str(tmp_path / "cache"))
    old, used = write(bucket, "old", key="k1"), write(bucket, "used", key="k2")
    for artifact in (old, used):
        place = artifact.local("queries/part.txt")
        os.utime(place, (0, 0))
    used.local("queries/part.txt")
    assert expire_copies() == 3
    assert not old.objects.work(f"ingest/k1/{old.attempt}/queries/part.txt").exists()
    assert used.objects.work(f"ingest/k2/{used.attempt}/queries/part.txt").read_bytes() == b"used"
    assert old.local("queries/part.txt").read_bytes() == b"old"
