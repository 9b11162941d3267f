"""The comparison as files: `table.txt` for the terminal, `report.md`, CSV tables and plots.

Everything here is a view of metrics.json; nothing is computed that is not written there. A student that was measured
alone (`evaluate.teacher=false`) has the same tables without the teacher's columns.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stages.contract.context import Context

IN_NO_KEY = True  # shows what was measured

CUT = "cut: the teacher's first layers, as many as the student has, before any training"
WIDTH = 100  # columns of the terminal table
HEADLINE = "hit@5"
NOTES = """hit@k is 1 when any relevant candidate is among the first k (M-BEIR calls it Recall@k); recall@k is the
share of the relevant candidates that were found. Chance is the exact expectation of a random ranking. Means weigh
every set the same. A query's own picture stays in the pool, as in M-BEIR. Latency is end to end for one query, both
models in one process, turn by turn. The teacher is the backbone as it came; the fair upper bound, the whole backbone
with the student's training, comes from `python pipeline/ablate.py RECIPE upper_bound`."""
MODELS = ("cut", "student", "teacher")
"""`cut` is the teacher's first layers, as many as the student has, before any training."""


def write_report(context: Context, metrics: Mapping[str, Any]) -> None:
    """Writes all views into the artifact and shows them in the tracker."""
    from stages.evaluation.measures import MEASURES
    from stages.evaluation.plots import draw_cost, draw_quality

    texts = {
        "table.txt": terminal_table(metrics),
        "report.md": markdown_report(metrics),
        "tables/quality.csv": to_csv(quality_rows(metrics, MEASURES)),
        "tables/cost.csv": to_csv(cost_rows(metrics)),
        "tables/local.md": markdown_table(set_columns(metrics), set_rows(metrics, "local")),
        "tables/union.md": markdown_table(set_columns(metrics), set_rows(metrics, "union")),
    }
    for name, text in texts.items():
        context.output.write_bytes(name, text.encode())
        context.tracker.text(name.removeprefix("tables/"), text)
    for name, figure in (("quality.png", draw_quality(metrics)), ("cost.png", draw_cost(metrics))):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        context.output.write_bytes(f"plots/{name}", picture.getvalue())
        context.tracker.figure(name, figure)


def measured(metrics: Mapping[str, Any]) -> list[str]:
    """The models whose quality was measured, from the least to the most that is expected of them."""
    return [name for name in MODELS if name in metrics]


def timed(metrics: Mapping[str, Any]) -> list[str]:
    """The models whose cost was measured: what is cut costs what the student does."""
    return [name for name in measured(metrics) if name != "cut"]


