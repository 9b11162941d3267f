"""What a query costs: teacher and student embed the same queries in one process, turn by turn.

Turns, because a machine's speed drifts (heat, neighbours, clocks): two models timed minutes apart compare the minutes.
Times are end to end for the text and the picture of a query: decoding, tokenising, forward pass, vector on the host.
"""

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

ROUNDS = 3  # timed passes over all rows, one at a time and again in batches; a warm-up pass comes before


def measure_cost(encoders: Mapping[str, Any], rows: Sequence[Any], batch_size: int) -> dict[str, dict[str, Any]]:
    """For each encoder: layers, parameters, dim, latency one query at a time, throughput in batches.

    rows: the encoder's rows.
    """
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


def time_single(encoders: Mapping[str, Any], rows: Sequence[Any]) -> dict[str, list[float]]:
    """Seconds of each row alone, ROUNDS times, for each encoder; who goes first changes with every row."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for turn, row in enumerate(list(rows) * (1 + ROUNDS)):
        for name in list(encoders)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            encoders[name].encode([row], 1)
            if turn >= len(rows):
                seconds[name].append(time.perf_counter() - start)
    return seconds


def time_batches(encoders: Mapping[str, Any], rows: Sequence[Any], batch_size: int) -> dict[str, list[float]]:
    """Rows per second over all rows, ROUNDS times for each encoder, turn by turn."""
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(ROUNDS):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder.encode(rows, batch_size)
            rates[name].append(len(rows) / (time.perf_counter() - start))
    return rates
