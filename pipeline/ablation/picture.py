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
    """hit@5 in the own pools over milliseconds of a query; bars are the standard deviation over the seeds."""
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in filter(lambda row: row.finished, rows):
        cost, values = mean(milliseconds(row, curve)), row.values("local", HEADLINE)
        spread = stdev(values) if len(values) > 1 else 0
        axes.errorbar(cost, row.quality, spread, marker="o", color="#d1495b", capsize=3)
        layers = " or ".join(sorted({f"{count:.0f}" for count in row.values("layers")}))
        name = f"{layers} layer{'s' * (layers != '1')}"
        axes.annotate(name, (cost, row.quality), (0, -16), textcoords="offset points", ha="center", fontsize=8)
    axes.set(xlabel="milliseconds of a query", ylabel=HEADLINE, title=title, xlim=(0, None), ylim=(0, None))
    axes.margins(x=0.08, y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