def set_columns(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """The head of a table of sets."""
    models = measured(metrics)
    return ("set", "queries", "pool", "chance", *models, *(("kept",) if "teacher" in models else ()))


def labels(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What to call each set: `image→text`, with the dataset before it where there are several datasets."""
    tasks = metrics["student"]["local"]["tasks"]
    datasets = {name.rpartition("_task")[0] for name in tasks}
    return {
        name: task["label"] if len(datasets) == 1 else f"{name.rpartition('_task')[0]} {task['label']}"
        for name, task in tasks.items()
    }


def set_rows(metrics: Mapping[str, Any], scope: str) -> Iterator[Sequence[str]]:
    """`set_columns` of each set in the scope, then of the mean."""
    scopes = {model: metrics[model][scope] for model in measured(metrics)}
    for name, label in labels(metrics).items():
        task = metrics["student"][scope]["tasks"][name]
        sizes = (f"{task['queries']:,}", f"{task['pool_size']:,}")
        yield (
            label,
            *sizes,
            *compared(
                task[f"chance {HEADLINE}"], {model: one["tasks"][name][HEADLINE] for model, one in scopes.items()}
            ),
        )
    means = {model: one[HEADLINE] for model, one in scopes.items()}
    yield "mean", "", "", *compared(metrics["chance"][scope][HEADLINE], means)


def compared(chance: float, qualities: Mapping[str, float]) -> tuple[str, ...]:
    """Chance, the qualities by model, and what the student keeps of the teacher's."""
    return f"{chance:.3f}", *(f"{quality:.3f}" for quality in qualities.values()), *share(qualities)


def share(values: Mapping[str, float]) -> tuple[str, ...]:
    """The student's value as a share of the teacher's, where both were measured."""
    if "teacher" not in values:
        return ()
    return (f"{values['student'] / values['teacher']:.0%}" if values["teacher"] else "–",)


def model_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Name, then each model's value, then the student's share, for each cost."""
    models = {name: metrics[name] for name in timed(metrics)}
    numbers: dict[str, tuple[Callable[[Any], float], str]] = {
        "layers": (lambda one: one["layers"], "{:,}"),
        "parameters, millions": (lambda one: one["parameters"] / 1e6, "{:,.1f}"),
        "vector dimensions": (lambda one: one["dim"], "{:,}"),
        "ms per query, median": (lambda one: one["latency_ms"]["median"], "{:.1f}"),
        "ms per query, p90": (lambda one: one["latency_ms"]["p90"], "{:.1f}"),
        "queries per second": (lambda one: one["queries_per_second"], "{:,.0f}"),
    }
    for name, (value, form) in numbers.items():
        values = {model: value(one) for model, one in models.items()}
        yield name, *map(form.format, values.values()), *share(values)


def terminal_table(metrics: Mapping[str, Any]) -> str:
    """The table that a run ends with, at most WIDTH columns: a line for each set, means, then costs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = set_columns(metrics)
    title = f"{HEADLINE}: {' beside '.join(timed(metrics))}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name == "set" else "right", overflow="fold")
    *rows, local = set_rows(metrics, "local")
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row("mean, local pools", *local[1:])
    *_, union = set_rows(metrics, "union")
    table.add_row("mean, union pool", *union[1:])
    table.add_section()
    spared = [""] * (len(measured(metrics)) - len(timed(metrics)))
    for name, *values in model_rows(metrics):
        table.add_row(name, "", "", "", *spared, *values)
    if "cut" in metrics:
        table.caption, table.caption_justify = CUT, "left"
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None).print(table)
    return text.getvalue()


def markdown_report(metrics: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    models = timed(metrics)
    places = [(name, scope) for scope in ("local", "union") for name in measured(metrics)]
    measures = [
        (measure, *(f"{metrics[name][scope][measure]:.3f}" for name, scope in places))
        for measure in metrics["student"]["local"]
        if measure != "tasks"
    ]
    parts = [
        f"# {' beside '.join(models).capitalize()}",
        summary(metrics),
        f"## {HEADLINE} in each set's own pool",
        markdown_table(set_columns(metrics), set_rows(metrics, "local")),
        f"## {HEADLINE} in the union pool",
        markdown_table(set_columns(metrics), set_rows(metrics, "union")),
        "## All measures, mean over sets",
        markdown_table(("measure", *(f"{name}, {scope}" for name, scope in places)), measures),
        *dimensions(metrics),
        "## Cost",
        markdown_table(("", *models, *(("student / teacher",) if len(models) > 1 else ())), model_rows(metrics)),
        NOTES,
    ]
    return "\n\n".join(parts) + "\n"


def dimensions(metrics: Mapping[str, Any]) -> list[str]:
    """The section on leading dimensions, for a student that was trained to be read by fewer of them."""
    student = metrics["student"]
    whole = {"dim": student["dim"], "local": student["local"], "union": student["union"]}
    rows = [
        (f"{one['dim']:,}", *(f"{one[scope][HEADLINE]:.3f}" for scope in ("local", "union")))
        for one in (*student.get("dimensions", ()), whole)
    ]
    columns = ("leading dimensions", "local", "union")
    return [f"## {HEADLINE} by leading dimensions", markdown_table(columns, rows)] if len(rows) > 1 else []


def summary(metrics: Mapping[str, Any]) -> str:
    """What came out, in a sentence."""
    layers = metrics["student"]["layers"]
    if "teacher" not in metrics:
        return f"The student has {layers} layers; its teacher was not measured in this run."
    return (
        f"The student has {layers} of the teacher's {metrics['teacher']['layers']} layers and keeps "
        f"{metrics['kept'][f'local {HEADLINE}']:.1%} of its mean local {HEADLINE} "
        f"and {metrics['kept'][f'union {HEADLINE}']:.1%} of its union {HEADLINE}."
    )


def markdown_table(columns: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    head = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows])


def quality_rows(metrics: Mapping[str, Any], measures: Sequence[str]) -> Iterator[Sequence[Any]]:
    """A line for each model, scope and set, with every measure."""
    yield "model", "scope", "set", "label", "queries", "pool_size", *measures, *(f"chance {HEADLINE}",)
    for model in measured(metrics):
        for scope in ("local", "union"):
            for name, task in metrics[model][scope]["tasks"].items():
                known = (task["label"], task["queries"], task["pool_size"])
                yield model, scope, name, *known, *(task[key] for key in measures), task[f"chance {HEADLINE}"]


def cost_rows(metrics: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """A line for each model with size and speed."""
    yield "model", "layers", "parameters", "dim", "latency_ms_median", "latency_ms_p90", "queries_per_second"
    for model in timed(metrics):
        one, latency = metrics[model], metrics[model]["latency_ms"]
        size = (one["layers"], one["parameters"], one["dim"])
        yield model, *size, latency["median"], latency["p90"], one["queries_per_second"]


def to_csv(rows: Iterator[Sequence[Any]]) -> str:
    """Rows as CSV text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
