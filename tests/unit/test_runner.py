"""The runner on a small graph of made-up stages: commits, resumes, forced stages, errors, two runs at once."""

import errno
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.store import Artifact
from pipeline.execution.errors import explain
from pipeline.execution.runner import Run, run_pipeline
from pipeline.planning.plan import plan
from pipeline.planning.sources import read_sources
from pipeline.tracking.client import PipelineRun
from stages.contract.context import InputError, StageError
from tests.made_stages import DEFAULT, STAGES, Small, Tracked, Words, fail, go, no_cluster


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


def test_code_that_changes_during_a_run_ends_it_before_its_artifact_is_taken(hooks, store, tmp_path):
    """Its key tells the code as it was planned."""
    code = tmp_path / "code" / "fakes" / "train.py"
    hooks.actions["ingest"] = lambda _: code.write_text(f"{code.read_text()}\n\nOTHER = 1\n")
    done = go(store, tmp_path)
    assert "fakes/train.py changed while the run was under way" in str(done.error)
    assert hooks.calls == ["ingest"] and done.stages["train"]["action"] == "failed"
    hooks.actions["ingest"] = hooks.actions["train"] = lambda _: code.write_text(f"{code.read_text()}\n\nMORE = 1\n")
    assert "changed while" in str(go(store, tmp_path).error) and hooks.calls == ["ingest", "train"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_nothing_that_other_code_made_is_gone_on_from_once_the_edit_is_undone(hooks, store, tmp_path, error):
    code = tmp_path / "code" / "fakes" / "train.py"
    before = code.read_text()

    def edit(_: Any) -> None:
        code.write_text(f"{before}\n\nOTHER = 1\n")
        if error:
            raise error

    hooks.actions["train"] = edit
    assert go(store, tmp_path).error
    code.write_text(before)
    hooks.actions.clear()
    done = go(store, tmp_path)
    assert done.error is None and not done.run.artifacts["train"].manifest["resumed"]


def test_a_stage_that_goes_on_from_a_killed_one_says_so_in_its_manifest(hooks, store, tmp_path):
    hooks.actions["train"] = fail(KeyboardInterrupt())
    go(store, tmp_path)
    hooks.actions.clear()
    done = go(store, tmp_path)
    resumed = {name: one.manifest["resumed"] for name, one in done.run.artifacts.items() if name != "ingest"}
    assert resumed == {"train": True, "evaluate": False}


def test_a_second_run_computes_nothing_and_needs_no_cluster(hooks, store, tmp_path):
    def never(cluster):
        raise AssertionError("a cached run started the cluster")

    go(store, tmp_path)
    done = go(store, tmp_path, connect=never)
    assert len(hooks.calls) == 3
    assert {entry["action"] for entry in done.stages.values()} == {"cached"}
    assert ("train", "stage", "hit") in done.log
    assert ("train", "metrics", done.run.artifacts["train"].manifest["metrics"]) in done.log


def test_an_artifact_that_later_stages_could_not_read_ends_the_run_before_them(hooks, store, tmp_path):
    def check(stage: str, artifact: Artifact) -> None:
        if stage == "ingest" and artifact.manifest["metrics"]["size"] == 3:
            raise InputError("too small")

    decisions = plan(STAGES, DEFAULT, {}, read_sources(STAGES, DEFAULT, tmp_path / "code"))
    run = Run(DEFAULT, store, Tracked([]), no_cluster, check=check)
    with pytest.raises(InputError, match="too small"):
        run_pipeline(STAGES, decisions, run)
    assert hooks.calls == ["ingest"] and store.runs()[0]["status"] == "failed"


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


def test_what_the_run_needs_of_its_cluster_is_asked_once_connected_and_before_the_first_stage(hooks, store, tmp_path):
    @contextmanager
    def cluster(params):
        hooks.calls.append("in")
        yield

    def joined(run: Run) -> None:
        hooks.calls.append("asked")
        assert store.record(run.id).exists() and store.runs()[0]["status"] == "running"
        raise InputError("too little")

    decisions = plan(STAGES, DEFAULT, {}, read_sources(STAGES, DEFAULT, tmp_path / "code"))
    with pytest.raises(InputError, match="too little"):
        run_pipeline(STAGES, decisions, Run(DEFAULT, store, Tracked([]), cluster, joined=joined))
    assert hooks.calls == ["in", "asked"] and store.runs()[0]["status"] == "failed"


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


class ActorDiedError(Exception):
    """As Ray raises it, with several lines on Ray's own parts."""


class UserCodeException(Exception):
    """Ray Data's wrapper, which holds the error as text alone."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\nb"), "ValueError: a"),
        (ValueError(""), "ValueError"),
        (Remote("ray::work()\n  Traceback", cause=ValueError("out of cheese")), "ValueError: out of cheese"),
        (Remote("2 workers failed", worker_failures={0: Remote("x", cause=StageError("correct it"))}), "correct it"),
        (Remote("wrapped", cause=StageError("correct\nit")), "correct it"),
        (
            Remote("wrapped", cause=ActorDiedError("The actor died unexpectedly.\n\tclass_name: Ledger")),
            "a process or node of the run is gone (ActorDiedError); Ray's logs say why, often lack of memory",
        ),
        (
            Remote("wrapped", cause=OSError(errno.ENOSPC, "No space left on device", "/data/part")),
            "no space is left for /data/part; free some, then run again",
        ),
        *(
            (
                error,
                "no space is left for what the run writes (store, work or temporary files); free some, then run again",
            )
            for error in (
                OSError(errno.ENOSPC, "No space left on device"),
                Remote("wrapped", cause=OSError(errno.EDQUOT, "Disk quota exceeded")),
                RuntimeError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'),
                UserCodeException("ray::work()\n  File\nOSError: [Errno 28] Error writing. No space left on device"),
            )
        ),
    ],
)
def test_errors_of_workers_are_unwrapped_to_one_line(error, line):
    assert explain(error) == line


def test_tracking_that_fails_costs_one_line_and_no_run(hooks, store, tmp_path, capsys):
    (tmp_path / "mlflow.db").write_text("no database")
    tracker = PipelineRun(f"sqlite:///{tmp_path}/mlflow.db", "run", {})
    decisions = plan(STAGES, DEFAULT, {}, read_sources(STAGES, DEFAULT, tmp_path / "code"))
    run = Run(DEFAULT, store, tracker, no_cluster, say=lambda line: None)
    run_pipeline(STAGES, decisions, run)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "kept for the next run" in told and "not a database" in told
    assert set(run.artifacts) == {"ingest", "train", "evaluate"}
