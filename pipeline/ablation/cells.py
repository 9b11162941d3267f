"""A grid on a recipe before it runs: its cells, what each of them needs, and what they share."""

from collections.abc import Sequence
from typing import Any

from pipeline.ablation.costs import Cost, cost_of
from pipeline.ablation.grid import Cell, Grid
from pipeline.artifacts.store import Artifact, open_store
from pipeline.config.checks import check_labels
from pipeline.planning.dag import WITH_OWN_DATA, stages_of
from pipeline.planning.plan import Decision, plan
from pipeline.planning.sources import read_sources
from pipeline.wording import depth_title


class Ablation:
    """A grid on a recipe: its cells, and what each of them needs."""

    def __init__(self, name: str, grid: Grid, cells: Sequence[Cell], recipe: str) -> None:
        self.name, self.grid, self.cells, self.recipe = name, grid, cells, recipe
        self.store = open_store(cells[0].config.store, cells[0].config.store_endpoint)
        self.plans = [self.plan(cell) for cell in cells]

    def plan(self, cell: Cell) -> list[Decision]:
        """What a cell needs by now."""
        stages = stages_of(cell.config)
        check_labels(cell.config, [stage.name for stage in stages])
        return plan(stages, cell.config, self.store.manifests(), read_sources(stages, cell.config))

    def outlook(self) -> str:
        """How much there is to do; what several cells need counts once."""
        needed = {(stage.stage, stage.key) for decisions in self.plans for stage in decisions if stage.action == "run"}
        counts = {stage.name: sum(name == stage.name for name, _ in needed) for stage in WITH_OWN_DATA}
        listed = ", ".join(f"{count} × {name}" for name, count in counts.items() if count) or "nothing"
        return f"{len(self.cells)} cells of {self.name} on {self.recipe}; to run: {listed}"

    def plan_rows(self, common: int) -> list[list[str]]:
        """Each cell with the stages that it would run; `common` overrides are the same in all and not shown."""
        rows = [["table", "variant", "seed", "runs", "overrides"]]
        for cell, decisions in zip(self.cells, self.plans, strict=True):
            runs = [decision.stage for decision in decisions if decision.action == "run"]
            first = f"{runs[0]} and on" if runs else "cached"
            rows.append([cell.table, cell.variant, str(cell.seed), first, " ".join(cell.overrides[common:])])
        return rows

    def cost(self, decisions: Sequence[Decision]) -> Cost | None:
        """What the stages of a finished cell took; None where they were made before this was written down."""
        artifacts = {decision.stage: self.store.artifact(decision.stage, decision.key) for decision in decisions}
        try:
            labels = artifacts["ingest"].read_json("stats.json")["queries"]["by_split"]["train"]
            return cost_of({name: artifact.manifest for name, artifact in artifacts.items()}, labels)
        except KeyError:
            return None

    def features(self) -> Artifact | None:
        """The features of the first cell, where all cells share one backbone: they hold its depth curve."""
        keys = [{decision.stage: decision.key for decision in decisions} for decisions in self.plans]
        first = keys[0].get("features", "")
        if not self.store.has("features", first) or len({key["backbone"] for key in keys}) > 1:
            return None
        return self.store.artifact("features", first)

    def curve(self) -> dict[str, Any] | None:
        """The depth curve of the cells' one backbone."""
        features = self.features()
        return features.read_json("depth_curve.json") if features else None

    def depth_table(self) -> str:
        """The same as a Markdown section; empty where the cells share none."""
        features = self.features()
        if features is None or not features.has("depth_curve.md"):
            return ""
        table = features.read_bytes("depth_curve.md").decode().strip()
        return f"\n\n### {depth_title(features.read_json('depth_curve.json'))}\n\n{table}"
