"""What a cell of an ablation took, from its manifests: labels, rows read by the teacher, arithmetic, time.

Arithmetic is counted as is usual (Kaplan et al. 2020, arXiv 2001.08361): 6 floating-point operations for a parameter
and a token in training, 2 in reading. Parameters are those of the decoder's layers, tokens those of the rows without
padding; a vision tower and attention are left out, and for short texts they are little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Manifest = Mapping[str, Any]

TRAINED, READ = 6, 2
"""Operations for a parameter and a token."""


@dataclass(frozen=True)
class Cost:
    """What one cell took.

    Attributes:
        labels: train queries of `data`, each with its positives.
        passes: rows that the teacher read, for distillation and for the last training; 0 where the student does not
            learn from it.
        pairs: pairs that the student met in both its stages, each as often as it was met.
        petaflop: of the student's training and the teacher's passes, the teacher's own training apart; a teacher from
            outside counts in the minutes alone.
        minutes: of the same stages.
    """

    labels: int
    passes: int
    pairs: tuple[int, int]
    petaflop: float
    minutes: float


def cost_of(manifests: Mapping[str, Manifest], labels: int) -> Cost:
    """The cost of the cell whose stages have these manifests."""
    distill, train, features = (manifests[name] for name in ("distill", "train", "features"))
    settings = train["config"]
    names = ("distill", "train")
    pairs = tuple(_pairs(settings[name]) for name in names)
    learns = any(met and settings[name].get("feature_weight", 0) for name, met in zip(names, pairs, strict=True))
    passes = features["metrics"]["rows"] if learns else 0
    trainings = [one["metrics"] for one, met in zip((distill, train), pairs, strict=True) if met]
    operations = sum(
        TRAINED * one["decoder_parameters"] * one["tokens_per_pair"] * met
        for one, met in zip(trainings, filter(None, pairs), strict=True)
    )
    if learns and features["metrics"].get("teacher") != "outside":  # what another model computes is not known
        first, last, labelled = trainings[0], trainings[-1], features["metrics"].get("labelled", 0)
        whole = first["decoder_parameters"] * distill["metrics"]["teacher_layers"] / first["layers"]
        tokens = first["tokens_per_pair"] * (passes - labelled) + last["tokens_per_pair"] * labelled
        operations += READ * whole * tokens / 2  # a pair is two rows
    seconds = sum(one["seconds"] for one in (distill, train, *([features] if learns else [])))
    return Cost(labels, passes, (pairs[0], pairs[1]), operations / 1e15, seconds / 60)


def _pairs(section: Mapping[str, Any]) -> int:
    return section["steps"] * section["batch_size"]


def cost_rows(rows: Sequence[tuple[str, Sequence[Cost]]]) -> list[list[str]]:
    """The head and a line for each variant; of several seeds, the time is their mean and the rest the same."""
    head = ["variant", "labels", "teacher reads", "pairs in distill", "pairs in train", "PFLOP", "minutes"]
    lines = []
    for name, costs in rows:
        if costs:
            one, minutes = costs[0], sum(cost.minutes for cost in costs) / len(costs)
            counts = (one.labels, one.passes, *one.pairs)
            lines.append([name, *(f"{count:,}" for count in counts), f"{one.petaflop:.3f}", f"{minutes:.1f}"])
    return [head, *lines]
