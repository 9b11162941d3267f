"""The yardstick of text models: what it counts, with models that give known vectors."""

import numpy as np
import pytest

from tests.bench import yardstick


class Known:
    """A model whose query finds the candidate of the same number, but for what it confuses."""

    def __init__(self, confused: tuple[str, ...] = ()) -> None:
        self.confused = confused
        self.asked: list[str] = []

    def encode_document(self, texts: list[str], **_) -> np.ndarray:
        """A direction for each number."""
        return np.eye(20)[[int(text) for text in texts]]

    def encode_query(self, texts: list[str], **_) -> np.ndarray:
        """The same direction; for what is confused, nearest to seven others."""
        self.asked += texts
        wrong = np.arange(20) >= 13
        return np.stack([wrong * 1.0 if text in self.confused else np.eye(20)[int(text)] for text in texts])


def row(number: int, *more: str) -> dict:
    """A query with the candidate of its number, and others."""
    positives = [{"id": f"c{one}", "text": one} for one in (str(number), *more)]
    return {"query": {"text": str(number)}, "positives": positives, "split": "test"}


def test_a_hit_is_any_positive_among_the_first_five() -> None:
    """And every candidate counts once, whoever names it."""
    rows = [row(number) for number in range(20)]
    assert yardstick.hit(Known(), rows) == 1
    assert yardstick.hit(Known(("3",)), rows) == pytest.approx(0.95)
    rows[3] = row(3, "14")
    assert yardstick.hit(Known(("3",)), rows) == 1


def test_candidates_without_an_id_are_told_apart_by_their_text() -> None:
    """As `data.kind=pairs` does."""
    rows = [row(number) for number in range(20)]
    for one in rows:
        del one["positives"][0]["id"]
    assert yardstick.hit(Known(("3", "4")), rows) == pytest.approx(0.9)


def test_models_are_timed_on_the_same_queries_in_turns() -> None:
    """One query at a time; the first half is not counted."""
    models, queries = {"a": Known(), "b": Known()}, [str(number) for number in range(6)]
    assert set(yardstick.milliseconds(models, queries)) == {"a", "b"}
    assert models["a"].asked == models["b"].asked == queries
