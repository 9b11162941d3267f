"""The tables of an ablation: mean and spread over seeds of each variant's quality and cost, as Markdown.

Pure: cells and their outcomes in, text out. The spread is the standard deviation over the seeds (n - 1), given where
there are at least two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any

from rich.table import Table

from pipeline.ablation.costs import Cost, cost_rows
from pipeline.ablation.grid import Cell, Grid
from pipeline.config.values import get_value
from pipeline.terminal import text_table
from stages.evaluation.markdown_table import markdown_table

HEADLINE = "hit@5"
NOTES = f"{HEADLINE} is the mean over the evaluation sets; ± is the standard deviation over n seeds."
TIMED = """Milliseconds are the median of one query at a time; all depths of the backbone were timed in one process,
turn by turn, and a variant has the time of its depth."""
ALONE = """Milliseconds are the median of one query at a time, timed in each cell by itself: what else the machine did
then is in them."""

Curve = Mapping[str, Any] | None
"""The content of depth_curve.json, where there is one."""


@dataclass
class Outcome:
    """What came of a cell: metrics.json of its evaluation, or the one line that says why there is none."""

    key: str
    metrics: Mapping[str, Any] | None = None
    error: str = ""
    uri: str = ""
    cost: Cost | None = None

    @property
    def summary(self) -> str:
        """In one line."""
        return f"hit@5 {self.metrics['student']['local'][HEADLINE]:.3f}" if self.metrics else f"failed: {self.error}"


@dataclass
class VariantRow:
    """A variant in a table: the outcomes of its seeds."""

    variant: str
    seeds: list[int] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def finished(self) -> list[Mapping[str, Any]]:
        """The student's metrics of the seeds that came to an end."""
        return [outcome.metrics["student"] for outcome in self.outcomes if outcome.metrics]

    def values(self, *path: str) -> list[float]:
        """One number of every finished seed."""
        return [get_value(student, path) for student in self.finished]

    @property
    def costs(self) -> list[Cost]:
        """What its finished seeds took."""
        return [outcome.cost for outcome in self.outcomes if outcome.cost]

    @property
    def asymmetric(self) -> list[float]:
        """hit@5 of the student's queries on the teacher's index, of the seeds that were asked for it."""
        known = [outcome.metrics for outcome in self.outcomes if outcome.metrics and "asymmetric" in outcome.metrics]
        return [get_value(metrics, ("asymmetric", "local", HEADLINE)) for metrics in known]

    @property
    def quality(self) -> float:
        """Mean hit@5 in the own pools, of a row that has finished seeds."""
        return mean(self.values("local", HEADLINE))


def collect(cells: Sequence[Cell], outcomes: Sequence[Outcome | None]) -> dict[str, list[VariantRow]]:
    """table → rows, in the grid's order; a cell without an outcome was not reached."""
    tables: dict[str, dict[str, VariantRow]] = {}
    for cell, outcome in zip(cells, outcomes, strict=True):
        row = tables.setdefault(cell.table, {}).setdefault(cell.variant, VariantRow(cell.variant))
        row.seeds.append(cell.seed)
        row.outcomes += [outcome] if outcome else []
    return {name: list(rows.values()) for name, rows in tables.items()}


def mean_and_spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """`0.712 ± 0.004`; the mean alone of one value, a dash for none."""
    if not values:
        return "–"
    spread = f" ± {form.format(stdev(values))}" if len(values) > 1 else ""
    return f"{form.format(mean(values))}{spread}"


def reference_quality(tables: Mapping[str, Sequence[VariantRow]], reference: str) -> float | None:
    """The mean hit@5 of the reference, which is the same in every table that holds it."""
    rows = [row for rows in tables.values() for row in rows if row.variant == reference and row.finished]
    return rows[0].quality if rows else None


def milliseconds(row: VariantRow, curve: Curve) -> list[float]:
    """Of a query: the time of the variant's depth in the curve; of each finished cell where there is no curve."""
    if not curve:
        return row.values("latency_ms", "median")
    known = {entry["layers"]: entry["latency_ms"]["median"] for entry in curve["layers"]}
    return sorted({known[layers] for layers in row.values("layers")})


def quality_rows(rows: Sequence[VariantRow], reference: float | None, curve: Curve) -> list[list[str]]:
    """The head and a line for each variant: layers, quality in both pools, what it costs, and how many seeds."""
    share, other = ["kept"] if reference else [], ["teacher's index"] if any(row.asymmetric for row in rows) else []
    head = ["variant", "layers", "own pools", *share, "union pool", *other]
    head += ["ms per query", "million parameters", "n"]
    lines = []
    for row in rows:
        kept = [f"{row.quality / reference:.1%}" if row.finished else "–"] if reference else []
        layers = sorted({student["layers"] for student in row.finished})
        lines.append(
            [
                row.variant,
                ", ".join(map(str, layers)) or "–",
                mean_and_spread(row.values("local", HEADLINE)),
                *kept,
                mean_and_spread(row.values("union", HEADLINE)),
                *([mean_and_spread(row.asymmetric)] if other else []),
                mean_and_spread(milliseconds(row, curve), "{:.1f}"),
                mean_and_spread([value / 1e6 for value in row.values("parameters")][:1], "{:,.2f}"),
                f"{len(row.finished)}" + (f" of {len(row.seeds)}" if len(row.finished) < len(row.seeds) else ""),
            ]
        )
    return [head, *lines]


