"""What a finished run gives to MLflow: its headline numbers, its description, and the student in the registry."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifacts.garbage import keep_registered
from pipeline.config.values import walk_values
from pipeline.execution.runner import Run
from pipeline.execution.summary import run_note
from pipeline.planning.plan import Decision


def publish(run: Run, decisions: Sequence[Decision]) -> None:
    """Gives the tracked run its headline numbers and its description, and registers the student."""
    run.tracker.note(run_note(decisions, run.artifacts, run.command))
    if not {"train", "evaluate"} <= run.artifacts.keys():
        return
    run.tracker.metrics(headline(run.artifacts["evaluate"].manifest["metrics"]))
    if run.config.train.check_loaders:
        register(run)
    elif any(decision.action == "run" and decision.stage in ("train", "evaluate") for decision in decisions):
        run.say("not registered: train.check_loaders=false, so its loaders were not compared")


def register(run: Run) -> None:
    """Registers the student as the settings ask for, unless that was done: a cached run leaves the registry alone.

    A run may have been killed before it came here, or be the first one to ask for this name or alias. Only the alias
    of `train.register_alias=always` is set each time, because another student may have taken it since.
    """
    student, evaluation, asked = run.artifacts["train"], run.artifacts["evaluate"], run.config.train
    tags = {
        "key": student.key,
        "attempt": student.attempt,
        "weights": f"{student.uri}/{student.attempt}/model",  # where they lie in the store; they are not fetched
        "test": test_identity(run),
        "evaluation": f"{evaluation.key}/{evaluation.attempt}",
    }
    # Before a version exists:
    keep_registered(run.store, student.stage, student.key, student.attempt, asked.register_as)
    if asked.register_alias != "always" and run.tracker.is_registered(asked.register_as, tags, asked.register_alias):
        return
    numbers = headline(evaluation.manifest["metrics"]).get("student", {})
    source = student.manifest.get("mlflow_run_id", "") or run.tracker.run_id
    message = run.tracker.register(asked.register_as, tags, numbers, source, alias=asked.register_alias)
    if message:
        run.say(message)


def test_identity(run: Run) -> str:
    """What two students must share for their numbers to compare: the ingested data, which queries were asked, and how
    and by whom the candidates were stored, where that is not as usual."""
    chosen = {path: value for path, value, _ in walk_values(run.config)}
    parts = [run.artifacts["ingest"].key, chosen.get("index.split"), chosen.get("evaluate.queries_per_task") or "all"]
    usual = {"index.precision": "float16", "index.candidates": "student"}
    parts += [chosen[path] for path, value in usual.items() if chosen.get(path, value) != value]
    return "/".join(map(str, parts))


def headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Nested numbers of `evaluate` without those of single tasks."""
    return {
        name: headline(value) if isinstance(value, Mapping) else value
        for name, value in metrics.items()
        if name != "tasks"
    }
