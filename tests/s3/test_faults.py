"""What goes wrong between here and a bucket: answers that get lost, servers that are busy, refuse or ignore."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import s3
from pipeline import store as command
from pipeline.artifacts import open_store
from pipeline.manifests import MANIFEST
from stages.context import InputError, StageError
from tests.made_stages import go
from tests.s3.test_contract import FACTS, contents, quiet, write


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


def test_a_bucket_that_is_not_there_and_a_server_that_does_not_answer(aws, moto, capsys):
    assert command.main(["ls", "store=s3://nowhere/x", f"store_endpoint={moto}"]) == 2
    assert f"there is no bucket 'nowhere' at {moto}; create it" in capsys.readouterr().err
    assert command.main(["ls", "store=s3://bucket/x", "store_endpoint=http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_no_credentials_are_told_with_where_to_put_them(moto, tmp_path):
    import os

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
    ],
)
def test_addresses_that_cannot_work_are_refused(aws, capsys, overrides, words):
    assert command.main(["ls", *overrides]) == 2
    assert words in capsys.readouterr().err


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


def test_the_command_line_works_on_a_bucket(hooks, bucket, tmp_path, capsys):
    done = go(bucket, tmp_path)
    place = [f"store={bucket.uri}", f"store_endpoint={bucket.objects.endpoint}"]
    uri = done.stages["train"]["uri"]

    def answer(*arguments: str) -> dict:
        assert command.main([*arguments, "--json", *place]) == 0
        return json.loads(capsys.readouterr().out)

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
        assert command.main([name, *place]) == 0
    assert "would delete" not in capsys.readouterr().out  # the last run still needs them
