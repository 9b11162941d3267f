"""What a query costs: teacher and student embed the same queries in one process, turn by turn.

Turns, because a machine's speed drifts (heat, neighbours, clocks): two models timed minutes apart compare the minutes.
Times are end to end for the text and the picture of a query: decoding, tokenising, forward pass, vector on the host.

The same is measured for every depth of one model, which then runs with its first k layers only, and with it the
memory: the bytes of those k layers, vision tower and embeddings, and the most that tensors held beside them while a
batch was embedded. Torch's allocator knows both, so that process, libraries and what the allocator keeps in reserve
do not count, and a CPU and a GPU are measured alike.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.model import compat
from stages.model.rows import Row

if TYPE_CHECKING:
    from stages.model.encoder import Encoder

ROUNDS = 3  # timed passes over all rows, one at a time and again in batches; a warm-up pass comes before


def measure_cost(
    encoders: Mapping[str, "Encoder | Depth"], rows: Sequence[Row], batch_size: int
) -> dict[str, dict[str, Any]]:
    """For each encoder: layers, parameters, dim, latency one query at a time, throughput in batches."""
    seconds = time_single(encoders, rows)
    rates = time_batches(encoders, rows, batch_size)
    return {
        name: {
            "layers": encoder.layers,
            "parameters": encoder.parameters_count,
            "dim": encoder.dim,
            "latency_ms": {"median": 1e3 * median(seconds[name]), "p90": 1e3 * float(np.quantile(seconds[name], 0.9))},
            "queries_per_second": median(rates[name]),
        }
        for name, encoder in encoders.items()
    }


def measure_depths(encoder: "Encoder", rows: Sequence[Row], batch_size: int) -> list[dict[str, Any]]:
    """`measure_cost` of the first 1, 2, … layers of one loaded encoder, and `memory_mib` while it embeds a batch."""
    depths = {str(layers): Depth(encoder, layers) for layers in range(1, encoder.layers + 1)}
    costs = measure_cost(depths, rows, batch_size)
    for name, depth in depths.items():
        costs[name]["memory_mib"] = (depth.bytes_count + peak_bytes(depth, rows, batch_size)) / 2**20
    return list(costs.values())


class Depth:
    """An encoder with its first layers only; shares all weights with the whole."""

    def __init__(self, encoder: "Encoder", layers: int) -> None:
        from stages.model.prune import first_layers

        self.encoder, self.layers, self.dim = encoder, layers, encoder.dim
        self.cut = partial(first_layers, encoder.backbone, layers)
        with self.cut() as backbone:
            self.parameters_count = encoder.parameters_count
            self.bytes_count = sum(weight.numel() * weight.element_size() for weight in backbone.parameters())

    def encode(self, rows: Sequence[Row], batch_size: int) -> np.ndarray:
        """The vectors that a student of this many layers would give before training."""
        with self.cut():
            return self.encoder.encode(rows, batch_size)


def peak_bytes(depth: Depth, rows: Sequence[Row], batch_size: int) -> int:
    """The most bytes that tensors held at one time while a batch was embedded, weights not counted."""
    import torch

    batch = rows[:batch_size]
    device = depth.encoder.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        depth.encode(batch, batch_size)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        depth.encode(batch, batch_size)
    return compat.peak_memory(profiler)


def time_single(encoders: Mapping[str, "Encoder | Depth"], rows: Sequence[Row]) -> dict[str, list[float]]:
    """Seconds of each row alone, ROUNDS times, for each encoder; who goes first changes with every row."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for turn, row in enumerate(list(rows) * (1 + ROUNDS)):
        for name in list(encoders)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            encoders[name].encode([row], 1)
            if turn >= len(rows):
                seconds[name].append(time.perf_counter() - start)
    return seconds


def time_batches(
    encoders: Mapping[str, "Encoder | Depth"], rows: Sequence[Row], batch_size: int
) -> dict[str, list[float]]:
    """Rows per second over all rows, ROUNDS times for each encoder, turn by turn."""
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(ROUNDS):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder.encode(rows, batch_size)
            rates[name].append(len(rows) / (time.perf_counter() - start))
    return rates
