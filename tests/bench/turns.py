"""Two ways side by side, in turns, and what a benchmark answers; light, for every benchmark and process imports it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

ROUNDS = 7
Case = Mapping[str, Any]
"""A row of a benchmark's table: what it is called, its `ratio` (see `span`), and what `ours` and the `rival` took."""


def turns(runs: Mapping[Any, Callable[[], Any]], rounds: int = ROUNDS) -> dict[Any, list[float]]:
    """Seconds of each run in each of the rounds, one after the other in every round, after one that is not counted."""
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def span(values: Iterable[float]) -> dict[str, float]:
    """The least, median and largest."""
    found = sorted(values)
    return {"min": found[0], "median": median(found), "max": found[-1]}


def ratio(more: Sequence[float], less: Sequence[float]) -> dict[str, float]:
    """The span of what one took by what the other took in the same round."""
    return span(one / other for one, other in zip(more, less, strict=True))


def compare(ours: Callable[[], Any], rival: Callable[[], Any], items: int) -> dict[str, Any]:
    """Items per second of both in turns, and the span of the ratio over the rounds."""
    seconds = turns({"ours": ours, "rival": rival})
    speeds = {name: {"rows per second": items / median(times)} for name, times in seconds.items()}
    return {"ratio": ratio(seconds["rival"], seconds["ours"]), **speeds}


def side_by_side(cases: Sequence[Case], section: str, *names: str) -> dict[str, Any]:
    """What a benchmark of several cases answers: the span of their medians, both sides of each, and its section.

    Args:
        cases: the rows of its table.
        section: the table as Markdown, and what is said about it.
        names: the keys that tell the cases apart.
    """
    called = [", ".join(str(case[name]) for name in names) for case in cases]
    sides = {side: {name: case[side] for name, case in zip(called, cases, strict=True)} for side in ("ours", "rival")}
    return {"ratio": span(case["ratio"]["median"] for case in cases), **sides, "section": section}


def speeds(case: Case, digits: int = 0) -> list[str]:
    """Both sides' figure, their ratio, and its range over the rounds, as cells; a side is one figure by its unit."""
    told = [f"{value:,.{digits}f}" for side in ("ours", "rival") for value in case[side].values()]
    return [*told, *spread(case["ratio"])]


def spread(ratio: Mapping[str, float]) -> list[str]:
    """A ratio and its range over the rounds, as cells."""
    return [f"{ratio['median']:.2f}", f"{ratio['min']:.2f} to {ratio['max']:.2f}"]
