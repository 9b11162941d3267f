"""What benchmarks answer: ratios of paired rounds, and both sides of every case."""

import pytest

from tests.bench import growth, ingest, search, vllm
from tests.bench.turns import compare, ratio, side_by_side, speeds, turns

RATIO = {"min": 1.5, "median": 2.0, "max": 2.5}


def test_a_ratio_is_of_the_same_round() -> None:
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == {"min": 1.0, "median": 2.0, "max": 3.0}


def test_runs_take_turns_after_a_round_that_is_not_counted() -> None:
    seen: list[str] = []
    seconds = turns({"ours": lambda: seen.append("ours"), "rival": lambda: seen.append("rival")}, rounds=2)
    assert seen == ["ours", "rival"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"ours": 2, "rival": 2}


def test_a_comparison_is_a_case() -> None:
    found = compare(lambda: sum(range(10)), lambda: sum(range(100_000)), 5)
    assert found["ratio"]["median"] > 1
    assert speeds(found)[2] == f"{found['ratio']['median']:.2f}"


def test_the_answer_has_both_sides_of_every_case() -> None:
    sides = {"ours": {"rows per second": 2000.0}, "rival": {"rows per second": 1000.0}}
    cases = [
        {"pairs": "texts", "loss": "whole", "ratio": RATIO, **sides},
        {"pairs": "texts", "loss": "cached", "ratio": RATIO | {"median": 1.0}, **sides},
    ]
    found = side_by_side(cases, "a table", "pairs", "loss")
    assert found["ratio"] == {"min": 1.0, "median": 1.5, "max": 2.0}
    assert found["ours"] == {name: {"rows per second": 2000.0} for name in ("texts, whole", "texts, cached")}
    assert found["rival"] == {name: {"rows per second": 1000.0} for name in ("texts, whole", "texts, cached")}
    assert found["section"] == "a table"


CASES = {
    growth: ({"work": "embed", "rows": 10, "ours": {"µs": 12.0}, "MiB": 3.0}, "| embed | 10 | 12 | 2.00 |"),
    search: ({"case": "one", "ours": {"ms": 1.25}, "rival": {"ms": 2.5}}, "| one | 1.2 | 2.5 | 2.00 |"),
    vllm: (
        {"case": "one", "ours": {"rate": 8.0}, "rival": {"rate": 4.0}, "cosine": 1.0},
        "| one | 8 | 4 | 2.00 | 1.50 to 2.50 | 1.000000 |",
    ),
}


@pytest.mark.parametrize("bench", CASES, ids=lambda bench: bench.__name__)
def test_a_section_has_a_line_for_each_case(bench: object) -> None:
    case, line = CASES[bench]
    assert line in bench.section([case | {"ratio": RATIO}])


def test_ingest_names_what_it_stands_beside() -> None:
    sides = {"ours": {"a second": 3000.0}, "rival": {"a second": 1500.0}}
    case = {"kind": "pictures", "beside": "one process", "ratio": RATIO, **sides}
    assert "| pictures | one process | 3,000 | 1,500 | 2.00 | 1.50 to 2.50 |" in ingest.section([case], 4.0)