def task_rows(rows: Sequence[VariantRow]) -> list[list[str]]:
    """The head and a line for each variant: hit@5 of every evaluation set in its own pool."""
    first = next((student for row in rows for student in row.finished), None)
    if first is None:
        return []
    tasks = first["local"]["tasks"]
    labels = [task.get("label", name) for name, task in tasks.items()]
    names = labels if len(set(labels)) == len(labels) else list(tasks)
    lines = [
        [row.variant, *(mean_and_spread(row.values("local", "tasks", name, HEADLINE)) for name in tasks)]
        for row in rows
    ]
    return [["variant", *names], *lines]


def failure_lines(rows: Sequence[VariantRow]) -> list[str]:
    """One line for each cell that failed."""
    return [
        f"- {row.variant}, seed {seed}: {outcome.error}"
        for row in rows
        for seed, outcome in zip(row.seeds, row.outcomes, strict=False)
        if outcome.error
    ]


def chance_line(outcomes: Sequence[Outcome | None]) -> str:
    """What a random ranking would reach."""
    known = [
        outcome.metrics["chance"]
        for outcome in outcomes
        if outcome and outcome.metrics and "chance" in outcome.metrics
    ]
    if not known:
        return ""
    local, union = (known[0][scope][HEADLINE] for scope in ("local", "union"))
    return f"A random ranking reaches {local:.3f} in the own pools and {union:.3f} in the union pool."


def seeds_line(grid: Grid) -> str:
    """What the seeds change."""
    given = f"{' and '.join(grid.vary)} = {', '.join(map(str, grid.seeds))}"
    same = (
        "everything is drawn again" if "seed" in grid.vary else "all that they do not reach is the same in every cell"
    )
    return f"Seeds: {given}; {same}."


def markdown(
    grid: Grid,
    cells: Sequence[Cell],
    outcomes: Sequence[Outcome | None],
    curve: Curve,
    by_set: bool = True,
    pictures: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """All tables with what a reader must know about them; without those of single sets where space is short.

    `pictures` are the files that show tables, by their names.
    """
    tables = collect(cells, outcomes)
    reference = reference_quality(tables, grid.reference)
    share = [f"`kept` is the share of the hit@5 of “{grid.reference}”."] if reference else []
    notes = [NOTES, *share, TIMED if curve else ALONE, seeds_line(grid), chance_line(outcomes)]
    parts = [*filter(None, [grid.about.strip()]), " ".join(" ".join(notes).split())]
    if unreached := sum(outcome is None for outcome in outcomes):
        parts += [f"{unreached} of {len(cells)} cells were not reached; the same command goes on."]
    for name, rows in tables.items():
        parts += [f"### {name}", markdown_table(quality_rows(rows, reference, curve))]
        parts += [f"![{name}: {HEADLINE} over milliseconds of a query]({pictures[name]})"] if name in pictures else []
        if by_set and (tasks := task_rows(rows)):
            parts += [f"{HEADLINE} of each set in its own pool:", markdown_table(tasks)]
        if by_set and any(row.costs for row in rows):
            took = cost_rows([(row.variant, row.costs) for row in rows])
            parts += ["What it took, the training of the teacher itself apart:", markdown_table(took)]
        if failed := failure_lines(rows):
            parts += ["Failed:\n" + "\n".join(failed)]
    return "\n\n".join(parts)


def terminal_tables(
    grid: Grid, cells: Sequence[Cell], outcomes: Sequence[Outcome | None], curve: Curve
) -> Iterator[str | Table]:
    """The same tables for the terminal, each below its name."""
    tables = collect(cells, outcomes)
    reference = reference_quality(tables, grid.reference)
    for name, rows in tables.items():
        yield f"{name}: {HEADLINE}, mean ± standard deviation over seeds"
        yield text_table(quality_rows(rows, reference, curve))


def cells_json(cells: Sequence[Cell], outcomes: Sequence[Outcome | None]) -> list[dict[str, Any]]:
    """Every cell for `--json`: where its results lie and the student's metrics, as far as they are known."""
    return [
        {"table": cell.table, "variant": cell.variant, "seed": cell.seed, "overrides": list(cell.overrides)}
        | ({"key": found.key, "uri": found.uri, "error": found.error} if found else {})
        | ({"metrics": found.metrics["student"]} if found and found.metrics else {})
        for cell, found in zip(cells, outcomes, strict=True)
    ]
