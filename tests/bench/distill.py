"""Distillation from cached features beside the live teacher of the published code; every teacher pass is counted.

The published code runs the whole teacher beside the student in each step, both as stock transformers: that is the
rival here, built on sentence-transformers, so that it reads the same weights by the same prompt. Ours reads the
teacher once, keeps its states in fp16 (in memory; the stage writes them to files) and looks them up. Same pairs,
batches, losses (InfoNCE and the cosine to the teacher), optimizer and threads; the tower is frozen on both, and the
losses of the first step are compared first. The third side is Puma's own live teacher (`distill.teacher=live`), which
tells how much the cache alone is worth. Not counted: starts of processes, which `overhead` counts.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from stages.evaluation.markdown_table import markdown_table
from tests.bench.embed import SIZES, write_student
from tests.bench.train import RATE, open_stock, read_by_stock
from tests.bench.turns import ratio, side_by_side, speeds, turns

SIZE, KEPT = "deep", 6
"""Six of fourteen layers, near the twelve of 28 that PUMA keeps."""
PAIRS, BATCH = 64, 32
EPOCHS = (2, 4)
ROUNDS = 5
WEIGHT = 0.1
"""Of the distance to the teacher, as published."""
Side = Sequence[Any]
Batch = tuple[list[Any], list[Any]]


def distill(directory: Path) -> dict[str, Any]:
    """Pairs per second of distillation from cached features against the live teacher of the published code."""
    from tests.support import in_ranks

    case = {"result": str(directory / "result.json")}
    for name, layers in (("teacher", None), ("student", KEPT)):
        case[name] = str(write_student(directory / name, SIZE, layers))
    in_ranks(1, "tests.bench.distill", case, seconds=900)
    table = json.loads(Path(case["result"]).read_text())
    return side_by_side(table, section(table), "pairs", "epochs")


def section(table: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    head = ["pairs", "epochs", "pairs/s", "published, live", "ratio", "in the rounds", "to Puma's live teacher"]
    lines = [[one["pairs"], str(one["epochs"]), *speeds(one), f"{one['live']['median']:.2f}"] for one in table]
    told = (
        f"{PAIRS} pairs in batches of {BATCH}; the student has {KEPT} of the teacher's {SIZES[SIZE]['layers']} layers."
        " The teacher's one pass over the pairs counts in ours, its pass in every step in the others."
    )
    return f"{told}\n\n{markdown_table([head, *lines])}"


def measure(teacher: Path, student: Path) -> list[dict[str, Any]]:
    """All cases, in this process."""
    from tests.bench.train import inputs

    table = []
    for kind, sides in inputs(PAIRS).items():
        batches = [tuple(side[start : start + BATCH] for side in sides) for start in range(0, PAIRS, BATCH)]
        runs = {side: make(teacher, student) for side, make in SIDES.items()}
        first = {side: run(batches[:1], 1) for side, run in runs.items()}
        if max(first.values()) - min(first.values()) > 1e-3 * max(first.values()):
            raise SystemExit(f"distill: {kind}: the losses of the first step differ: {first}")
        for epochs in EPOCHS:
            seconds = turns({side: partial(run, batches, epochs) for side, run in runs.items()}, ROUNDS)
            told = {name: {"rows per second": PAIRS * epochs / median(times)} for name, times in seconds.items()}
            against = {name: ratio(seconds[name], seconds["cached"]) for name in ("published", "live")}
            found = {"ours": told["cached"], "rival": told["published"], "ratio": against["published"]}
            table.append({"pairs": kind, "epochs": epochs, "live": against["live"], **found})
    return table


def our_run(teacher: Path, student: Path, cached: bool) -> Callable[[list[Batch], int], float]:
    """A distillation by Puma's engine, of whole epochs; gives the loss of its last step."""
    import numpy as np
    import torch

    from stages.contract.params import Cluster
    from stages.learn.engine import start_engine
    from stages.learn.gradcache import backward
    from stages.learn.losses import feature_loss, softmax_loss
    from stages.learn.settings import Training
    from stages.model.encoder import Encoder

    encoder, reader = Encoder.load(student).train(), Encoder.load(teacher)
    encoder.freeze_vision()
    settings = Training(steps=1000, batch_size=BATCH, learning_rate=RATE, warmup=0, weight_decay=0)
    engine = start_engine(encoder, settings, Cluster(), 1)

    @torch.inference_mode()
    def read(rows: Side) -> np.ndarray:
        return reader.states(reader.collator(rows)).numpy()

    def loss_of(teacher_RD: torch.Tensor, states_RD: torch.Tensor) -> tuple[torch.Tensor, dict]:
        query_BD, candidate_BD = torch.nn.functional.normalize(states_RD, dim=-1).chunk(2)
        nothing_QC = torch.zeros(BATCH, BATCH, dtype=torch.bool)
        contrastive = softmax_loss(query_BD @ candidate_BD.T, torch.tensor(0.05), torch.arange(BATCH), nothing_QC)
        return contrastive + WEIGHT * feature_loss(states_RD, teacher_RD, "cosine"), {}

    def run(batches: list[Batch], epochs: int) -> float:
        kept = [read([*one, *other]).astype(np.float16) for one, other in batches] if cached else []
        for _ in range(epochs):
            for number, (queries, candidates) in enumerate(batches):
                rows = [*queries, *candidates]
                states_RD = torch.from_numpy(kept[number].astype(np.float32) if cached else read(rows).copy())
                loss, _ = backward(engine, encoder, encoder.collator(rows), partial(loss_of, states_RD), cached=False)
                engine.step()
        return loss

    return run


def published_run(teacher: Path, student: Path) -> Callable[[list[Batch], int], float]:
    """The same by stock transformers, the teacher in every step."""
    import torch

    model, trained, optimizer = open_stock(student)
    whole, _, _ = open_stock(teacher)
    whole.eval()

    def run(batches: list[Batch], epochs: int) -> float:
        for _ in range(epochs):
            for sides in batches:
                features = [read_by_stock(model, side) for side in sides]
                with torch.no_grad():
                    taught = [whole({**one})["sentence_embedding"] for one in features]
                query_BD, candidate_BD = states = [model({**one})["sentence_embedding"] for one in features]
                loss = torch.nn.functional.cross_entropy(query_BD @ candidate_BD.T / 0.05, torch.arange(BATCH))
                cosine_R = (torch.cat(states) * torch.cat(taught)).sum(1)
                loss = loss + WEIGHT * (1 - cosine_R).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return loss.item()

    return run


SIDES = {"cached": partial(our_run, cached=True), "live": partial(our_run, cached=False), "published": published_run}


if __name__ == "__main__":
    from tests.bench.train import alone

    alone(lambda case: measure(Path(case["teacher"]), Path(case["student"])))
