"""The runner and the command line on a small graph of made-up stages: commits, resumes, exit codes, JSON."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pipeline.cluster
import pipeline.run
from pipeline.artifacts import Store, open_store
from pipeline.causes import explain
from pipeline.dag import Stage
from pipeline.plan import Selection, plan
from pipeline.runner import Run, run_pipeline
from pipeline.sources import read_sources
from pipeline.tracking import PipelineRun
from stages.context import InputError, StageError
from stages.params import Cluster, Section

MODULE = """
from stages.params import Section

VERSION = 1


class Params(Section):
    word: str = "hello"


def run(context):
    from fakes import hooks

    read = [context.inputs[name].read_json("said.json") for name in context.inputs]
    section = next(iter(vars(context.params)))
    (context.output.work / "progress").open("a").write("x")
    context.output.write_json("early.json", {})
    hooks.call("NAME", context)
    context.output.write_json("said.json", [*read, getattr(context.params, section).word])
    context.output.write_json("stats.json", {"rejects": {"candidates": 1, "queries": 0, "by_reason": {}}})
    context.output.write_json("metrics.json", {"student": {"local": {"hit@5": 0.5}}})
    context.output.write_json("model/config.json", {})
    context.output.write_bytes("table.txt", b"the table")
    context.tracker.metrics({"loss": 1.0}, step=1)
    return {"size": 3, "student": {"local": {"hit@5": 0.5, "tasks": {"a": {"hit@5": 0.5}}}}}
"""
HOOKS = """
calls, actions = [], {}


def call(name, context):
    calls.append(name)
    actions.get(name, lambda _: None)(context)
