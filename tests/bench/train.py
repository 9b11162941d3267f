"""A training step beside sentence-transformers' MultipleNegativesRankingLoss: same weights, pairs, rate and threads.

Both sides tokenise, decode and collate in the step, for that is what a step costs; the vision tower is frozen on both,
and the losses of the first step are compared before anything is timed. The cached pair is GradCache on either side.
Each runs in a process of its own, as a rank of one: `python -m tests.bench.train CASE_JSON`. Memory is the peak of
resident memory in a step above what was resident before it, with an allocator that hands it back at once.
"""

import io
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stages.evaluation.markdown_table import markdown_table
from tests.bench.embed import write_student
from tests.bench.turns import compare, side_by_side, speeds

BATCH, CHUNK = 64, 16
RATE = 1e-6
"""So small that a hundred steps leave the weights, and with them the work, as they were."""


def train(directory: Path) -> dict[str, Any]:
    """Pairs per second of a step of 64 against sentence-transformers' losses, whole and cached."""
    from tests.bench.gradcache import ALLOCATOR
    from tests.support import in_ranks

    case = {"student": str(write_student(directory / "small", "small")), "result": str(directory / "result.json")}
    found = {}
    for measure, environment in (("time", {}), ("memory", ALLOCATOR)):
        in_ranks(1, "tests.bench.train", case | {"measure": measure}, environment)
        found[measure] = json.loads(Path(case["result"]).read_text())
    table = [timed | taken for timed, taken in zip(found["time"], found["memory"], strict=True)]
    return side_by_side(table, section(table), "pairs", "loss")


def section(table: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    head = ["pairs", "loss", "pairs/s", "sentence-transformers", "ratio", "in the rounds", "MiB of a step", "there"]
    lines = [[one["pairs"], one["loss"], *speeds(one), *(f"{size:,.0f}" for size in one["MiB"])] for one in table]
    profiles = [f"- {one['pairs']}, {one['loss']}: {one['profile']}" for one in table]
    return "\n".join([markdown_table([head, *lines]), "", "Where the time of ours goes:", "", *profiles])


def measure(student: Path, what: str) -> list[dict[str, Any]]:
    """`what`, time or memory, of all cases, in this process."""
    from tests.bench.floor import shares
    from tests.bench.gradcache import peak

    table = []
    for pairs, sides in inputs().items():
        for loss, chunk in (("whole", 0), (f"cached, {CHUNK} rows", CHUNK)):
            steps = [make(student, *sides, chunk) for make in (our_step, their_step)]
            first = [step() for step in steps]
            if abs(first[0] - first[1]) > 1e-3 * abs(first[0]):
                raise SystemExit(f"train: {pairs}, {loss}: the losses of the first step differ: {first}")
            if what == "time":
                found = compare(*steps, BATCH) | {"profile": shares(steps[0])}
            else:
                found = {"MiB": [peak(step) for step in steps]}
            table.append({"pairs": pairs, "loss": loss, **found})
    return table


def inputs(count: int = BATCH) -> dict[str, tuple[list[Any], list[Any]]]:
    """Queries and candidates by kind; no two candidates are equal, so that none is masked as a false negative."""
    from stages.model.rows import Row
    from tests.bench.embed import photo

    texts = [f"a small red thing number {number} on a wooden table" for number in range(count)]
    photos = [photo(120 + number % 16, 120 + number // 16, number) for number in range(count)]
    queries = [Row(f"Find it.\n{text}") for text in texts]
    return {
        "text → text": (queries, [Row(f"{text}, seen from above and in the shade") for text in texts]),
        "text → picture": (queries, [Row(None, image) for image in photos]),
    }


def our_step(student: Path, queries: list[Any], candidates: list[Any], chunk: int) -> Callable[[], float]:
    """A step of Puma's engine; gives its loss."""
    import torch

    from stages.contract.params import Cluster
    from stages.learn.engine import start_engine
    from stages.learn.gradcache import backward
    from stages.learn.losses import softmax_loss
    from stages.learn.settings import Training
    from stages.model.encoder import Encoder

    encoder = Encoder.load(student).train()
    encoder.freeze_vision()
    settings = Training(steps=1000, batch_size=BATCH, learning_rate=RATE, warmup=0, weight_decay=0)
    engine = start_engine(encoder, settings, Cluster(), 1)
    masked_QC = torch.zeros(BATCH, BATCH, dtype=torch.bool)

    def loss_of(states_RD: torch.Tensor) -> tuple[torch.Tensor, dict]:
        query_BD, candidate_BD = torch.nn.functional.normalize(states_RD, dim=-1).chunk(2)
        similarity_QC = query_BD @ candidate_BD.T
        return softmax_loss(similarity_QC, torch.tensor(0.05), torch.arange(BATCH), masked_QC), {}

    def step() -> float:
        loss, _ = backward(
            engine, encoder, encoder.collator([*queries, *candidates], chunk), loss_of, cached=chunk > 0
        )
        engine.step()
        return loss

    return step


def their_step(student: Path, queries: list[Any], candidates: list[Any], chunk: int) -> Callable[[], float]:
    """A step as SentenceTransformerTrainer makes it: its collator's calls, its loss, clipping, fused AdamW."""
    import torch
    from sentence_transformers.sentence_transformer import losses

    model, trained, optimizer = open_stock(student)
    cached = partial(losses.CachedMultipleNegativesRankingLoss, mini_batch_size=chunk)
    loss_of = (cached if chunk else losses.MultipleNegativesRankingLoss)(model, scale=20.0)

    def step() -> float:
        loss = loss_of([read_by_stock(model, side) for side in (queries, candidates)], torch.zeros(BATCH))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def open_stock(student: Path) -> tuple[Any, list[Any], Any]:
    """A model directory as SentenceTransformer has it, the tower frozen; its other weights, and their optimizer."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(student), device="cpu", model_kwargs={"dtype": torch.float32}).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".visual." not in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = {"lr": RATE, "betas": (0.9, 0.98), "eps": 1e-7, "weight_decay": 0}
    return model, trained, torch.optim.AdamW(trained, fused=True, **adam)  # fused, as its trainer does


def read_by_stock(model: Any, rows: Sequence[Any]) -> dict[str, Any]:
    """Rows as the inputs of a SentenceTransformer."""
    from PIL import Image

    return model.preprocess([Image.open(io.BytesIO(row.image)) if row.image else row.text for row in rows])


def alone(measure: Callable[[dict[str, Any]], Any]) -> None:
    """The process of a rank of one: measures the case of the command line, and writes what comes of it."""
    import os

    import torch

    from stages.contract.params import cores
    from stages.export.loaders import see_torchvision
    from tests.support import joined_ranks

    see_torchvision()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(cores())
    case = json.loads(sys.argv[1])
    with joined_ranks():
        Path(case["result"]).write_text(json.dumps(measure(case)))


if __name__ == "__main__":
    alone(lambda case: measure(Path(case["student"]), case["measure"]))
