"""Carries out a plan: opens what is cached, runs what isn't, commits, tracks, and records the run.

Stages run one after the other in this process: Ray Data and Ray Train are distributed by themselves and each wants the
whole cluster. Everything that a run touches comes in as an argument, so that tests run small graphs of their own.
"""

import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

from pipeline.artifacts.leases import Lease, LeaseLost
from pipeline.artifacts.processes import this_process
from pipeline.artifacts.store import Artifact, Attempt, Store
from pipeline.config.sections import Config
from pipeline.config.values import walk_values
from pipeline.execution.errors import explain
from pipeline.execution.provenance import git_state, now, package_versions
from pipeline.execution.records import mark_killed
from pipeline.execution.shared import SharedArtifacts
from pipeline.planning.dag import Stage, keyed_section
from pipeline.planning.plan import Decision
from pipeline.planning.sources import stage_code
from pipeline.tracking.client import PipelineRun, StageRun
from stages.contract.context import Context, InputError, StageError
from stages.contract.params import Cluster, Section

HEADLINE = ("seed", "data.kind", "backbone.source", "backbone.tiny.layers", "student.layers", "train.loss")


@dataclass
class Run:
    """One run of the pipeline: what it was asked for, what it works with, and what came of each stage so far.

    `grid` names the grid that the run is a cell of; searches prefer runs that stand for themselves. `check(stage,
    artifact)` is asked of each artifact before later stages read it, and raises InputError where they could not;
    `joined(run)` is asked once, when the run has its cluster and nothing is computed yet.
    """

    config: Config
    store: Store
    tracker: PipelineRun
    connect: Callable[[Cluster], AbstractContextManager[None]]
    say: Callable[[str], None] = print
    command: str = "python pipeline/run.py"
    recipe: str = ""
    grid: str = ""
    id: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}")
    started: str = field(default_factory=now)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    shared: list[tuple[str, str]] = field(default_factory=list)
    """(name, key) of artifacts that stages share, from before they are used: garbage collection leaves them alone."""
    check: Callable[[str, Artifact], None] = lambda stage, artifact: None
    joined: Callable[["Run"], None] = lambda run: None

    def record(self, status: str) -> None:
        """Writes the run's record, from which later runs and searches find its artifacts."""
        self.store.write_run(
            {
                "id": self.id,
                "status": status,
                "started": self.started,
                "finished": None if status == "running" else now(),
                "recipe": self.recipe,
                "grid": self.grid,
                "command": self.command,
                "config": self.config.model_dump(mode="json"),
                "stages": self.stages,
                "shared": self.shared,
                "mlflow": self.tracker.ids(),
                "host": this_process(),
            }
        )


