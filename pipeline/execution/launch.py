"""One call of `run.py`: plans, shows the plan, runs it in a cluster, publishes and says what came of it."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifacts.store import Store, open_store
from pipeline.config.checks import check_labels, check_made, self_taught
from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.execution.cluster import connected
from pipeline.execution.compat import inside_job
from pipeline.execution.joining import check_cluster
from pipeline.execution.needs import check_artifact, check_needs
from pipeline.execution.publish import publish
from pipeline.execution.runner import Run, describe, run_pipeline
from pipeline.execution.summary import SOURCES, closing_lines, plan_rows
from pipeline.lookup.students import with_student
from pipeline.planning.dag import stages_of
from pipeline.planning.plan import Decision, Selection, plan, select
from pipeline.planning.sources import read_sources
from pipeline.terminal import open_console, text_table
from pipeline.tracking.client import PipelineRun, resolve_uri


def launch(options: argparse.Namespace, answer: dict[str, Any]) -> None:
    """Plans, runs and reports; fills `answer` for --json on the way, so that a failed run shows how far it came."""
    config = with_student(load_config(options.recipe, options.overrides))
    stages = stages_of(config)
    store = open_store(config.store, config.store_endpoint)
    every_stage = shlex.join(["python", "pipeline/run.py", "--recipe", options.recipe, *options.overrides])
    forced = tuple(options.force)
    selection = Selection(options.only, options.start, options.until, forced, options.ignore_code, every_stage)
    check_labels(config, select(stages, selection)[0])
    manifests = store.manifests()
    decisions = plan(stages, config, manifests, read_sources(stages, config), selection, store.started)
    for decision in decisions:
        if decision.action == "cached":
            check_made(config, decision.stage, manifests[decision.stage][decision.key])
    console = open_console(sys.stderr if options.json else sys.stdout)
    console.print(text_table(plan_rows(decisions)))
    trains = any(decision.stage == "backbone" and decision.action == "run" for decision in decisions)
    if trains and (why := self_taught(config)):
        console.print(f"warning: {why}", soft_wrap=True)
    if options.plan:
        answer["stages"] = planned(decisions, store)
    check_needs(config, decisions, store)
    if options.plan:
        return
    store.objects.prepare()  # before the run is tracked: MLflow would show it as running for ever
    command = shlex.join(["python", "pipeline/run.py", *options.given])
    run = new_run(config, store, command, options.recipe, partial(console.print, soft_wrap=True))
    run.check, run.joined = partial(check_artifact, config, decisions), partial(check_cluster, config, decisions)
    answer |= {"stages": run.stages, "metrics": {}, "mlflow": run.tracker.ids()}
    run_pipeline(stages, decisions, run)
    publish(run, decisions)
    report(run, answer)


def planned(decisions: Sequence[Decision], store: Store) -> dict[str, Any]:
    """The plan as JSON; an artifact that isn't there yet has no URI."""
    return {
        decision.stage: {
            **describe(decision),
            "uri": store.artifact(decision.stage, decision.key).uri if decision.action == "cached" else None,
        }
        for decision in decisions
    }


def new_run(config: Config, store: Store, command: str, recipe: str, say: Callable[[str], None]) -> Run:
    """A run that is tracked and starts a cluster when it needs one."""
    tags = {"recipe": recipe, "command": command, "mlflow.source.name": "pipeline/run.py"}
    tracker = PipelineRun(resolve_uri(config.tracking_uri), Path(recipe).stem, tags)
    if inside_job() and "://" not in config.store and not Path(config.store).is_absolute():
        say(f"warning: store={config.store} goes with the job's working directory; give an absolute path")
    return Run(config, store, tracker, connected, say, command, recipe)


def report(run: Run, answer: dict[str, Any]) -> None:
    """Shows what came of the run, and adds it to the answer."""
    if "evaluate" in run.artifacts:
        answer["metrics"] = run.artifacts["evaluate"].read_json("metrics.json")
    for source in SOURCES.keys() & run.artifacts.keys():
        answer["stages"][source]["rejects"] = run.artifacts[source].read_json("stats.json")["rejects"]
    for line in closing_lines(run.artifacts, run.config):
        run.say(line)
