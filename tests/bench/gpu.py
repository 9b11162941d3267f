"""What pruning and GradCache are worth on one GPU, on a backbone of Qwen2-VL-2B's shape in bf16.

Its weights are random: neither time nor memory depends on them. Rows are those of a mixed corpus: short and long
texts, pictures of 448 × 448 (256 tokens), and both. Training steps run in a process each: `python -m tests.bench.gpu
CASE_JSON`. Peaks are those of torch's allocator.
"""

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.turns import ratio

LAYERS, HALF = 28, 14
DEPTHS = (4, 7, 14, 21, 28)
ROWS, BATCH, SINGLES, ROUNDS = 256, 64, 30, 3
SIDE = 448
CASES = (
    {"layers": LAYERS, "batch": 64, "chunk": 0},
    {"layers": HALF, "batch": 64, "chunk": 0},
    {"layers": HALF, "batch": 64, "chunk": 32},
    {"layers": HALF, "batch": 1024, "chunk": 32},
)
GIB = 2**30


def gpu(directory: Path) -> dict[str, Any]:
    """Embedding with half the layers of a backbone of 2B's shape on a GPU, against all of them."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("the benchmark gpu needs an NVIDIA GPU, and torch sees none")
    from stages.model.encoder import Encoder

    encoder = Encoder(make_backbone(directory, LAYERS), make_collator(directory)).eval()
    print(
        f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, {ROWS} rows in batches of {BATCH}",
        file=sys.stderr,
    )
    depths = {layers: embedding(encoder, layers) for layers in DEPTHS}
    print_table(depths)
    del encoder
    torch.cuda.empty_cache()
    steps = [{**case, **_measured(directory, case)} for case in CASES]
    print_table({str(number): step for number, step in enumerate(steps, 1)})
    return {
        "ratio": ratio(depths[HALF]["all rates"], depths[LAYERS]["all rates"]),
        "ours": depths[HALF],
        "rival": depths[LAYERS],
        "depths": depths,
        "steps": steps,
    }


def make_collator(directory: Path) -> Any:
    """The tokenizer and the image processor of a tiny model, with pictures of SIDE × SIDE."""
    from stages.model.encoder import load_collator, readers_for
    from stages.model.tiny import tiny_config, train_tokenizer, write_tiny
    from tests.tiny_models import TEXTS

    if not (directory / "puma.json").exists():
        tokenizer = train_tokenizer(TEXTS * 20, 400)
        config = tiny_config(tokenizer, layers=1, hidden=64, heads=2, vision_layers=1, vision_hidden=32, patch=14)
        write_tiny(directory, tokenizer, config, min_pixels=784, max_pixels=SIDE**2, max_text_characters=2048, seed=0)
    return load_collator(directory, 151_936, readers_for("cuda"))


def make_backbone(directory: Path, layers: int) -> Any:
    """Qwen2-VL-2B's sizes with `layers` decoder layers, drawn on the GPU."""
    import torch
    from transformers import AutoModel

    from stages.model.tiny import tiny_config

    tokenizer = make_collator(directory).tokenizer
    config = tiny_config(
        tokenizer, layers=layers, hidden=1536, heads=12, vision_layers=32, vision_hidden=1280, patch=14
    )
    config.text_config.update({"intermediate_size": 8960, "num_key_value_heads": 2, "vocab_size": 151_936})
    config.vision_config.update({"num_heads": 16, "mlp_ratio": 4})
    torch.manual_seed(0)
    with torch.device("cuda"):
        return AutoModel.from_config(config, dtype=torch.bfloat16)


def rows_of(count: int, kinds: Sequence[int] = range(4)) -> list[Any]:
    """Short texts, long texts, pictures, and both, in turn; `kinds` are those wanted."""
    from PIL import Image

    from stages.model.rows import Row

    buffer = io.BytesIO()
    Image.effect_noise((SIDE // 8, SIDE // 8), 80).convert("RGB").resize((SIDE, SIDE)).save(buffer, "JPEG")
    picture = buffer.getvalue()
    every = (
        Row("two green stars left of a blue square"),
        Row("two green stars left of a blue square and " * 20),
        Row(None, picture),
        Row("find the picture that shows what this one shows", picture),
    )
    return [every[kinds[index % len(kinds)]] for index in range(count)]


def embedding(encoder: Any, layers: int) -> dict[str, Any]:
    """Rows per second of the first `layers` layers, of batches on the GPU and from end to end, and latencies."""
    import torch

    from stages.evaluation.cost import Depth

    depth, rows = Depth(encoder, layers), rows_of(ROWS)
    batches = [encoder.collator(rows[start : start + BATCH]).to("cuda") for start in range(0, ROWS, BATCH)]

    @torch.inference_mode()
    def forward() -> None:
        with depth.cut():
            for batch in batches:
                encoder.states(batch)
        torch.cuda.synchronize()

    forward()
    torch.cuda.reset_peak_memory_stats()
    rates = [ROWS / seconds for seconds in timed(forward)]
    peak = torch.cuda.max_memory_allocated() - encoder_bytes(encoder) + depth.bytes_count
    whole = timed(lambda: depth.encode(rows, BATCH), 1)
    latency = {}
    for kind, name in ((0, "text"), (2, "picture")):
        row = rows_of(1, [kind])
        depth.encode(row, 1)
        latency[f"{name} ms"] = 1e3 * median(timed(lambda row=row: depth.encode(row, 1), SINGLES))
    return {
        "layers": layers,
        "parameters": depth.parameters_count,
        "rows/s": median(rates),
        "rows/s from end to end": ROWS / median(whole),
        **latency,
        "GiB": peak / GIB,
        "all rates": rates,
    }


def encoder_bytes(encoder: Any) -> int:
    """What the whole encoder's weights take."""
    return sum(weight.numel() * weight.element_size() for weight in encoder.parameters())


def timed(run: Callable[[], Any], rounds: int = ROUNDS) -> list[float]:
    """Seconds of each round."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def print_table(lines: dict[Any, dict[str, Any]]) -> None:
    """A Markdown table of the lines' single values, on stderr: stdout is for --json."""
    names = [name for name, value in next(iter(lines.values())).items() if not isinstance(value, list)]
    print(f"| {' | '.join(names)} |\n|{' ---: |' * len(names)}", file=sys.stderr)
    for line in lines.values():
        print(f"| {' | '.join(_shown(line.get(name)) for name in names)} |", file=sys.stderr)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,.3g}" if isinstance(value, float) else f"{value:,}"


def _measured(directory: Path, case: dict[str, Any]) -> dict[str, Any]:
    from tests.support import in_ranks

    result = directory / "result.json"
    case = {**case, "model": str(directory), "result": str(result)}
    in_ranks(1, "tests.bench.gpu", case, {"DS_ACCELERATOR": "cuda"})
    return json.loads(result.read_text())


def main(case: dict[str, Any]) -> None:
    """One process: training steps of one case, texts as queries and pictures as candidates."""
    import torch

    from stages.contract.params import Cluster
    from stages.learn.engine import start_engine
    from stages.learn.gradcache import backward
    from stages.learn.losses import softmax_loss
    from stages.learn.settings import Training
    from stages.model.encoder import Encoder

    directory, batch, chunk = Path(case["model"]), case["batch"], case["chunk"]
    encoder = Encoder(make_backbone(directory, case["layers"]), make_collator(directory)).train()
    encoder.freeze_vision()
    settings = Training(steps=9, batch_size=batch, learning_rate=1e-5, warmup=0, weight_decay=0)
    engine = start_engine(encoder, settings, Cluster(precision="bf16"), 1)
    rows = encoder.collator(rows_of(batch, [0, 1]) + rows_of(batch, [2]), chunk)
    positive_Q = torch.arange(batch, device="cuda")

    def loss_of(states_RD: torch.Tensor) -> tuple[torch.Tensor, dict]:
        query_BD, candidate_BD = torch.nn.functional.normalize(states_RD.float(), dim=-1).chunk(2)
        similarity_QC = query_BD @ candidate_BD.T
        tau = torch.tensor(0.05, device="cuda")
        return softmax_loss(similarity_QC, tau, positive_Q, torch.zeros_like(similarity_QC, dtype=torch.bool)), {}

    def step() -> None:
        backward(engine, encoder, rows, loss_of, cached=chunk > 0)
        engine.step()
        torch.cuda.synchronize()

    try:
        step()
        torch.cuda.reset_peak_memory_stats()
        seconds: float | None = median(timed(step))
    except torch.cuda.OutOfMemoryError:
        seconds = None
    peak = torch.cuda.max_memory_allocated() / GIB
    fits = seconds is not None
    measures = {
        "step s": seconds if fits else "does not fit",
        "pairs/s": batch / seconds if fits else None,
        "GiB": peak if fits else None,
    }
    Path(case["result"]).write_text(json.dumps(measures))


if __name__ == "__main__":
    from tests.support import joined_ranks

    with joined_ranks("nccl"):
        main(json.loads(sys.argv[1]))
