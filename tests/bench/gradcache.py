"""The memory of one training step: a batch of 600 by GradCache, beside the same batch whole and beside a batch of 8.

Each step runs in a process of its own: `python -m tests.bench.gradcache CASE_JSON`. Its figure is the peak of resident
memory (VmHWM, set back before the step) above what was resident when the step began. By then a first step has made the
optimizer's state and loaded every kernel, and the batch has been collated: what is measured is activations, gradients,
vision outputs and states. The C allocator is told to hand memory back at once, or the figure would be that of its
pools. Linux only.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.turns import span

BATCH, SMALL, CHUNK = 600, 8, 8
ROUNDS = 3
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
MIB = 2**20


def gradcache(directory: Path) -> dict[str, Any]:
    """Peak memory of a training step: a batch of 600 whole against GradCache with chunks of 8."""
    model = write_model(directory / "model")
    rounds = []
    for _ in range(ROUNDS):
        cases = ((SMALL, 0, False), (SMALL, 0, True), (BATCH, 0, False), (BATCH, CHUNK, False))
        rounds.append(
            [
                _measured(directory, {"model": str(model), "batch": batch, "chunk": chunk, "longest": longest})
                for batch, chunk, longest in cases
            ]
        )
    small, longest, whole, ours = (
        {name: median(entry[index][name] for entry in rounds) for name in rounds[0][index]} for index in range(4)
    )
    kept = ours["embeddings"]
    print(
        f"a step of {SMALL} takes {small['bytes'] / MIB:.1f} MiB, of the {SMALL} longest {longest['bytes'] / MIB:.1f} "
        f"MiB; of {BATCH}, whole, {whole['bytes'] / MIB:.1f} MiB; of {BATCH} by GradCache in chunks of {CHUNK} rows "
        f"{ours['bytes'] / MIB:.1f} MiB, of which states with their gradients, kept vision outputs and the matrix of "
        f"cosines are {kept / MIB:.1f} MiB. So {BATCH} fit in the memory of {SMALL} plus embeddings: "
        f"{_fits(ours, small)} for {SMALL} of the same mix, {_fits(ours, longest)} for the {SMALL} longest. "
        f"Time: {ours['seconds'] / whole['seconds']:.2f} times that of the whole batch. "
        f"Loss {ours['loss']:.6f}, whole {whole['loss']:.6f}.",
        file=sys.stderr,
    )
    return {
        "ratio": span(whole["bytes"] / ours["bytes"] for _, _, whole, ours in rounds),
        "ours": {"MiB": ours["bytes"] / MIB, "seconds": ours["seconds"], "embeddings MiB": kept / MIB},
        "rival": {"MiB": whole["bytes"] / MIB, "seconds": whole["seconds"]},
        f"batch of {SMALL}": {"MiB": small["bytes"] / MIB, "longest MiB": longest["bytes"] / MIB},
    }


def _fits(ours: dict[str, float], small: dict[str, float]) -> str:
    return "yes" if ours["bytes"] <= small["bytes"] + ours["embeddings"] else "no"


def _measured(directory: Path, case: dict[str, Any]) -> dict[str, float]:
    from tests.support import in_ranks

    result = directory / "result.json"
    in_ranks(1, "tests.bench.gradcache", {**case, "result": str(result)}, ALLOCATOR)
    return json.loads(result.read_text())


def write_model(directory: Path) -> Path:
    """An untrained Qwen2-VL of 1.3 million parameters; in a smaller one a chunk would not stand out from noise."""
    from stages.model.tiny import tiny_config, train_tokenizer, write_tiny
    from tests.tiny_models import TEXTS

    tokenizer = train_tokenizer(TEXTS * 20, 400)
    config = tiny_config(tokenizer, layers=4, hidden=128, heads=4, vision_layers=1, vision_hidden=64, patch=14)
    write_tiny(directory, tokenizer, config, min_pixels=28 * 28, max_pixels=84 * 84, max_text_characters=1024, seed=3)
    return directory


def rows_of(batch: int, longest: bool = False) -> list[Any]:
    """Queries and candidates of `batch` pairs: eight kinds in turn, or the longest of them alone.

    A chunk holds rows of like length, so the longest rows of a large batch stand in one chunk.
    """
    from stages.model.rows import Row
    from tests.tiny_models import picture

    image = picture(84, 84)
    kinds = [Row("two green stars " * length) for length in (8, 12, 16, 20)]
    kinds += [Row(None, image), Row("What colour is it?", image), Row("It is red."), Row(None, picture(56, 56))]
    return [kinds[3] if longest else kinds[index % len(kinds)] for index in range(2 * batch)]


def main(case: dict[str, Any]) -> None:
    """One process: two steps, the second one measured."""
    import torch

    from stages.contract.params import Cluster
    from stages.learn.engine import start_engine
    from stages.learn.gradcache import backward
    from stages.learn.losses import softmax_loss
    from stages.learn.settings import Training
    from stages.model.encoder import Encoder

    torch.set_num_threads(1)
    batch, chunk = case["batch"], case["chunk"]
    encoder = Encoder.load(Path(case["model"])).train()
    encoder.freeze_vision()
    settings = Training(steps=2, batch_size=batch, learning_rate=1e-4, warmup=0, weight_decay=0)
    engine = start_engine(encoder, settings, Cluster(), 1)
    matrix = 0

    def loss_of(states_RD: torch.Tensor) -> tuple[torch.Tensor, dict]:
        nonlocal matrix
        query_BD, candidate_BD = torch.nn.functional.normalize(states_RD, dim=-1).chunk(2)
        similarity_QC = query_BD @ candidate_BD.T
        matrix = similarity_QC.nbytes
        masked_QC = torch.zeros_like(similarity_QC, dtype=torch.bool)
        return softmax_loss(similarity_QC, torch.tensor(0.05), torch.arange(len(query_BD)), masked_QC), {}

    def step(rows: Any) -> float:
        loss, _ = backward(engine, encoder, rows, loss_of, cached=chunk > 0)
        engine.step()
        return loss

    step(encoder.collator(rows_of(4), chunk))
    rows = encoder.collator(rows_of(batch, case["longest"]), chunk)
    merged = encoder.collator.image_processor.merge_size**2
    seen = [part.grid_I3.prod(1)[part.image_J] for part in rows.chunks if part.grid_I3 is not None]
    image_tokens = sum(int(patches_J.sum()) // merged for patches_J in seen)
    before, start = _reset_peak(), time.perf_counter()
    loss = step(rows)
    seconds = time.perf_counter() - start
    embeddings = (2 * len(rows.place_B) + image_tokens) * encoder.dim * 4 + matrix
    measures = {"bytes": _memory("VmHWM") - before, "seconds": seconds, "embeddings": embeddings, "loss": loss}
    Path(case["result"]).write_text(json.dumps(measures))


def peak(run: Callable[[], Any]) -> float:
    """MiB that a call takes above what was resident before it."""
    before = _reset_peak()
    run()
    return (_memory("VmHWM") - before) / MIB


def _reset_peak() -> int:
    """Sets the peak of resident memory back to what is resident now, and returns that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    from tests.support import joined_ranks

    with joined_ranks():
        main(json.loads(sys.argv[1]))
