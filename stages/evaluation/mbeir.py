"""M-BEIR's own score: which measure counts in each of its sixteen sets, and their plain mean.

From UniIR (arXiv 2311.17136) and its evaluation: recall@10 for Fashion200K and FashionIQ, recall@5 elsewhere, every
set weighing the same; what is called recall there is `hit` here (`stages.evaluation.measures`). A source is M-BEIR's
where sets have its names, as the published query files give them; other sets do not enter the score. One of which all
queries were rejected is 0 there, as it is for UniIR, which asks the qrels what should have been found.
"""

from collections.abc import Collection, Mapping
from typing import Any

SETS = (
    "visualnews_task0",
    "mscoco_task0",
    "fashion200k_task0",
    "webqa_task1",
    "edis_task2",
    "webqa_task2",
    "visualnews_task3",
    "mscoco_task3",
    "fashion200k_task3",
    "nights_task4",
    "oven_task6",
    "infoseek_task6",
    "fashioniq_task7",
    "cirr_task7",
    "oven_task8",
    "infoseek_task8",
)
"""All sets in the order of the paper's tables."""
SCOPES = ("local", "union")
"""Where a set is searched: in its own pool, and in all pools as one."""
FASHION = ("fashion200k_task0", "fashion200k_task3", "fashioniq_task7")


def measure_of(name: str) -> str:
    """The measure that counts for a set."""
    return "hit@10" if name in FASHION else "hit@5"


def score(model: Mapping[str, Any], lost: Collection[str] = ()) -> dict[str, dict[str, float]]:
    """{"mbeir": {scope: M-BEIR's average over those of its sets that the source has}}; empty where none was asked.

    Args:
        model: {scope: {"tasks": {set: {measure: value}}}}, as metrics.json has it of each model and of chance.
        lost: sets of which all queries were rejected; they count as 0.
    """
    found = {scope: [name for name in SETS if name in model[scope]["tasks"]] for scope in SCOPES}
    averages = {
        scope: sum(model[scope]["tasks"][name][measure_of(name)] for name in names) / len({*names, *lost_of(lost)})
        for scope, names in found.items()
        if names
    }
    return {"mbeir": averages} if averages else {}


def lost_of(sets: Collection[str]) -> list[str]:
    """Those of the sets that are M-BEIR's, in its order."""
    return [name for name in SETS if name in sets]


def headline(one: Mapping[str, Any], scope: str) -> float:
    """What a model, chance or some vectors come to: M-BEIR's average where there is one, else the mean hit@5."""
    return one["mbeir"][scope] if "mbeir" in one else one[scope]["hit@5"]
