"""The data of the grids that compare labels with a teacher: few labels, and the same texts with and without roles."""

import json
from pathlib import Path

import pytest

from tests.bench import few_labels


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Three labels of six, and eight texts."""
    splits = ["train"] * 6 + ["val", "test"]
    pairs = [
        {"id": f"q{n}", "query": {"text": f"query {n}"}, "positives": [{"text": f"candidate {n}"}], "split": split}
        for n, split in enumerate(splits)
    ]
    texts = [{"id": f"{side}-{n}", "text": f"free {side} {n}"} for n in range(9) for side in "dw"]
    few_labels.write(tmp_path / "all.jsonl", pairs)
    few_labels.write(tmp_path / "free.jsonl", texts)
    few_labels.draw(tmp_path / "all.jsonl", tmp_path / "free.jsonl", tmp_path, labels=3, count=8)
    return tmp_path


def test_labels_are_few_and_the_other_splits_whole(drawn: Path) -> None:
    """Each split is a task of its own."""
    rows = few_labels.read(drawn / "pairs.jsonl")
    assert [row["task"] for row in rows] == ["train"] * 3 + ["val", "test"]
    assert len({json.dumps(row) for row in rows}) == 5


def test_more_labels_than_texts_are_refused(drawn: Path) -> None:
    """In a line, before anything is drawn."""
    with pytest.raises(SystemExit, match="5 pairs have 10 texts, and 8 were asked for; raise TEXTS"):
        few_labels.draw(drawn / "all.jsonl", drawn / "free.jsonl", drawn / "more", labels=5, count=8)
    assert not (drawn / "more").exists()


def test_unpaired_rows_are_the_same_texts_in_their_roles(drawn: Path) -> None:
    """What is like a query stands as one, and no text is lost or twice."""
    rows = few_labels.read(drawn / "unpaired.jsonl")
    queries = [row["query"]["text"] for row in rows]
    candidates = [row["positives"][0]["text"] for row in rows]
    assert all("query" in text or "free d" in text for text in queries)
    assert all("candidate" in text or "free w" in text for text in candidates)
    assert sorted(queries + candidates) == sorted(row["text"] for row in few_labels.read(drawn / "texts.jsonl"))
    assert len(set(queries + candidates)) == 8
