"""The command line on a small graph of made-up stages: output, JSON, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import pipeline.run
from pipeline.config.sections import Config
from pipeline.execution import launch, publish
from pipeline.planning.sources import read_sources
from stages.contract.context import InputError, StageError
from tests.made_stages import STAGES, Small, Tracked, Words, fail, no_cluster

# The command line, in this process, on the same small graph.


@pytest.fixture
def command(hooks, tmp_path, monkeypatch, capfd):
    log: list = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "stages_of", lambda config: STAGES)
    monkeypatch.setattr(launch, "with_student", lambda config: config)
    monkeypatch.setattr(launch, "load_config", lambda recipe, overrides: Small(store="store"))
    monkeypatch.setattr(launch, "read_sources", lambda *given: read_sources(*given, root=tmp_path / "code"))
    monkeypatch.setattr(launch, "connected", no_cluster)
    monkeypatch.setattr(launch, "check_needs", lambda *given: None)
    monkeypatch.setattr(launch, "check_artifact", lambda *given: None)
    monkeypatch.setattr(launch, "PipelineRun", lambda uri, name, tags: Tracked(log))
    stdout = os.dup(1)

    def call(*arguments: str) -> SimpleNamespace:
        code = pipeline.run.main(arguments)
        sys.stdout.flush()
        os.dup2(stdout, 1)
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, log=log)

    yield call
    os.close(stdout)


def test_json_is_one_object_on_stdout_and_prints_go_to_stderr(command, hooks):
    hooks.actions["train"] = lambda context: os.write(1, b"a worker prints\n")
    done = command("--json")
    answer = json.loads(done.out)
    assert done.code == 0
    assert set(answer["stages"]["train"]) >= {"key", "action", "reasons", "seconds", "uri"}
    assert answer["stages"]["ingest"]["rejects"] == {"candidates": 1, "queries": 0, "by_reason": {"bad id": 1}}
    assert answer["metrics"]["student"]["local"]["hit@5"] == 0.5
    assert set(answer["mlflow"]) >= {"experiment_id", "run_id"}
    assert "a worker prints" in done.err and "the table" in done.err


def test_the_terminal_shows_plan_progress_table_student_and_next_command(command):
    done = command()
    for words in ("MISSING", "train: done in", "the table", "rejected rows: 1 candidates (bad id 1)", "student: "):
        assert words in done.out
    (note,) = [entry[2] for entry in done.log if entry[:2] == ("run", "note")]
    assert "### Rejected rows\n\n1 candidates (bad id 1)" in note
    student = done.out.split("student: ")[1].splitlines()[0]
    assert (Path(student) / "config.json").is_file()


def test_numbers_compare_where_data_queries_and_storage_are_the_same():
    def identity(**index: str) -> str:
        config = Config.model_validate({"index": index})
        return publish.test_identity(SimpleNamespace(config=config, artifacts={"ingest": SimpleNamespace(key="k")}))

    assert identity() == "k/test/all" == identity(precision="float16")
    assert identity(precision="binary") == "k/test/all/binary" != identity(precision="int8")
    assert identity(candidates="teacher") == "k/test/all/teacher"


def test_a_store_that_is_refused_leaves_no_run_in_mlflow(command, tmp_path):
    (tmp_path / "store").write_text("a file")
    done = command()
    assert done.code == 2 and done.err.startswith("error: ") and done.log == []


def test_a_plan_writes_nothing(command, tmp_path):
    done = command("--plan", "--json")
    assert json.loads(done.out)["stages"]["train"] == {
        "key": json.loads(done.out)["stages"]["train"]["key"],
        "action": "run",
        "reasons": ["MISSING"],
        "seconds": 0.0,
        "uri": None,
    }
    assert not (tmp_path / "store").exists()


def test_the_record_of_a_run_holds_the_whole_command(command, tmp_path):
    done = command("--until", "ingest", "--force", "ingest", "--ignore-code", "data.word=two words")
    (record,) = (tmp_path / "store" / "runs").glob("*.json")
    words = "python pipeline/run.py --until ingest --force ingest --ignore-code 'data.word=two words'"
    assert json.loads(record.read_text())["command"] == words
    (note,) = [entry[2] for entry in done.log if entry[:2] == ("run", "note")]
    assert f"### Again\n\n```\n{words}\n```" in note


def registered(done: SimpleNamespace) -> list[tuple[str, str]]:
    """(name, alias) of each registration so far."""
    return [(entry[2], entry[-1]) for entry in done.log if entry[:2] == ("run", "register")]


def test_a_new_student_is_registered_and_a_cached_one_is_not(command):
    assert registered(command()) == [("student", "auto")]
    assert registered(command()) == [("student", "auto")]


def test_the_store_keeps_what_was_registered_also_where_that_was_done_before(command, tmp_path):
    done = command("--json")
    key = json.loads(done.out)["stages"]["train"]["key"]
    (kept,) = (tmp_path / "store" / "pins").iterdir()
    facts = json.loads(kept.read_text())
    assert (facts["stage"], facts["key"], facts["name"]) == ("train", key, "student")
    assert (tmp_path / "store" / "train" / key / facts["attempt"] / "model").is_dir()
    kept.unlink()
    command()
    assert kept.is_file()


def test_a_cached_student_is_registered_as_newly_asked_for(command, monkeypatch):
    def asked(**train: str) -> list[tuple[str, str]]:
        config = Small(store="store", train=Words(**train))
        monkeypatch.setattr(launch, "load_config", lambda recipe, overrides: config)
        return registered(command())

    first = asked()
    assert asked(register_alias="always") == [*first, ("student", "always")]
    assert asked(register_alias="always") == [*first, *[("student", "always")] * 2]  # another may have taken the alias
    assert asked(register_as="other")[3:] == [("other", "auto")]
    assert asked(register_as="other")[3:] == [("other", "auto")]


def test_a_run_that_was_killed_before_registering_does_so_when_it_is_repeated(command, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(launch, "publish", lambda *given: fail(KeyboardInterrupt())(None))
        assert command().code == 130
    assert registered(command()) == [("student", "auto")]


def test_a_student_whose_loaders_were_not_compared_is_not_registered(command, monkeypatch):
    config = Small(store="store", train=Words(check_loaders=False))
    monkeypatch.setattr(launch, "load_config", lambda recipe, overrides: config)
    done = command()
    assert ("run", "register") not in [entry[:2] for entry in done.log] and "not registered" in done.out


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (StageError("too many rejects"), 1, "stage train failed: too many rejects; the same command resumes"),
        (ValueError("bug"), 1, "stage train failed: ValueError: bug"),
        (InputError("no such model"), 2, "no such model"),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes"),
    ],
)
def test_exit_codes(command, hooks, error, code, words):
    hooks.actions["train"] = fail(error)
    done = command("--json")
    assert done.code == code
    answer = json.loads(done.out)
    assert words in answer["error"] and f"error: {answer['error']}" in done.err
    assert answer["stages"]["ingest"]["uri"]
    assert "Traceback" not in done.err


@pytest.mark.parametrize("arguments", [["--from", "train"], ["--force", "train"]])
def test_after_a_forced_stage_that_failed_the_same_command_is_not_said_to_resume(command, hooks, arguments):
    hooks.actions["train"] = fail(StageError("too many rejects"))
    done = command(*arguments)
    assert "too many rejects; the same command starts anew what it forces" in done.err and "resumes" not in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--form", "train"], "unknown option '--form'; did you mean '--from'?"),
        (["--until"], "expected one argument"),
        (["--only", "trian"], "no stage 'trian'; did you mean 'train'?"),
        (["--only", "train"], "needs ingest"),
    ],
)
def test_wrong_options_exit_with_two_and_write_nothing(command, tmp_path, arguments, words):
    done = command(*arguments)
    assert done.code == 2 and words in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_options_and_overrides_mix_in_any_order():
    options = pipeline.run.parse_arguments(["a=1", "--recipe", "demo", "b=2", "--plan", "c=3"])
    assert options.overrides == ["a=1", "b=2", "c=3"] and options.plan


def test_wrong_input_of_the_real_command_is_two_and_one_line(tmp_path):
    script = str(Path(pipeline.run.__file__))
    command = [sys.executable, script, "--recipe", "dmeo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no recipe 'dmeo'; did you mean 'demo'?")
    assert done.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []
