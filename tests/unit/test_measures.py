"""Measures against values worked out by hand, and chance against simulation."""

from math import log2

import numpy as np
import pytest

from stages.evaluation.chance import chance_of_hit
from stages.evaluation.examples import read_run
from stages.evaluation.measures import MEASURES, mean, measure_queries, trec_lines


def test_values_of_a_worked_example() -> None:
    ranked = {"q1": ["d3", "d1", "d9", "d2"], "q2": ["d5", "d6"], "q3": []}
    relevant = {"q1": ["d1", "d2", "d8"], "q2": ["d5"], "q3": ["d1"]}
    found = measure_queries(ranked, relevant)
    # q1: relevant at ranks 2 and 4; the third relevant one was not found.
    assert found["q1"]["hit@1"] == 0.0
    assert found["q1"]["hit@5"] == 1.0
    assert found["q1"]["recall@5"] == pytest.approx(2 / 3)
    assert found["q1"]["mrr@10"] == pytest.approx(1 / 2)
    ideal = 1 / log2(2) + 1 / log2(3) + 1 / log2(4)
    assert found["q1"]["ndcg@10"] == pytest.approx((1 / log2(3) + 1 / log2(5)) / ideal)
    assert found["q2"] == dict.fromkeys(MEASURES, 1.0)
    assert found["q3"] == dict.fromkeys(MEASURES, 0.0)


def test_hit_is_any_relevant_one_and_recall_is_the_share() -> None:
    found = measure_queries({"q": ["a", "x", "y", "z", "v"]}, {"q": list("abcdefghij")})
    assert found["q"]["hit@5"] == 1.0
    assert found["q"]["recall@5"] == pytest.approx(0.1)


@pytest.mark.parametrize("place", range(12))
def test_the_order_given_is_the_order_measured_whatever_the_ids(place: int) -> None:
    ids = [f"z{99 - i}" for i in range(12)]
    found = measure_queries({"q": ids}, {"q": [ids[place]]})["q"]
    assert found["hit@5"] == (place < 5)
    assert found["mrr@10"] == pytest.approx(1 / (place + 1) if place < 10 else 0.0)


def test_chance_equals_simulated_random_rankings() -> None:
    random = np.random.default_rng(0)
    draws = np.array([(random.permutation(81)[:5] < 3).any() for _ in range(20_000)])
    assert chance_of_hit(81, 3, 5) == pytest.approx(draws.mean(), abs=0.01)


def test_chance_at_its_borders() -> None:
    assert chance_of_hit(100, 1, 5) == pytest.approx(0.05)
    assert chance_of_hit(3, 1, 5) == 1.0
    assert chance_of_hit(10, 0, 5) == 0.0
    assert chance_of_hit(0, 0, 5) == 0.0


def test_mean_weighs_each_row_the_same() -> None:
    assert mean([{"hit@5": 1.0}, {"hit@5": 0.0}, {"hit@5": 0.5}]) == {"hit@5": 0.5}


def test_a_trec_run_keeps_our_order_when_scores_tie() -> None:
    lines = trec_lines("20:1", ["a", "b", "c"], [0.5, 0.5, 0.5], "puma")
    assert lines[0] == "20:1 Q0 a 1 0.500000 puma\n"
    scores = [float(line.split()[4]) for line in lines]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3


@pytest.mark.parametrize("name", ["7:a b", "50%", "7:a\u00a0b", "7:a\u3000b", "naïve"])
def test_ids_come_back_from_a_run_as_they_were(tmp_path, name):
    (tmp_path / "run.trec").write_text("".join(trec_lines(name, [name], [1.0], "puma")), encoding="utf-8")
    assert [(qid, found[0][0]) for qid, found in read_run(tmp_path / "run.trec")] == [(name, name)]


def test_white_space_in_ids_does_not_shift_trec_columns() -> None:
    assert trec_lines("my query", ["doc\t1"], [1.0], "puma")[0].split() == [
        "my%20query",
        "Q0",
        "doc%091",
        "1",
        "1.000000",
        "puma",
    ]
