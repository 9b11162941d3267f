"""A table whose rows differ in depth as a picture: quality over what a query costs."""

from collections.abc import Sequence
from statistics import mean, stdev

from matplotlib.figure import Figure

from pipeline.ablation.tables import HEADLINE, Curve, VariantRow, milliseconds

LEAST = 3
"""Depths that make a curve."""


def shows_depths(rows: Sequence[VariantRow]) -> bool:
    """Whether a table is worth a picture."""
    return len({layers for row in rows for layers in row.values("layers")}) >= LEAST


def draw_depths(rows: Sequence[VariantRow], curve: Curve, title: str) -> Figure:
    """hit@5 in the own pools over milliseconds of a query; bars are the standard deviation over the seeds.

    A row is named by its layers, or by its variant where another one has as many.
    """
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    finished = [row for row in rows if row.finished]
    depths = [frozenset(row.values("layers")) for row in finished]
    for row, depth in zip(finished, depths, strict=True):
        cost, values = mean(milliseconds(row, curve)), row.values("local", HEADLINE)
        spread = stdev(values) if len(values) > 1 else 0
        axes.errorbar(cost, row.quality, spread, marker="o", color="#d1495b", capsize=3)
        alone = len(depth) == 1 and depths.count(depth) == 1
        name = f"{min(depth):.0f} layer{'s' * (depth != {1})}" if alone else row.variant
        axes.annotate(name, (cost, row.quality), (0, -16), textcoords="offset points", ha="center", fontsize=8)
    axes.set(xlabel="milliseconds of a query", ylabel=HEADLINE, title=title, xlim=(0, None), ylim=(0, None))
    axes.margins(x=0.08, y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
