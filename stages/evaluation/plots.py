"""Pictures of the comparison: quality for each evaluation set, quality against cost, and the depth curve.

They are drawn without pyplot, which keeps figures alive and picks a backend for the whole process.
"""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from stages.evaluation.comparison import HEADLINE, is_mbeir, labels, measured, quality, score, score_name, timed

IN_NO_KEY = True  # shows what was measured

COLOURS = {"teacher": "#8a8f98", "cut": "#e3b5bb", "student": "#d1495b", "chance": "#222222"}


def draw_quality(metrics: Mapping[str, Any]) -> Figure:
    """Bars of each set's measure, the models side by side, with chance as a line; local pools above, union below."""
    names = labels(metrics)
    figure = Figure(figsize=(max(7.0, 0.9 * len(names) + 2), 7.0), layout="constrained")
    for axes, scope in zip(figure.subplots(2, 1, sharex=True, sharey=True), ("local", "union"), strict=True):
        models = measured(metrics)
        width = 0.8 / len(models)
        for number, model in enumerate(models):
            shift = (number - (len(models) - 1) / 2) * width
            heights = [quality(metrics, model, scope, name) for name in names]
            places = [place + shift for place in range(len(names))]
            bars = axes.bar(places, heights, 0.95 * width, label=model, color=COLOURS[model])
            axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
        chances = [quality(metrics, "chance", scope, name) for name in names]
        edges = range(len(names))
        axes.hlines(chances, [x - 0.42 for x in edges], [x + 0.42 for x in edges], COLOURS["chance"], label="chance")
        axes.set_ylabel(f"{'hit@5 or @10' if is_mbeir(metrics) else HEADLINE}, {scope} pool")
        axes.set_ylim(0, 1.12)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xticks(range(len(names)), list(names.values()), rotation=25, ha="right", parse_math=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
    figure.suptitle("What the student finds, beside its teacher", x=0.01, ha="left")
    return figure


def draw_cost(metrics: Mapping[str, Any]) -> Figure:
    """The local headline against median latency; the area of a point grows with the number of parameters."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    models = timed(metrics)
    largest = max(metrics[model]["parameters"] for model in models)
    for model in models:
        one = metrics[model]
        point = (one["latency_ms"]["median"], score(one, "local"))
        axes.scatter(*point, s=900 * one["parameters"] / largest, color=COLOURS[model], alpha=0.8)
        above = 22 if model == "teacher" else -30
        note = f"{model}: {one['layers']} layers, {one['parameters'] / 1e6:,.1f} M"
        axes.annotate(note, point, xytext=(0, above), textcoords="offset points", ha="center")
    chance = score(metrics["chance"], "local")
    axes.axhline(chance, color=COLOURS["chance"], linestyle=":", linewidth=1)
    axes.annotate("chance", (0, chance), xytext=(4, 4), textcoords="offset points")
    axes.set_xlabel("median milliseconds per query, one at a time")
    axes.set_ylabel(f"{score_name(metrics)}, local pools" if is_mbeir(metrics) else f"mean local {HEADLINE}")
    axes.set_ylim(0, 1.1)
    axes.set_xlim(0, 1.35 * max(metrics[model]["latency_ms"]["median"] for model in models))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_depths(curve: Mapping[str, Any], kept: int) -> Figure:
    """hit@5 of the teacher read out after each layer, not trained further; thin lines are single sets."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    depths = [entry["layers"] for entry in curve["layers"]]
    for name in curve["layers"][0]["sets"]:
        axes.plot(depths, [entry["sets"][name] for entry in curve["layers"]], color="#d5d8dd", linewidth=0.9)
    means = [entry[HEADLINE] for entry in curve["layers"]]
    axes.plot(depths, means, marker="o", color=COLOURS["teacher"], linewidth=2)
    if kept in depths:
        point = (kept, means[depths.index(kept)])
        axes.plot(*point, marker="o", markersize=11, color=COLOURS["student"])
        axes.annotate("the student's depth", point, xytext=(0, -24), textcoords="offset points", ha="center")
    chance = curve[f"chance {HEADLINE}"]
    axes.axhline(chance, color=COLOURS["chance"], linestyle=":", linewidth=1)
    axes.annotate("chance", (depths[0], chance), xytext=(4, 4), textcoords="offset points")
    axes.set(xlabel="decoder layers read", ylabel=f"mean {HEADLINE}, validation sample", ylim=(0, 1.1))
    axes.set_xticks([depth for depth in depths if len(depths) <= 16 or depth % 4 == 0])
    axes.spines[["top", "right"]].set_visible(False)
    return figure
