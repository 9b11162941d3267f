"""What the views of a comparison share: which models were measured, what sets are called, and rows of their tables.

Everything is read from metrics.json; nothing is computed that is not written there. A student that was measured alone
(`evaluate.teacher=false`) has the same tables without the teacher's columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HEADLINE = "hit@5"
MODELS = ("teacher", "student")
SCOPES = ("local", "union")


def measured(metrics: Mapping[str, Any]) -> list[str]:
    """The models that were measured, the teacher first."""
    return [name for name in MODELS if name in metrics]


def labels(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What to call each set: `image→text`, with the dataset before it where there are several datasets."""
    tasks = metrics["student"]["local"]["tasks"]
    datasets = {name.rpartition("_task")[0] for name in tasks}
    return {
        name: task["label"] if len(datasets) == 1 else f"{name.rpartition('_task')[0]} {task['label']}"
        for name, task in tasks.items()
    }


def share(values: Sequence[float]) -> tuple[str, ...]:
    """The student's value as a share of the teacher's, where both were measured."""
    if len(values) < 2:
        return ()
    teacher, student = values
    return (f"{student / teacher:.0%}" if teacher else "–",)


def model_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Name, then each model's value, then the student's share, for each cost."""
    models = [metrics[name] for name in measured(metrics)]
    numbers = {
        "layers": ([one["layers"] for one in models], "{:,}"),
        "parameters, millions": ([one["parameters"] / 1e6 for one in models], "{:,.1f}"),
        "vector dimensions": ([one["dim"] for one in models], "{:,}"),
        "ms per query, median": ([one["latency_ms"]["median"] for one in models], "{:.1f}"),
        "ms per query, p90": ([one["latency_ms"]["p90"] for one in models], "{:.1f}"),
        "queries per second": ([one["queries_per_second"] for one in models], "{:,.0f}"),
    }
    for name, (values, form) in numbers.items():
        yield name, *map(form.format, values), *share(values)


def measure_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Each measure's mean over the sets: by the models in their own pools, then in the union pool."""
    means = [metrics[name][scope] for scope in SCOPES for name in measured(metrics)]
    for measure in metrics["student"]["local"]:
        if measure != "tasks":
            yield measure, *(f"{one[measure]:.3f}" for one in means)


def dimension_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The headline by leading dimensions, for a student that was trained to be read by fewer of them."""
    student = metrics["student"]
    entries = [*student["dimensions"], student] if "dimensions" in student else []
    return [(f"{one['dim']:,}", *(f"{one[scope][HEADLINE]:.3f}" for scope in SCOPES)) for one in entries]
