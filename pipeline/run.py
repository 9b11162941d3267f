"""Runs the pipeline: python pipeline/run.py [--recipe NAME|FILE] [key=value …] [--plan] [--only S] … [--json]

Plans first, prints why each stage runs, then brings the stages up to date. The same command again finds everything
cached; after a failure it resumes. Exit codes: 0 done, 2 the input is wrong, 1 a stage failed, 130 interrupted.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: its own directory must not be searched for modules, the root must
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.artifacts.garbage import keep_registered
from pipeline.artifacts.store import Store, open_store
from pipeline.config.checks import check_made
from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.config.values import walk_values
from pipeline.execution.summary import closing_lines, plan_rows, run_note
from pipeline.lookup.students import with_student
from pipeline.planning.dag import stages_of
from pipeline.planning.plan import Decision, Selection, plan
from pipeline.planning.sources import read_sources
from pipeline.terminal import Parser, json_command, open_console, text_table

if TYPE_CHECKING:
    from pipeline.execution.runner import Run


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; options and overrides in any order."""
    parser = Parser("run", __doc__)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="dotted overrides, for example student.layers=3")
    add("--recipe", default="demo", metavar="NAME|FILE", help="a recipe of pipeline/recipes, or a YAML file (demo)")
    add("--plan", action="store_true", help="show what would run and why, and run nothing")
    add("--only", default="", metavar="S", help="run this stage alone; what it reads must be there")
    add("--from", default="", metavar="S", dest="start", help="run this stage and all that follow from it again")
    add("--until", default="", metavar="S", help="stop after this stage")
    add("--force", default=[], metavar="S", action="append", help="run this stage even if it is cached")
    add("--ignore-code", action="store_true", help="take artifacts of other code, where nothing else differs")
    add("--json", action="store_true", help="one JSON object on stdout, everything else on stderr")
    return parser.parse_mixed(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return json_command(lambda: parse_arguments(given), run_command, "the same command resumes")


def run_command(options: argparse.Namespace, answer: dict[str, Any]) -> None:
    """Plans, runs and reports; fills `answer` for --json on the way, so that a failed run tells how far it came."""
    config = with_student(load_config(options.recipe, options.overrides))
    stages = stages_of(config)
    store = open_store(config.store, config.store_endpoint)
    command = shlex.join(["python", "pipeline/run.py", "--recipe", options.recipe, *options.overrides])
    selection = Selection(
        options.only, options.start, options.until, tuple(options.force), options.ignore_code, command
    )
    manifests = store.manifests()
    decisions = plan(stages, config, manifests, read_sources(stages, config), selection, store.started)
    for decision in decisions:
        if decision.action == "cached":
            check_made(config, decision.stage, manifests[decision.stage][decision.key])
    console = open_console(sys.stderr if options.json else sys.stdout)
    console.print(text_table(plan_rows(decisions)))
    if options.plan:
        answer["stages"] = planned(decisions, store)
    else:
        execute(config, store, decisions, command, options, console, answer)


def planned(decisions: Sequence[Decision], store: Store) -> dict[str, Any]:
    """The plan as JSON; an artifact that isn't there yet has no URI."""
    from pipeline.execution.runner import describe

    return {
        decision.stage: {
            **describe(decision),
            "uri": store.artifact(decision.stage, decision.key).uri if decision.action == "cached" else None,
        }
        for decision in decisions
    }


def execute(
    config: Config, store: Store, decisions: list[Decision], command: str, options: Any, console: Any, answer: dict
) -> None:
    """Runs the plan with tracking and shows what came of it."""
    from pipeline.execution.cluster import connected, inside_job
    from pipeline.execution.runner import Run, run_pipeline
    from pipeline.tracking.client import PipelineRun, resolve_uri

    tags = {"recipe": options.recipe, "command": command, "mlflow.source.name": "pipeline/run.py"}
    tracker = PipelineRun(resolve_uri(config.tracking_uri), Path(options.recipe).stem, tags)
    if inside_job() and "://" not in config.store and not Path(config.store).is_absolute():
        console.print(f"warning: store={config.store} goes with the job's working directory; give an absolute path")
    run = Run(config, store, tracker, connected, command=command, recipe=options.recipe)
    run.say = lambda line: console.print(line, soft_wrap=True)
    run.check = partial(check_made, config)
    answer |= {"stages": run.stages, "metrics": {}, "mlflow": tracker.ids()}
    run_pipeline(stages_of(config), decisions, run)
    publish(run, decisions)
    if "evaluate" in run.artifacts:
        answer["metrics"] = run.artifacts["evaluate"].read_json("metrics.json")
    if "ingest" in run.artifacts:
        answer["stages"]["ingest"]["rejects"] = run.artifacts["ingest"].read_json("stats.json")["rejects"]
    for line in closing_lines(run.artifacts, options.overrides):
        console.print(line, soft_wrap=True)


def publish(run: "Run", decisions: Sequence[Decision]) -> None:
    """Gives the tracked run its headline numbers and its description, and registers the student."""
    run.tracker.note(run_note(decisions, run.artifacts, run.command))
    if not {"train", "evaluate"} <= run.artifacts.keys():
        return
    run.tracker.metrics(headline(run.artifacts["evaluate"].manifest["metrics"]))
    if run.config.train.check_loaders:
        register(run)
    elif any(decision.action == "run" and decision.stage in ("train", "evaluate") for decision in decisions):
        run.say("not registered: train.check_loaders=false, so its loaders were not compared")


def register(run: "Run") -> None:
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
    keep_registered(
        run.store, student.stage, student.key, student.attempt, asked.register_as
    )  # before a version exists
    if asked.register_alias != "always" and run.tracker.is_registered(asked.register_as, tags, asked.register_alias):
        return
    numbers = headline(evaluation.manifest["metrics"]).get("student", {})
    source = student.manifest.get("mlflow_run_id", "") or run.tracker.run_id
    said = run.tracker.register(asked.register_as, tags, numbers, source, alias=asked.register_alias)
    if said:
        run.say(said)


def test_identity(run: "Run") -> str:
    """What two students must share for their numbers to compare: the ingested data, and which queries were asked."""
    chosen = {path: value for path, value, _ in walk_values(run.config)}
    parts = (run.artifacts["ingest"].key, chosen.get("index.split"), chosen.get("evaluate.queries_per_task") or "all")
    return "/".join(map(str, parts))


def headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of `evaluate` without those of single tasks."""
    return {
        name: headline(value) if isinstance(value, Mapping) else value
        for name, value in metrics.items()
        if name != "tasks"
    }


if __name__ == "__main__":
    sys.exit(main())