def run_pipeline(stages: tuple[Stage, ...], decisions: list[Decision], run: Run) -> None:
    """Brings every selected stage up to date, in order; fills `run.stages` and `run.artifacts`.

    Raises InputError or StageError (one line) for the stage that can't go on; the run's record says how it ended.
    """
    for decision in decisions:
        run.stages[decision.stage] = describe(decision)
    mark_killed(run.store, run.tracker.interrupted, run.tracker.ids()["tracking_uri"])
    run.record("running")
    run.tracker.params(run_params(run.config))
    status = "failed"
    try:
        with ExitStack() as stack:
            ready = False
            for stage, decision in zip(stages, decisions, strict=True):
                if decision.action == "run" and not ready:
                    stack.enter_context(run.connect(run.config.cluster))
                    run.joined(run)
                    ready = True
                bring_up_to_date(stage, decision, run)
                if stage.name in run.artifacts:
                    run.check(stage.name, run.artifacts[stage.name])
                if decision.action == "run":
                    run.record("running")
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        try:
            run.record(status)
        except (StageError, InputError) as error:
            run.say(f"warning: the run's record is not up to date: {error}")
        run.tracker.end({"finished": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED"))


def describe(decision: Decision) -> dict[str, Any]:
    """A decision as the command line and the run's record show it."""
    return {
        "key": decision.key,
        "action": decision.action,
        "reasons": list(decision.reasons),
        "seconds": 0.0,
        "uri": None,
    }


def bring_up_to_date(stage: Stage, decision: Decision, run: Run) -> None:
    """Opens or computes the artifact of one stage."""
    if decision.action == "skipped":
        return
    if decision.action == "cached":
        adopt(stage, run.store.artifact(stage.name, decision.key), decision, run)
        return
    with run.store.locked(stage.name, decision.key, run.say) as lease:
        written = fresh_artifact(stage, decision, run)
        if written:  # by another run, while this one waited
            run.stages[stage.name] |= {"action": "cached", "reasons": ["computed by another run"]}
            adopt(stage, written, decision, run)
        else:
            compute(stage, decision, run, lease)


def adopt(stage: Stage, artifact: Artifact, decision: Decision, run: Run) -> None:
    """Takes a committed artifact as this run's, and tracks it with its origin's numbers."""
    run.artifacts[decision.stage] = artifact
    run.stages[decision.stage] |= {"uri": artifact.uri, "attempt": artifact.attempt}
    origin = artifact.manifest.get("mlflow_run_id", "")
    tags = {"cache": "hit", "key": decision.key, "uri": artifact.uri, "source_run_id": origin}
    tracked = run.tracker.stage(decision.stage, tags)
    tracked.params(stage_params(stage, run.config))
    track_inputs(tracked, artifact, decision, run)
    tracked.metrics(artifact.manifest["metrics"])
    tracked.end("FINISHED")


def fresh_artifact(stage: Stage, decision: Decision, run: Run) -> Artifact | None:
    """The artifact of the decision's key if it is there and was made from this run's inputs."""
    if decision.forced or not run.store.has(stage.name, decision.key):
        return None
    artifact = run.store.artifact(stage.name, decision.key)
    made_from = {name: entry["attempt"] for name, entry in artifact.manifest["inputs"].items()}
    return artifact if made_from == {name: run.artifacts[name].attempt for name in stage.inputs} else None


def compute(stage: Stage, decision: Decision, run: Run, lease: Lease) -> None:
    """Runs a stage and commits what it wrote."""
    run.say(f"{stage.name}: running")
    replace = run.store.has(stage.name, decision.key)
    inputs = {name: run.artifacts[name].attempt for name in stage.inputs}
    attempt = run.store.begin(stage.name, decision.key, fresh=decision.forced, inputs=inputs)
    tracked = run.tracker.stage(
        stage.name, {"cache": "miss", "key": decision.key, "reasons": "; ".join(decision.reasons)}
    )
    tracked.params(stage_params(stage, run.config))
    shared = shared_artifacts(stage, decision, run)
    start = time.monotonic()
    try:
        refuse_other_code(stage, decision, run.config)
        metrics = stage.load().run(stage_context(stage, attempt, tracked, run, shared)) or {}
        seconds = round(time.monotonic() - start, 3)
        refuse_other_code(stage, decision, run.config)
        facts = manifest_facts(decision, run, seconds, tracked.run_id)
        facts |= {"metrics": dict(metrics), "shared": shared.references(), "resumed": attempt.resumed}
        artifact = run.store.commit(attempt, facts, replace, lease)
    except BaseException as error:
        run.stages[stage.name] |= {"action": "failed", "seconds": round(time.monotonic() - start, 3)}
        if not lease.lost and changed_code(stage, decision, run.config):
            with suppress(StageError, InputError):
                run.store.discard(attempt)
        # Ray takes Ctrl-C and SIGTERM as a call to leave the process, which would end it in the middle of a sentence.
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit) and not (lease.lost or shared.lost)
        tracked.end("KILLED" if interrupted else "FAILED")
        if interrupted:
            raise KeyboardInterrupt from error
        if isinstance(error, InputError):
            raise
        if lease.lost or shared.lost:
            error = LeaseLost(f"another run took over {stage.name} {decision.key} while this one was out of reach")
        raise stage_error(stage, error, run) from error
    run.artifacts[stage.name] = artifact
    run.stages[stage.name] |= {"seconds": seconds, "uri": artifact.uri, "attempt": artifact.attempt}
    track_inputs(tracked, artifact, decision, run)
    tracked.tag("uri", artifact.uri)
    # A training's last numbers go where its curves end; without a step they would stand at their start.
    tracked.metrics({**metrics, "seconds": seconds}, step=metrics.get("step"))
    tracked.end("FINISHED")
    run.say(f"{stage.name}: done in {seconds:.1f} s")


def refuse_other_code(stage: Stage, decision: Decision, config: Config) -> None:
    """Raises StageError where the stage's code is another than when the run was planned, which its key tells."""
    if changed := changed_code(stage, decision, config):
        raise StageError(f"{changed[0]} changed while the run was under way, so what was made meanwhile is not kept")


def changed_code(stage: Stage, decision: Decision, config: Config) -> list[str]:
    """Files of the stage's code that are others than when the run was planned."""
    now, planned = stage_code(stage, config, decision.root), decision.parts["code"]
    return sorted(path for path in {*now, *planned} if now.get(path) != planned.get(path))


def stage_error(stage: Stage, error: BaseException, run: Run) -> StageError:
    """The failure in one line; what Python knows about it goes to a file beside the run's record."""
    if isinstance(error, StageError):
        return StageError(f"stage {stage.name} failed: {explain(error)}")
    with suppress(StageError, InputError, OSError):  # the store itself may be what failed
        place = run.store.note(run.id, "traceback.txt", "".join(traceback.format_exception(error)))
        return StageError(f"stage {stage.name} failed: {explain(error)} (traceback: {place})")
    return StageError(f"stage {stage.name} failed: {explain(error)}")


def stage_context(stage: Stage, attempt: Attempt, tracked: StageRun, run: Run, shared: SharedArtifacts) -> Context:
    """What the stage may see: its declared sections and inputs, and nothing else."""
    params = parameters(stage, run.config)
    inputs = {name: run.artifacts[name] for name in stage.inputs}
    return Context(params, run.config.cluster, inputs, attempt, tracked, shared)


def parameters(stage: Stage, config: Config) -> SimpleNamespace:
    """Its sections by their last name, so that the code of `ingest` finds `distill.data` as `data`; and what it reads
    of others."""
    params: dict[str, Any] = {name.rpartition(".")[2]: attrgetter(name)(config) for name in stage.sections}
    for path, value in stage.reads(config).items():
        section, _, name = path.rpartition(".")
        setattr(params.setdefault(section, SimpleNamespace()), name, value)
    return SimpleNamespace(**params)


def shared_artifacts(stage: Stage, decision: Decision, run: Run) -> SharedArtifacts:
    """What the stage shares with others of its kind, in this run's store."""
    common = {path: value for path, value in decision.parts["params"].items() if path.startswith("cluster.")}

    def announce(name: str, key: str) -> None:
        run.shared.append((name, key))
        run.record("running")

    inputs = {name: run.artifacts[name] for name in stage.inputs}
    facts = manifest_facts(decision, run, 0.0, "")
    return SharedArtifacts(run.store, inputs, common, facts, run.say, announce)


def stage_params(stage: Stage, config: Section) -> dict[str, Any]:
    """{dotted path: value} of the stage's sections, for MLflow."""
    return {path: value for path, value, _ in walk_values(config) if keyed_section(path) in stage.sections}


def run_params(config: Section) -> dict[str, Any]:
    """{dotted path: value} that distinguishes runs: what isn't default, and what everybody asks for first."""
    defaults = {path: value for path, value, _ in walk_values(type(config)())}
    return {path: value for path, value, _ in walk_values(config) if path in HEADLINE or value != defaults[path]}


def track_inputs(tracked: StageRun, artifact: Artifact, decision: Decision, run: Run) -> None:
    """Logs the digests of what the stage read and wrote: an artifact's key is its digest."""
    for name in decision.parts["inputs"]:
        tracked.dataset(name, run.artifacts[name].uri, run.artifacts[name].key, "input")
    tracked.dataset(artifact.stage, artifact.uri, artifact.key, "output")


def manifest_facts(decision: Decision, run: Run, seconds: float, mlflow_run_id: str) -> dict[str, Any]:
    """What the manifest tells besides the files: the key's parts in clear, and where and how the artifact was made."""
    return {
        "parts": dict(decision.parts),
        "inputs": {
            name: {"key": run.artifacts[name].key, "attempt": run.artifacts[name].attempt}
            for name in decision.parts["inputs"]
        },
        "created": now(),
        "seconds": seconds,
        "run": run.id,
        "mlflow_run_id": mlflow_run_id,
        "git": git_state(),
        "packages": package_versions(),
        "config": run.config.model_dump(mode="json"),
    }