"""
STAGES = (
    Stage("ingest", "fakes.ingest", (), ("data",)),
    Stage("train", "fakes.train", ("ingest",), ("train",)),
    Stage("evaluate", "fakes.evaluate", ("ingest", "train"), ("evaluate",)),
)


class Words(Section):
    word: str = "hello"
    register_as: str = "student"


class Small(Section):
    store: str = ""
    tracking_uri: str = ""
    data: Words = Words()
    train: Words = Words()
    evaluate: Words = Words()
    cluster: Cluster = Cluster()


DEFAULT = Small()


class Tracked:
    """Remembers what would be tracked."""

    def __init__(self, log: list, name: str = "run") -> None:
        self.log, self.name, self.run_id = log, name, f"mlflow-{name}"

    def stage(self, name: str, tags: dict) -> "Tracked":
        self.log.append((name, "stage", tags["cache"]))
        return Tracked(self.log, name)

    def ids(self) -> dict[str, str]:
        return {"experiment_id": "1", "run_id": self.run_id}

    def __getattr__(self, verb: str) -> Any:
        return lambda *values, **named: self.log.append((self.name, verb, *values))


@pytest.fixture
def hooks(tmp_path, monkeypatch):
    package = tmp_path / "code" / "fakes"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "hooks.py").write_text(HOOKS)
    for stage in STAGES:
        (package / f"{stage.name}.py").write_text(MODULE.replace("NAME", stage.name))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield __import__("fakes.hooks", fromlist=["calls"])
    for name in [name for name in sys.modules if name.split(".")[0] == "fakes"]:
        del sys.modules[name]


@pytest.fixture
def store(tmp_path) -> Store:
    return open_store(str(tmp_path / "store"))


@contextmanager
def no_cluster(cluster: Cluster):
    yield


def go(store: Store, tmp_path: Path, config: Small = DEFAULT, connect=no_cluster, **selection: Any) -> SimpleNamespace:
    sources = read_sources(STAGES, config, tmp_path / "code")
    decisions = plan(STAGES, config, store.manifests(), sources, Selection(**selection))
    log: list = []
    run = Run(config, store, Tracked(log), connect, say=lambda line: log.append(("say", line)))
    error = None
    try:
        run_pipeline(STAGES, decisions, run)
    except (StageError, InputError, KeyboardInterrupt) as caught:
        error = caught
    return SimpleNamespace(run=run, log=log, error=error, stages=run.stages)


def fail(error: BaseException):
    def action(context):
        raise error

    return action


def test_a_run_computes_all_stages_and_hands_artifacts_on(hooks, store, tmp_path):
    done = go(store, tmp_path)
    assert hooks.calls == ["ingest", "train", "evaluate"]
    assert done.run.artifacts["evaluate"].read_json("said.json") == [["hello"], [["hello"], "hello"], "hello"]
    assert done.stages["train"]["uri"] == str(store.root / "train" / done.stages["train"]["key"])
    assert done.stages["train"]["seconds"] > 0


def test_the_manifest_tells_where_the_artifact_comes_from(hooks, store, tmp_path):
    done = go(store, tmp_path)
    manifest = done.run.artifacts["train"].manifest
    ingest = done.run.artifacts["ingest"]
    assert manifest["inputs"] == {"ingest": {"key": ingest.key, "attempt": ingest.attempt}}
    assert manifest["metrics"]["size"] == 3 and manifest["mlflow_run_id"] == "mlflow-train"
    assert manifest["run"] == done.run.id and manifest["packages"]["torch"]
    assert {"version", "code", "params", "inputs", "data"} <= set(manifest["parts"])
    assert manifest["config"]["train"]["word"] == "hello"


def test_a_second_run_computes_nothing_and_needs_no_cluster(hooks, store, tmp_path):
    def never(cluster):
        raise AssertionError("a cached run started the cluster")

    go(store, tmp_path)
    done = go(store, tmp_path, connect=never)
    assert len(hooks.calls) == 3
    assert {entry["action"] for entry in done.stages.values()} == {"cached"}
    assert ("train", "stage", "hit") in done.log
    assert ("train", "metrics", done.run.artifacts["train"].manifest["metrics"]) in done.log


def test_the_cluster_is_connected_once_and_left_after_a_failure(hooks, store, tmp_path):
    log = []

    @contextmanager
    def cluster(params):
        log.append("in")
        try:
            yield
        finally:
            log.append("out")

    hooks.actions["train"] = fail(ValueError("no"))
    go(store, tmp_path, connect=cluster)
    assert log == ["in", "out"]


def test_a_changed_parameter_runs_its_stage_and_those_below(hooks, store, tmp_path):
    go(store, tmp_path)
    go(store, tmp_path, Small(train=Words(word="bye")))
    assert hooks.calls[3:] == ["train", "evaluate"]


def test_stages_see_only_their_sections(hooks, store, tmp_path):
    seen = {}
    hooks.actions["train"] = lambda context: seen.update(vars(context.params), inputs=sorted(context.inputs))
    go(store, tmp_path)
    assert sorted(seen) == ["inputs", "train"] and seen["inputs"] == ["ingest"]


def test_a_failed_stage_is_one_line_and_the_next_run_resumes_there(hooks, store, tmp_path):
    hooks.actions["train"] = fail(ValueError("first line\nsecond line"))
    failed = go(store, tmp_path)
    assert isinstance(failed.error, StageError)
    assert str(failed.error).startswith("stage train failed: ValueError: first line (traceback: ")
    trace = Path(str(failed.error).split("traceback: ")[1].rstrip(")"))
    assert "second line" in trace.read_text()
    assert failed.stages["train"]["action"] == "failed" and failed.stages["evaluate"]["uri"] is None
    assert ("train", "end", "FAILED") in failed.log and ("run", "end", "FAILED") in failed.log
    assert store.runs()[0]["status"] == "failed"
    hooks.actions.clear()
    assert go(store, tmp_path).error is None
    assert hooks.calls == ["ingest", "train", "train", "evaluate"]


def test_a_killed_stage_finds_its_work_again_and_force_does_not(hooks, store, tmp_path):
    seen = []
    hooks.actions["train"] = fail(RuntimeError("killed"))
    go(store, tmp_path)
    hooks.actions["train"] = lambda context: seen.append((context.output.work / "progress").read_text())
    go(store, tmp_path)
    go(store, tmp_path, force=("train",))
    assert seen == ["xx", "x"]


def test_a_stage_error_is_passed_on_in_its_own_words(hooks, store, tmp_path):
    hooks.actions["ingest"] = fail(StageError("62 of 100 rows were rejected"))
    assert str(go(store, tmp_path).error) == "stage ingest failed: 62 of 100 rows were rejected"


def test_an_input_error_inside_a_stage_stays_an_input_error(hooks, store, tmp_path):
    hooks.actions["train"] = fail(InputError("no such model"))
    assert isinstance(go(store, tmp_path).error, InputError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])  # the latter is Ray's way to pass on Ctrl-C
def test_an_interrupt_is_recorded_as_one(hooks, store, tmp_path, error):
    hooks.actions["train"] = fail(error)
    done = go(store, tmp_path)
    assert isinstance(done.error, KeyboardInterrupt)
    assert store.runs()[0]["status"] == "interrupted"
    assert ("train", "end", "KILLED") in done.log and ("run", "end", "KILLED") in done.log


def test_a_forced_stage_replaces_its_artifact_and_what_was_made_from_it(hooks, store, tmp_path):
    first = go(store, tmp_path)
    second = go(store, tmp_path, force=("train",))
    assert hooks.calls[3:] == ["train", "evaluate"]
    assert second.stages["train"]["key"] == first.stages["train"]["key"]
    assert second.stages["train"]["attempt"] != first.stages["train"]["attempt"]
    read = second.run.artifacts["evaluate"].manifest["inputs"]["train"]["attempt"]
    assert read == second.stages["train"]["attempt"]
    assert {entry["action"] for entry in go(store, tmp_path).stages.values()} == {"cached"}


def test_the_run_s_record_tells_configuration_keys_and_actions(hooks, store, tmp_path):
    done = go(store, tmp_path, until="train")
    record = store.runs()[0]
    assert record["id"] == done.run.id and record["status"] == "finished" and record["finished"] > record["started"]
    assert record["config"]["train"]["word"] == "hello"
    assert {name: entry["action"] for name, entry in record["stages"].items()} == {
        "ingest": "run",
        "train": "run",
        "evaluate": "skipped",
    }


def test_of_two_runs_on_one_store_one_computes_and_the_other_waits(hooks, store, tmp_path):
    started = threading.Event()

    def slow(context):
        started.set()
        time.sleep(0.5)

    hooks.actions["train"] = slow
    other = threading.Thread(target=go, args=(store, tmp_path))
    other.start()
    started.wait(10)
    done = go(store, tmp_path)
    other.join()
    assert hooks.calls.count("train") == 1
    assert done.stages["train"]["action"] == "cached"
    assert done.stages["train"]["reasons"] == ["computed by another run"]
    assert any("waiting" in str(entry) for entry in done.log)


def test_datasets_are_tracked_by_key(hooks, store, tmp_path):
    done = go(store, tmp_path)
    artifact = done.run.artifacts["ingest"]
    assert ("train", "dataset", "ingest", artifact.uri, artifact.key, "input") in done.log


class Remote(Exception):
    """As Ray wraps an error of a worker: the traceback as text, the error itself beside it."""

    def __init__(self, text: str, **inside: Any) -> None:
        super().__init__(text)
        self.__dict__.update(inside)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\nb"), "ValueError: a"),
        (ValueError(""), "ValueError"),
        (Remote("ray::work()\n  Traceback", cause=ValueError("out of cheese")), "ValueError: out of cheese"),
        (Remote("2 workers failed", worker_failures={0: Remote("x", cause=StageError("mend it"))}), "mend it"),
        (Remote("wrapped", cause=StageError("mend\nit")), "mend it"),
    ],
)
def test_errors_of_workers_are_unwrapped_to_one_line(error, line):
    assert explain(error) == line


# The command line, in this process, on the same small graph.


@pytest.fixture
def command(hooks, tmp_path, monkeypatch, capfd):
    log: list = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline.run, "STAGES", STAGES)
    monkeypatch.setattr(pipeline.run, "load_config", lambda recipe, overrides: Small(store="store"))
    monkeypatch.setattr(pipeline.run, "read_sources", lambda *given: read_sources(*given, root=tmp_path / "code"))
    monkeypatch.setattr(pipeline.cluster, "connected", no_cluster)
    monkeypatch.setattr("pipeline.tracking.PipelineRun", lambda uri, name, tags: Tracked(log))
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
    assert answer["stages"]["ingest"]["rejects"] == {"candidates": 1, "queries": 0, "by_reason": {}}
    assert answer["metrics"]["student"]["local"]["hit@5"] == 0.5
    assert set(answer["mlflow"]) >= {"experiment_id", "run_id"}
    assert "a worker prints" in done.err and "the table" in done.err


def test_the_terminal_shows_plan_progress_table_student_and_next_command(command):
    done = command()
    for words in ("MISSING", "train: done in", "the table", "student: "):
        assert words in done.out
    student = done.out.split("student: ")[1].splitlines()[0]
    assert (Path(student) / "config.json").is_file()


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


def test_a_new_student_is_registered_and_a_cached_one_is_not(command):
    assert [entry[:2] for entry in command().log].count(("run", "register")) == 1
    assert [entry[:2] for entry in command().log].count(("run", "register")) == 1


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


def test_tracking_that_fails_costs_one_line_and_no_run(hooks, store, tmp_path, capsys):
    (tmp_path / "mlflow.db").write_text("no database")
    tracker = PipelineRun(f"sqlite:///{tmp_path}/mlflow.db", "run", {})
    decisions = plan(STAGES, DEFAULT, {}, read_sources(STAGES, DEFAULT, tmp_path / "code"))
    run = Run(DEFAULT, store, tracker, no_cluster, say=lambda line: None)
    run_pipeline(STAGES, decisions, run)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "warning: not tracked any more" in told and "not a database" in told
    assert set(run.artifacts) == {"ingest", "train", "evaluate"}


def test_wrong_input_of_the_real_command_is_two_and_one_line(tmp_path):
    script = str(Path(pipeline.run.__file__))
    command = [sys.executable, script, "--recipe", "dmeo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no recipe 'dmeo'; did you mean 'demo'?")
    assert done.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []
