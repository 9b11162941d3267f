"""What a forward pass costs at least: its counted FLOP at the rate of products of matrices here; and a profile.

Only products of matrices are counted, as `bill` counts them; the last layer is computed for one token and left out.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tests.bench.bill import Shape

SIDE, TRIES = 1024, 200
GROUPS = {
    "products of matrices": ("addmm", "mm", "bmm", "linear", "matmul", "mkldnn_linear", "convolution"),
    "attention": ("attention",),
}


@cache
def rate() -> float:
    """FLOP per second of a square product in float32, the best of some, with the threads that torch has now."""
    import torch

    one_SS, other_SS = torch.rand(2, SIDE, SIDE)
    best = float("inf")
    for _ in range(TRIES):
        start = time.perf_counter()
        torch.mm(one_SS, other_SS)
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best


def floor(encoder: Any, rows: Sequence[Any], layers: int = 0) -> float:
    """Seconds of the products of matrices that `rows` need in the first `layers` layers, or in all."""
    return sum(flop(encoder, row, layers or encoder.layers) for row in rows) / rate()


def flop(encoder: Any, row: Any, layers: int) -> float:
    """FLOP of a row, forward."""
    shape, collator = shape_of(encoder), encoder.collator
    seen = 0.0 if row.image is None else shape.see(1, len(collator.patches(row)[0]))
    return shape.decode(collator.count_tokens(row), layers - 1) + seen


def shape_of(encoder: Any) -> Shape:
    """The widths and depths of an encoder's backbone."""
    text, vision = encoder.backbone.config.text_config, encoder.backbone.config.vision_config
    keys = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    widths = {"vision_width": vision.embed_dim, "vision_layers": vision.depth}
    return Shape(text.hidden_size, keys, text.intermediate_size, text.num_hidden_layers, **widths)


def shares(work: Callable[[], Any], outside: str = "tokens, pictures, Python") -> str:
    """Where the time of `work` goes, by the profiler of torch, in words; `outside` says what else it does."""
    import torch

    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        work()
        whole = time.perf_counter() - start
    found = dict.fromkeys((*GROUPS, "other operators"), 0.0)
    for event in profiler.key_averages():
        group = next((name for name, ops in GROUPS.items() if any(op in event.key for op in ops)), "other operators")
        found[group] += event.self_cpu_time_total / 1e6
    found[f"outside of torch: {outside}"] = max(0.0, whole - sum(found.values()))
    return ", ".join(f"{name} {100 * part / whole:.0f} %" for name, part in found.items())
