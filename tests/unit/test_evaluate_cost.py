"""Timing is fair: both models meet every row, warmed up, turn by turn."""

from types import SimpleNamespace

import numpy as np

from stages.evaluation import cost
from stages.evaluation.cost import measure_cost, time_single


def encoder(name: str, log: list) -> SimpleNamespace:
    """Writes down each call instead of computing."""

    def encode(rows: list, batch_size: int) -> np.ndarray:
        log.append((name, tuple(rows), batch_size))
        return np.zeros((len(rows), 4), np.float32)

    return SimpleNamespace(encode=encode, layers=2, parameters_count=10, dim=4)


def test_each_row_is_timed_alone_by_both_models_and_the_first_turn_alternates() -> None:
    log: list = []
    seconds = time_single({"student": encoder("student", log), "teacher": encoder("teacher", log)}, ["a", "b", "c"])
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(seconds, 3 * cost.ROUNDS)
    pairs = [(log[i], log[i + 1]) for i in range(0, len(log), 2)]
    assert all(left[1] == right[1] and {left[0], right[0]} == {"student", "teacher"} for left, right in pairs)
    assert {left[0] for left, _ in pairs[:2]} == {"student", "teacher"}


def test_the_warm_up_is_not_counted(monkeypatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock) ** 2)
    log: list = []
    found = measure_cost({"student": encoder("student", log)}, ["a", "b"], 8)["student"]
    # The clock's tick n shows n²: from tick n to the next is 2n + 1. The warm-up of two rows takes ticks 0 and 1.
    assert found["latency_ms"]["median"] == 1e3 * np.median([2 * n + 1 for n in range(2, 14, 2)])
    assert (found["layers"], found["parameters"], found["dim"]) == (2, 10, 4)
    assert [call for call in log if len(call[1]) == 2] == [("student", ("a", "b"), 8)] * cost.ROUNDS
