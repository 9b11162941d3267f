"""What the views of a comparison share: which models were measured, what sets are called, and rows of their tables.

Everything is read from metrics.json; nothing is computed that is not written there. A student that was measured alone
(`evaluate.teacher=false`) has the same tables without the teacher's columns. For M-BEIR's sets the tables have their
measures, their order and M-BEIR's average in the place of the plain mean (`stages.evaluation.mbeir`).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stages.evaluation import mbeir
from stages.evaluation.mbeir import SCOPES

HEADLINE = "hit@5"
MODELS = ("cut", "student", "teacher")
"""`cut` is the teacher's first layers, as many as the student has, before any training."""
SMALLER = ("vector", "bytes", "own pools", "lost", "union pool", "lost")
"""The head of the table of smaller vectors."""


def measured(metrics: Mapping[str, Any]) -> list[str]:
    """The models whose quality was measured, from the least to the most that is expected of them."""
    return [name for name in MODELS if name in metrics]


def timed(metrics: Mapping[str, Any]) -> list[str]:
    """The models whose cost was measured: what is cut costs what the student does."""
    return [name for name in measured(metrics) if name != "cut"]


def is_mbeir(metrics: Mapping[str, Any]) -> bool:
    """Whether the score is M-BEIR's."""
    return "mbeir" in metrics["student"]


def measure_of(metrics: Mapping[str, Any], name: str) -> str:
    """The measure that a set is shown by."""
    return mbeir.measure_of(name) if is_mbeir(metrics) else HEADLINE


def quality(metrics: Mapping[str, Any], model: str, scope: str, name: str) -> float:
    """What a model, or chance, comes to in one set."""
    return metrics[model][scope]["tasks"][name][measure_of(metrics, name)]


def score(one: Mapping[str, Any], scope: str) -> float:
    """The headline of one model's metrics, or of chance's: M-BEIR's average, else the mean."""
    return mbeir.headline(one, scope)


def score_name(metrics: Mapping[str, Any]) -> str:
    """What the headline is called."""
    return "M-BEIR" if is_mbeir(metrics) else "mean"


def score_meaning(metrics: Mapping[str, Any]) -> str:
    """One line about M-BEIR's average; empty where the score is the plain mean."""
    lost = mbeir.lost_of(metrics.get("rejected_sets", ()))
    asked = len(mbeir.lost_of(metrics["student"]["local"]["tasks"])) + len(lost)
    line = f"M-BEIR's average over {asked} of its {len(mbeir.SETS)} sets"
    line += f", with 0 for {', '.join(lost)}, whose queries were all rejected" if lost else ""
    return f"{line}: hit@10 for Fashion200K and FashionIQ, else hit@5" if is_mbeir(metrics) else ""


def missed_line(metrics: Mapping[str, Any]) -> str:
    """One line about the queries that were rejected; empty where none was."""
    tasks = metrics["student"]["local"]["tasks"].values()
    missed, every = (sum(task.get(name, 0) for task in tasks) for name in ("missed", "queries"))
    line = f"{missed:,} of {every:,} queries were rejected, or their picture or positives, and count as missed"
    return line if missed else ""


def labels(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What to call each set: `image→text`, with the dataset before it where there are several datasets.

    M-BEIR's sets come first, in the order of its tables; a set that hit@10 counts for says so.
    """
    tasks = metrics["student"]["local"]["tasks"]
    datasets = {name.rpartition("_task")[0] for name in tasks}
    ordered = sorted(tasks, key=lambda name: mbeir.SETS.index(name) if name in mbeir.SETS else len(mbeir.SETS))
    return {
        name: ("" if len(datasets) == 1 else f"{name.rpartition('_task')[0]} ")
        + tasks[name]["label"]
        + (" @10" if measure_of(metrics, name) == "hit@10" else "")
        for name in ordered
    }


def share(values: Mapping[str, float]) -> tuple[str, ...]:
    """The student's value as a share of the teacher's, where both were measured."""
    if "teacher" not in values:
        return ()
    return (f"{values['student'] / values['teacher']:.0%}" if values["teacher"] else "–",)


def kept(metrics: Mapping[str, Any], values: Mapping[str, float]) -> tuple[str, ...]:
    """What the student keeps of the teacher's quality; nothing of a teacher that was not trained on the data."""
    return share(values) if "kept" in metrics else ()


def untrained(metrics: Mapping[str, Any]) -> bool:
    """Whether the teacher was measured as it came, so that nothing is a share of it."""
    return "teacher" in metrics and "kept" not in metrics


def model_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Name, then each model's value, then the student's share, for each cost."""
    models = {name: metrics[name] for name in timed(metrics)}
    numbers: dict[str, tuple[Callable[[Mapping[str, Any]], float], str]] = {
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


def measure_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Each measure's mean over the sets: by the models in their own pools, then in the union pool."""
    means = [metrics[name][scope] for scope in SCOPES for name in measured(metrics)]
    for measure in metrics["student"]["local"]:
        if measure != "tasks":
            yield measure, *(f"{one[measure]:.3f}" for one in means)


def asymmetric_values(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """The headline of the student's queries on the teacher's candidates, by scope; empty without a teacher."""
    if "asymmetric" not in metrics:
        return ()
    return tuple(f"{score(metrics['asymmetric'], scope):.3f}" for scope in SCOPES)


def is_searched(metrics: Mapping[str, Any]) -> bool:
    """Whether the index holds the teacher's candidates, so that searches are the student's queries on those."""
    return bool(metrics.get("asymmetric", {}).get("searched"))


def stored_line(metrics: Mapping[str, Any]) -> str:
    """One line about an index of a smaller precision; empty where it holds float16."""
    name = metrics.get("asymmetric" if is_searched(metrics) else "student", {}).get("precision", "")
    line = f"the index holds {name}, and this is what it finds: index.precision=float16 shows what is lost"
    return line if name else ""


def smaller_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """SMALLER of each length and precision of the student's vectors, the most bytes first."""
    rows = metrics["student"].get("smaller", {"rows": []})["rows"]
    ordered = sorted(rows, key=lambda row: (-row["bytes"], -row["dim"]))
    return [(*_size(row), *(cell for scope in SCOPES for cell in _quality(row, scope))) for row in ordered]


def _size(row: Mapping[str, Any]) -> tuple[str, str]:
    return f"{row['dim']:,} × {row['precision']}", f"{row['bytes']:,}"


def _quality(row: Mapping[str, Any], scope: str) -> tuple[str, str]:
    return f"{score(row, scope):.3f}", f"{row['lost'][scope]:.3f}"


def smaller_line(metrics: Mapping[str, Any]) -> str:
    """One line about the table of smaller vectors; empty where there is none."""
    if "smaller" not in metrics["student"]:
        return ""
    asked, every = (metrics["student"]["smaller"][name] for name in ("queries", "of"))
    some = f"{asked:,} of {every:,} queries, evenly spaced" if asked < every else f"All {asked:,} queries"
    return f"{some}. Candidates alone are stored in fewer bytes; what is lost is told against the first row."
