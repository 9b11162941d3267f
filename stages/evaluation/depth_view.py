"""The depth curve for people: a table and a plot of `depth_curve.json`."""

import io
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages.evaluation.markdown_table import markdown_table

IN_NO_KEY = True  # shows what was measured

COLUMNS = (
    ("hit@5", "hit@5", lambda entry: entry["hit@5"], "{:.3f}"),
    ("hit@5, mean taken off", "", lambda entry: entry["hit@5 centred"], "{:.3f}"),
    ("million parameters", "million parameters", lambda entry: entry["parameters"] / 1e6, "{:,.2f}"),
    ("ms per query, median", "milliseconds per query", lambda entry: entry["latency_ms"]["median"], "{:.1f}"),
    ("queries per second", "", lambda entry: entry["queries_per_second"], "{:,.0f}"),
    ("MiB of memory", "MiB of memory", lambda entry: entry["memory_mib"], "{:,.1f}"),
)
"""Of the table: head, label in the plot (empty: not plotted), value of an entry of the curve, form."""


def curve_table(curve: dict[str, Any]) -> str:
    """The curve as a Markdown table, a line for each depth, and which of them teaches."""
    full = curve["layers"][-1]["hit@5"]
    head = ["layers", COLUMNS[0][0], "of the full depth", *(column[0] for column in COLUMNS[1:])]
    lines = [head]
    for entry in curve["layers"]:
        hit, *costs = (form.format(value(entry)) for _, _, value, form in COLUMNS)
        share = f"{entry['hit@5'] / full:.1%}" if full else "–"
        lines.append([str(entry["layers"]), hit, share, *costs])
    table = markdown_table(lines, text_columns=0)
    return f"{table}\n\n{teaches(curve['teacher'])}." if "teacher" in curve else table


def teaches(chosen: dict[str, Any]) -> str:
    """Which layer teaches, or that none does, and how."""
    who = f"Layer {chosen['layer']} teaches" if "layer" in chosen else "Another model teaches"
    return f"{who}{', with the mean taken off' if chosen['centred'] else ''}"


def plot_curve(curve: dict[str, Any]) -> Figure:
    """What each depth finds and what it costs: hit@5 (thin lines: single evaluation sets), then each cost."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    places = figure.subplots(2, 2, sharex=True).flat
    depths = [entry["layers"] for entry in curve["layers"]]
    for axes, (_, label, value, _) in zip(places, [column for column in COLUMNS if column[1]], strict=True):
        values = [value(entry) for entry in curve["layers"]]
        axes.plot(depths, values, marker="o", label="mean of the evaluation sets" if label == "hit@5" else None)
        axes.set(ylabel=label, ylim=(0, 1 if label == "hit@5" else 1.1 * max(values)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        if label == "hit@5":
            centred = [entry["hit@5 centred"] for entry in curve["layers"]]
            axes.plot(depths, centred, linestyle="--", color="tab:blue", label="with the mean taken off")
            for name in curve["layers"][0]["sets"]:
                axes.plot(depths, [entry["sets"][name] for entry in curve["layers"]], color="0.75", linewidth=0.8)
            axes.axhline(curve["chance hit@5"], linestyle=":", color="tab:red", label="chance")
            axes.legend(fontsize=8)
    figure.supxlabel("decoder layers kept", fontsize=10)
    figure.suptitle("Every depth of the teacher, on a validation sample; cut, not trained", fontsize=10)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
