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
        minutes: of the same stages; None where one went on from an earlier attempt, whose time is not known.
    """

    labels: int
    passes: int
    pairs: tuple[int, int]
    petaflop: float
    minutes: float | None


def cost_of(manifests: Mapping[str, Manifest], labels: int) -> Cost:
    """The cost of the cell whose stages have these manifests."""
    distill, train, features = (manifests[name] for name in ("distill", "train", "features"))
    settings = train["config"]
    sections = [settings[name] for name in ("distill", "train")]
    pairs = tuple(map(_pairs, sections))
    first_learns, last_learns = (bool(_pairs(one) and one.get("feature_weight", 0)) for one in sections)
    rows, labelled = (features["metrics"].get(name, 0) for name in ("rows", "labelled"))
    live = 2 * pairs[0] if first_learns and settings["distill"].get("teacher") == "live" else 0
    cached = (rows if last_learns else 0) if live else rows if first_learns or last_learns else 0
    trainings = [one["metrics"] for one, met in zip((distill, train), pairs, strict=True) if met]
    operations = sum(
        TRAINED * one["decoder_parameters"] * one["tokens_per_pair"] * met
        for one, met in zip(trainings, filter(None, pairs), strict=True)
    )
    passes = live + cached
    if passes and features["metrics"].get("teacher") != "outside":  # what another model computes is not known
        first, last = trainings[0], trainings[-1]
        whole = first["decoder_parameters"] * distill["metrics"]["teacher_layers"] / first["layers"]
        lessons = min(labelled, cached)
        tokens = first["tokens_per_pair"] * (passes - lessons) + last["tokens_per_pair"] * lessons
        operations += READ * whole * tokens / 2  # a pair is two rows
    timed = (distill, train, *([features] if cached else []))
    whole_time = not any(one.get("resumed") for one in timed)
    minutes = sum(one["seconds"] for one in timed) / 60 if whole_time else None
    return Cost(labels, passes, (pairs[0], pairs[1]), operations / 1e15, minutes)


def _pairs(section: Mapping[str, Any]) -> int:
    return section["steps"] * section["batch_size"]


def cost_rows(rows: Sequence[tuple[str, Sequence[Cost]]]) -> list[list[str]]:
    """The head and a line for each variant; of several seeds, the time is their mean and the rest the same."""
    head = ["variant", "labels", "teacher reads", "pairs in distill", "pairs in train", "PFLOP", "minutes"]
    lines = []
    for name, costs in rows:
        if costs:
            one, known = costs[0], [cost.minutes for cost in costs if cost.minutes is not None]
            counts = (one.labels, one.passes, *one.pairs)
            minutes = f"{sum(known) / len(known):.1f}" if known else "–"
            lines.append([name, *(f"{count:,}" for count in counts), f"{one.petaflop:.3f}", minutes])
    return [head, *lines]
