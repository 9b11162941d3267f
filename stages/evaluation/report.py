"""The comparison as files: `table.txt` for the terminal, Markdown tables for the tracker's note, and plots."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from stages.contract.context import Context
from stages.evaluation.comparison import (
    HEADLINE,
    SCOPES,
    SMALLER,
    asymmetric_values,
    is_mbeir,
    is_searched,
    kept,
    labels,
    measured,
    missed_line,
    model_rows,
    quality,
    score,
    score_meaning,
    score_name,
    smaller_rows,
    stored_line,
    timed,
    untrained,
)
from stages.evaluation.markdown_table import markdown_table
from stages.evaluation.plots import draw_cost, draw_quality

IN_NO_KEY = True  # shows what was measured

CUT = "cut: the teacher's first layers, as many as the student has, before any training"
UNTRAINED = "teacher: as it came, not trained on this data, so what is kept of it is no number"
ASYMMETRIC = "teacher's index: the student's queries on the teacher's candidates"
WIDTH = 100  # columns of the terminal table


def write_report(context: Context, metrics: Mapping[str, Any]) -> None:
    """Writes all views into the artifact and shows them in the tracker."""
    texts = {
        "table.txt": terminal_table(metrics),
        "tables/local.md": set_table(metrics, "local"),
        "tables/union.md": set_table(metrics, "union"),
    }
    if rows := smaller_rows(metrics):
        texts["tables/smaller.md"] = markdown_table([SMALLER, *rows], text_columns=1)
    for name, text in texts.items():
        context.output.write_bytes(name, text.encode())
        context.tracker.text(name.removeprefix("tables/"), text)
    for name, figure in (("quality.png", draw_quality(metrics)), ("cost.png", draw_cost(metrics))):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        context.output.write_bytes(f"plots/{name}", picture.getvalue())
        context.tracker.figure(name, figure)


def set_table(metrics: Mapping[str, Any], scope: str) -> str:
    """The sets in a scope as a Markdown table."""
    return markdown_table([set_columns(metrics), *set_rows(metrics, scope)], text_columns=1)


def set_columns(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """The head of a table of sets."""
    models = measured(metrics)
    return ("set", "queries", "pool", "chance", *models, *(("kept",) if "kept" in metrics else ()))


def set_rows(metrics: Mapping[str, Any], scope: str) -> Iterator[Sequence[str]]:
    """`set_columns` of each set in the scope, then of the headline."""
    models = measured(metrics)
    for name, label in labels(metrics).items():
        task = metrics["student"][scope]["tasks"][name]
        values = {model: quality(metrics, model, scope, name) for model in models}
        sizes = (f"{task['queries']:,}", f"{task['pool_size']:,}")
        yield label, *sizes, *compared(metrics, quality(metrics, "chance", scope, name), values)
    means = {model: score(metrics[model], scope) for model in models}
    yield score_name(metrics), "", "", *compared(metrics, score(metrics["chance"], scope), means)


def compared(metrics: Mapping[str, Any], chance: float, qualities: Mapping[str, float]) -> tuple[str, ...]:
    """Chance, the qualities by model, and what the student keeps of the teacher's."""
    return f"{chance:.3f}", *(f"{value:.3f}" for value in qualities.values()), *kept(metrics, qualities)


def terminal_table(metrics: Mapping[str, Any]) -> str:
    """The table that a run ends with, at most WIDTH columns: a line for each set, means, then costs."""
    columns = (*set_columns(metrics), *([""] if untrained(metrics) else []))  # costs have a share at any rate
    measure = "M-BEIR" if is_mbeir(metrics) else HEADLINE
    title = f"{measure}: {' beside '.join(timed(metrics))}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name == "set" else "right", overflow="fold")
    *rows, local = set_rows(metrics, "local")
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row(f"{local[0]}, local pools", *local[1:])
    *_, union = set_rows(metrics, "union")
    table.add_row(f"{union[0]}, union pool", *union[1:])
    for scope, value in zip(SCOPES, asymmetric_values(metrics), strict=False):
        table.add_row(f"teacher's index, {scope}", "", "", "", *[""] * measured(metrics).index("student"), value)
    table.add_section()
    spared = [""] * (len(measured(metrics)) - len(timed(metrics)))
    for name, *values in model_rows(metrics):
        table.add_row(name, "", "", "", *spared, *values)
    table.caption, table.caption_justify = "\n".join(caption_lines(metrics)), "left"
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None).print(table)
    return text.getvalue()


def caption_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What the names in the terminal table mean that do not speak for themselves."""
    yield from filter(None, (score_meaning(metrics), missed_line(metrics)))
    if "cut" in metrics:
        yield CUT
    if untrained(metrics):
        yield UNTRAINED
    if "asymmetric" in metrics:
        yield ASYMMETRIC
    if is_searched(metrics):
        yield "this is what searches of this run give"
    yield from filter(None, [stored_line(metrics)])
