"""The cells of a grid, run one after the other: what is planned, what came of it, and where it is tracked.

Each cell is a run of the normal pipeline with a record of its own. What is done once for all of them is the planning,
the start of Ray, and the tables at the end.
"""

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.ablation.grid import Cell, Grid
from pipeline.ablation.tables import Outcome, as_json, markdown
from pipeline.artifacts.store import open_store
from pipeline.config.checks import check_made
from pipeline.planning.dag import STAGES
from pipeline.planning.plan import Decision, differences, plan
from pipeline.planning.sources import read_sources
from stages.contract.context import InputError, StageError
from stages.contract.params import Cluster

if TYPE_CHECKING:
    from pipeline.tracking.client import PipelineRun

Connect = Callable[[Cluster], AbstractContextManager[None]]


class Ablation:
    """A grid on a recipe.

    Attributes:
        outcomes: of each cell, None where it was not reached yet.
        tracker: the tracked run that holds the cells' runs, once they run.
    """

    def __init__(self, name: str, grid: Grid, cells: Sequence[Cell], recipe: str, say: Callable[[str], None]) -> None:
        self.name, self.grid, self.cells, self.recipe, self.say = name, grid, cells, recipe, say
        self.store = open_store(cells[0].config.store, cells[0].config.store_endpoint)
        self.outcomes: list[Outcome | None] = [None] * len(cells)
        self.tracker: PipelineRun | None = None
        manifests = self.store.manifests()
        self.plans = [plan(STAGES, cell.config, manifests, read_sources(STAGES, cell.config)) for cell in cells]
        self.seconds = {stage: [one["seconds"] for one in found.values()] for stage, found in manifests.items()}
        self.failed: dict[tuple[str, str], str] = {}

    def pending(self, start: int = 0) -> set[tuple[str, str]]:
        """(stage, key) of all that the cells from `start` on still need; what several need counts once."""
        needed = {
            (decision.stage, decision.key)
            for decisions in self.plans[start:]
            for decision in decisions
            if decision.action == "run"
        }
        return {one for one in needed if one not in self.failed and not self.store.has(*one)}

    def seconds_left(self, start: int) -> float:
        """How long the cells from `start` on may take: each stage as long as such stages took in this store."""
        usual = {stage: sum(times) / len(times) for stage, times in self.seconds.items() if times}
        return sum(usual.get(stage, 0.0) for stage, _ in self.pending(start))

    def outlook(self) -> str:
        """How much there is to do."""
        counts = {stage.name: sum(name == stage.name for name, _ in self.pending()) for stage in STAGES}
        todo = ", ".join(f"{count} × {name}" for name, count in counts.items() if count) or "nothing"
        return f"{len(self.cells)} cells of {self.name} on {self.recipe}; to run: {todo}"

    def plan_rows(self, common: int) -> list[list[str]]:
        """Each cell with the stages that it would run; `common` overrides are the same in all and not shown."""
        rows = [["table", "variant", "seed", "runs", "overrides"]]
        for cell, decisions in zip(self.cells, self.plans, strict=True):
            runs = [decision.stage for decision in decisions if decision.action == "run"]
            first = f"{runs[0]} and on" if runs else "cached"
            rows.append([cell.table, cell.variant, str(cell.seed), first, " ".join(cell.overrides[common:])])
        return rows

    def run(self, tracking_uri: str, command: str) -> None:
        """Runs the cells in order, in one cluster that the first one that needs it starts."""
        from pipeline.tracking.client import PipelineRun

        tags = {"grid": self.name, "recipe": self.recipe, "command": command}
        self.tracker = PipelineRun(tracking_uri, f"{self.name} of {Path(self.recipe).stem}", tags)
        known: dict[str, Outcome] = {}
        with ExitStack() as stack:
            connect = shared_cluster(stack)
            for number, cell in enumerate(self.cells):
                key = self.plans[number][-1].key
                if key not in known:
                    known[key] = self.outcome(cell, self.unchanged(number), connect)
                self.outcomes[number] = known[key]
                self.tell(number)

    def unchanged(self, number: int) -> list[Decision]:
        """What the cell needs by now.

        Raises StageError where code or data are others than at the start: cells of one table must be made by one code.
        """
        config = self.cells[number].config
        decisions = plan(STAGES, config, self.store.manifests(), read_sources(STAGES, config))
        for now, before in zip(decisions, self.plans[number], strict=True):
            if now.key != before.key:
                what = ", ".join(differences(now.parts, before.parts, {}))
                raise StageError(f"stage {now.stage} changed while the grid ran ({what}), and a table needs one code")
        return decisions

    def outcome(self, cell: Cell, decisions: list[Decision], connect: Connect) -> Outcome:
        """What comes of one cell: read from the store, computed, or failed with an earlier one."""
        key = decisions[-1].key
        upstream = [self.failed[one.stage, one.key] for one in decisions if (one.stage, one.key) in self.failed]
        if upstream:
            return Outcome(key, error=upstream[0])
        if all(decision.action == "cached" for decision in decisions):
            return self.adopt(cell, key)
        return self.compute(cell, decisions, connect)

    def adopt(self, cell: Cell, key: str) -> Outcome:
        """A cell that an earlier call finished: a light run in the tracker, so that its tree has no holes."""
        artifact = self.store.artifact(STAGES[-1].name, key)
        metrics = artifact.read_json("metrics.json")
        tracked = self.tracker.child(cell.label, {**self.tags(cell), "cache": "hit", "uri": artifact.uri})
        tracked.params({"variant": cell.variant, "seed": cell.seed})
        tracked.metrics(headline(metrics["student"]))
        tracked.end("FINISHED")
        return Outcome(key, metrics, uri=artifact.uri)

    def compute(self, cell: Cell, decisions: list[Decision], connect: Connect) -> Outcome:
        """Runs a cell through the pipeline. Its student is not registered: a grid would bury the champion."""
        from pipeline.execution.runner import Run, run_pipeline
        from pipeline.tracking.client import PipelineRun

        command = shlex.join(["python", "pipeline/run.py", "--recipe", self.recipe, *cell.overrides])
        tracker = PipelineRun(self.tracker.ids()["tracking_uri"], cell.label, {**self.tags(cell), "command": command})
        run = Run(cell.config, self.store, tracker, connect, self.say, command, self.recipe, self.name)
        run.check = partial(check_made, cell.config)
        outcome, start = Outcome(decisions[-1].key), time.monotonic()
        try:
            run_pipeline(STAGES, decisions, run)
        except (StageError, InputError) as error:
            outcome.error = str(error)
            stopped = [one for one in decisions if run.stages[one.stage]["action"] == "failed"]
            self.failed |= {(one.stage, one.key): str(error) for one in stopped}
        else:
            artifact = run.artifacts[STAGES[-1].name]
            outcome.metrics, outcome.uri = artifact.read_json("metrics.json"), artifact.uri
            tracker.metrics(headline(outcome.metrics["student"]))
        for name, stage in run.stages.items():
            if stage["action"] == "run" and stage["seconds"]:
                self.seconds.setdefault(name, []).append(stage["seconds"])
        outcome.seconds = round(time.monotonic() - start, 1)
        return outcome

    def tags(self, cell: Cell) -> dict[str, str]:
        """What a cell's run is found by."""
        told = {"grid": self.name, "table": cell.table, "variant": cell.variant, "seed": str(cell.seed)}
        return {**told, "mlflow.parentRunId": self.tracker.run_id}

    def tell(self, number: int) -> None:
        """One line for a cell, with the time that the rest may take."""
        outcome, left = self.outcomes[number], self.seconds_left(number + 1)
        if outcome.metrics:
            came = f"hit@5 {outcome.metrics['student']['local']['hit@5']:.3f}"
        else:
            came = f"failed: {outcome.error}"
        took = f", {spell_time(outcome.seconds)}" if outcome.seconds else ""
        rest = f"; about {spell_time(left)} left" if left else ""
        self.say(f"[{number + 1}/{len(self.cells)}] {self.cells[number].label}: {came}{took}{rest}")

    def curve(self) -> dict[str, Any] | None:
        """The depth curve of the first cell's features, with its table, where all cells share one backbone."""
        keys = [{decision.stage: decision.key for decision in decisions} for decisions in self.plans]
        first = keys[0].get("features", "")
        if not self.store.has("features", first) or len({key["backbone"] for key in keys}) > 1:
            return None
        features = self.store.artifact("features", first)
        return {
            **features.read_json("depth_curve.json"),
            "table": features.read_bytes("depth_curve.md").decode().strip(),
        }

    def finish(self, head: str, interrupted: bool) -> tuple[str, dict[str, Any]]:
        """The Markdown section under `head` and the JSON answer of what is known so far; both are tracked as well."""
        curve = self.curve()
        known = (self.grid, self.cells, self.outcomes, curve)
        section = f"{head}\n\n{markdown(*known)}"
        if curve:
            title = "Depths of the backbone, cut and not trained, on a validation sample"
            section += f"\n\n### {title}\n\n{curve['table']}"
        answer = as_json(self.cells, self.outcomes, curve)
        self.tracker.note(f"{head}\n\n{markdown(*known, by_set=False)}")
        self.tracker.text("ablation.md", section)
        self.tracker.text("ablation.json", json.dumps(answer, indent=1, ensure_ascii=False))
        for name, rows in answer["tables"].items():
            means = {row["variant"]: row["local hit@5"]["mean"] for row in rows if row["local hit@5"]["n"]}
            self.tracker.metrics({"local hit@5": {name: means}})
        failed = any(outcome and outcome.error for outcome in self.outcomes)
        self.tracker.end("KILLED" if interrupted else "FAILED" if failed else "FINISHED")
        return section, {**answer, "mlflow": self.tracker.ids()}


def shared_cluster(stack: ExitStack) -> Connect:
    """What `run_pipeline` connects with: the first call starts Ray for as long as `stack` lives, others find it."""
    from pipeline.execution import cluster

    started = False

    @contextmanager
    def connect(params: Cluster) -> Iterator[None]:
        nonlocal started
        if not started:
            stack.enter_context(cluster.connected(params))
            started = True
        yield

    return connect


def headline(student: Mapping[str, Any]) -> dict[str, Any]:
    """The student's numbers without those of single sets."""
    return {
        name: headline(value) if isinstance(value, Mapping) else value
        for name, value in student.items()
        if name != "tasks"
    }


def spell_time(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
