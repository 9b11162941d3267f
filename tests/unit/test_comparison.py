"""The tables of an ablation on made-up outcomes."""

import pytest

from pipeline.ablation.document import describe_machine
from pipeline.ablation.tables import Outcome, VariantRow, mean_and_spread, milliseconds, quality_rows, task_rows


def row(
    variant: str, layers: int, hits: list[float], unfinished: int = 0, labels: tuple = ("a→b", "b→a")
) -> VariantRow:
    def metrics(hit: float) -> dict:
        tasks = {f"set_task{place}": {"hit@5": hit, "label": label} for place, label in enumerate(labels)}
        pool = {"hit@5": hit, "tasks": tasks}
        size = {"layers": layers, "parameters": 2_500_000, "latency_ms": {"median": 10 * hit}}
        return {"student": {**size, "local": pool, "union": pool}}

    outcomes = [Outcome("k", metrics(hit)) for hit in hits] + [Outcome("k", error="no memory")] * unfinished
    return VariantRow(variant, list(range(len(outcomes))), outcomes)


def test_the_spread_is_that_of_a_sample_and_one_value_has_none():
    assert mean_and_spread([0.5, 0.7]) == "0.600 ± 0.141"
    assert mean_and_spread([0.5]) == "0.500" and mean_and_spread([]) == "–"


def test_a_row_counts_the_seeds_that_came_to_an_end():
    head, finished, failed = quality_rows([row("a", 2, [0.4, 0.6], unfinished=1), row("b", 2, [], 3)], 0.8, None)
    told = dict(zip(head, finished, strict=True))
    assert (told["own pools"], told["kept"], told["n"]) == ("0.500 ± 0.141", "62.5%", "2 of 3")
    assert failed == ["b", "–", "–", "–", "–", "–", "–", "0 of 3"]


def test_without_a_reference_nothing_is_a_share():
    assert "kept" not in quality_rows([row("a", 2, [0.4])], None, None)[0]


def test_a_variant_has_the_time_of_its_depth_and_without_a_curve_its_own():
    curve = {"layers": [{"layers": 1, "latency_ms": {"median": 3.0}}, {"layers": 2, "latency_ms": {"median": 4.0}}]}
    assert milliseconds(row("a", 2, [0.4, 0.6]), curve) == [4.0]
    assert milliseconds(row("a", 2, [0.4, 0.6]), None) == [4.0, 6.0]
    assert milliseconds(row("a", 2, []), curve) == []


@pytest.mark.parametrize(
    ("labels", "head"), [(("a→b", "b→a"), ["a→b", "b→a"]), (("a→b", "a→b"), ["set_task0", "set_task1"])]
)
def test_sets_are_called_by_label_where_that_tells_them_apart(labels, head):
    assert task_rows([row("a", 2, [0.4], labels=labels)])[0] == ["variant", *head]


def test_the_machine_is_reported_in_words():
    told = describe_machine()
    assert " cores of " in told and "GiB of memory" in told and "/" not in told
