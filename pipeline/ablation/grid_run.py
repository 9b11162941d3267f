"""A grid under way: its cells one after the other, what came of each, where it is tracked, and the tables at the end.

Each cell is a run of the normal pipeline with a record of its own. What is done once for all of them is the planning,
the start of Ray, and the tables.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.ablation.cells import Ablation
from pipeline.ablation.document import (
    check_output,
    portable_command,
    section_head,
    write_pictures,
    write_section,
)
from pipeline.ablation.grid import Cell, find_cells, read_grid
from pipeline.ablation.tables import Outcome, cells_json, collect, markdown, terminal_tables
from pipeline.execution import cluster
from pipeline.execution.joining import check_cluster
from pipeline.execution.needs import check_artifact
from pipeline.execution.publish import headline
from pipeline.execution.runner import Run, run_pipeline
from pipeline.planning.dag import stages_of
from pipeline.planning.plan import Decision, differences
from pipeline.terminal import open_console, text_table
from pipeline.tracking.client import PipelineRun, resolve_uri
from stages.contract.context import InputError, StageError
from stages.contract.params import Cluster

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Connect = Callable[[Cluster], AbstractContextManager[None]]
LAST = "evaluate"
"""The stage that says what a cell is worth."""


def run_grid(options: argparse.Namespace, answer: dict[str, Any]) -> None:
    """Plans all cells, runs them, writes the tables; raises StageError where cells failed."""
    path, grid = read_grid(options.grid)
    cells = find_cells(path, grid, options.recipe, options.overrides)
    check_output(options.output)
    console = open_console(sys.stderr if options.json else sys.stdout)
    ablation = Ablation(path.stem, grid, cells, options.recipe)
    console.print(ablation.outlook(), soft_wrap=True)
    if options.plan:
        console.print(text_table(ablation.plan_rows(len(grid.base) + len(options.overrides))))
        answer |= {"cells": [list(cell.overrides) for cell in cells]}
        return
    ablation.store.objects.prepare()  # before anything is tracked
    uri, say = resolve_uri(cells[0].config.tracking_uri), partial(console.print, soft_wrap=True)
    run, interrupted = GridRun(ablation, uri, portable_command(options), say), True
    try:
        run.run()
        interrupted = False
    finally:  # also after Ctrl-C or a change of the code: what is known so far
        pictures = write_pictures(options.output, f"{Path(options.recipe).stem}-{ablation.name}", run.pictures())
        section = run.finish(section_head(ablation.name, options), interrupted, pictures)
        answer |= {"cells": cells_json(cells, run.outcomes), "mlflow": run.tracker.ids()}
        if any(run.outcomes):
            for part in terminal_tables(grid, cells, run.outcomes, ablation.curve()):
                console.print(part)
        if any(run.outcomes) and options.output:
            write_section(options.output, f"ablation {Path(options.recipe).stem} {ablation.name}", section)
            say(f"tables: {options.output}")
    failed = [cell.label for cell, outcome in zip(cells, run.outcomes, strict=True) if outcome and outcome.error]
    if failed:
        raise StageError(f"{len(failed)} of {len(cells)} cells failed, first {failed[0]}")


class GridRun:
    """An ablation under way, tracked as one run with a child for each cell.

    Attributes:
        outcomes: of each cell, None where it was not reached yet.
    """

    def __init__(self, ablation: Ablation, tracking_uri: str, command: str, say: Callable[[str], None]) -> None:
        tags = {"grid": ablation.name, "recipe": ablation.recipe, "command": command}
        self.tracker = PipelineRun(tracking_uri, f"{ablation.name} of {Path(ablation.recipe).stem}", tags)
        self.ablation, self.tracking_uri, self.say = ablation, tracking_uri, say
        self.outcomes: list[Outcome | None] = [None] * len(ablation.cells)
        self.failed: dict[tuple[str, str], str] = {}

    def run(self) -> None:
        """Runs the cells in order, in one cluster that the first one that needs it starts."""
        cells, known = self.ablation.cells, dict[str, Outcome]()
        with ExitStack() as stack:
            connect = shared_cluster(stack)
            for number, cell in enumerate(cells):
                key = self.ablation.plans[number][-1].key
                if key not in known:
                    known[key] = self.outcome(cell, self.unchanged(number), connect)
                self.outcomes[number] = known[key]
                self.say(f"[{number + 1}/{len(cells)}] {cell.label}: {known[key].summary}")

    def unchanged(self, number: int) -> list[Decision]:
        """What the cell needs by now.

        Raises StageError where code or data are others than at the start: cells of one table need one code.
        """
        decisions = self.ablation.plan(self.ablation.cells[number])
        for now, before in zip(decisions, self.ablation.plans[number], strict=True):
            if now.key != before.key:
                what = ", ".join(differences(now.parts, before.parts, {}))
                raise StageError(f"stage {now.stage} changed while the grid ran ({what}), and a table needs one code")
        return decisions

    def outcome(self, cell: Cell, decisions: list[Decision], connect: Connect) -> Outcome:
        """What comes of one cell: read from the store, computed, or failed, perhaps with an earlier one."""
        key = decisions[-1].key
        for decision in decisions:
            if error := self.failed.get((decision.stage, decision.key)):
                return Outcome(key, error=error)
        try:
            if all(decision.action == "cached" for decision in decisions):
                return self.adopt(cell, decisions)
            return self.compute(cell, decisions, connect)
        except (StageError, InputError) as error:
            return Outcome(key, error=str(error))

    def adopt(self, cell: Cell, decisions: list[Decision]) -> Outcome:
        """A cell that an earlier call finished: a light run in the tracker, so that its tree has no holes."""
        key = decisions[-1].key
        artifact = self.ablation.store.artifact(LAST, key)
        metrics = artifact.read_json("metrics.json")
        tracked = self.tracker.child(cell.label, {**self.tags(cell), "cache": "hit", "uri": artifact.uri})
        tracked.params({"variant": cell.variant, "seed": cell.seed})
        tracked.metrics(headline(metrics["student"]))
        tracked.end("FINISHED")
        return Outcome(key, metrics, uri=artifact.uri, cost=self.ablation.cost(decisions))

    def compute(self, cell: Cell, decisions: list[Decision], connect: Connect) -> Outcome:
        """Runs a cell through the pipeline. Its student is not registered: a grid would bury the champion."""
        grid = self.ablation
        command = shlex.join(["python", "pipeline/run.py", "--recipe", grid.recipe, *cell.overrides])
        tracker = PipelineRun(self.tracking_uri, cell.label, {**self.tags(cell), "command": command})
        run = Run(cell.config, grid.store, tracker, connect, self.say, command, grid.recipe, grid.name)
        run.check = partial(check_artifact, cell.config, decisions)
        run.joined = partial(check_cluster, cell.config, decisions)
        try:
            run_pipeline(stages_of(cell.config), decisions, run)
        except (StageError, InputError) as error:
            for decision in decisions:
                if run.stages[decision.stage]["action"] == "failed":
                    self.failed[decision.stage, decision.key] = str(error)
            raise
        artifact = run.artifacts[LAST]
        metrics = artifact.read_json("metrics.json")
        tracker.metrics(headline(metrics["student"]))
        return Outcome(decisions[-1].key, metrics, uri=artifact.uri, cost=self.ablation.cost(decisions))

    def tags(self, cell: Cell) -> dict[str, str]:
        """What a cell's run is found by."""
        facts = {"grid": self.ablation.name, "table": cell.table, "variant": cell.variant, "seed": str(cell.seed)}
        return {**facts, "mlflow.parentRunId": self.tracker.run_id}

    def pictures(self) -> dict[str, "Figure"]:
        """The tables that differ in depth, as pictures."""
        from pipeline.ablation.picture import draw_depths, shows_depths

        tables, curve = collect(self.ablation.cells, self.outcomes), self.ablation.curve()
        return {name: draw_depths(rows, curve, name) for name, rows in tables.items() if shows_depths(rows)}

    def finish(self, head: str, interrupted: bool, pictures: Mapping[str, str]) -> str:
        """The Markdown section under `head` of what is known so far; it is tracked as well, with the means."""
        grid, cells, curve = self.ablation.grid, self.ablation.cells, self.ablation.curve()
        tables = markdown(grid, cells, self.outcomes, curve, pictures=pictures)
        section = f"{head}\n\n{tables}{self.ablation.depth_table()}"
        self.tracker.note(f"{head}\n\n{markdown(grid, cells, self.outcomes, curve, by_set=False)}")
        self.tracker.text("ablation.md", section)
        for name, rows in collect(cells, self.outcomes).items():
            self.tracker.metrics({"local hit@5": {name: {row.variant: row.quality for row in rows if row.finished}}})
        failed = any(outcome and outcome.error for outcome in self.outcomes)
        self.tracker.end("KILLED" if interrupted else "FAILED" if failed else "FINISHED")
        return section


def shared_cluster(stack: ExitStack) -> Connect:
    """What `run_pipeline` connects with: the first call starts Ray until `stack` is closed, later ones find it."""
    started = False

    @contextmanager
    def connect(params: Cluster) -> Iterator[None]:
        nonlocal started
        if not started:
            stack.enter_context(cluster.connected(params))
            started = True
        yield

    return connect
