"""The data of the grid `few_photos`: a share of the labels, and all rows with their labels dealt by chance."""

import json
from pathlib import Path

import pytest

from tests.bench import few_photos


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A tenth of two tasks of twenty rows."""
    mbeir = tmp_path / "mbeir"
    rows = [{"qid": f"1:{n}", "pos_cand_list": [f"1:{n}"], "task_id": n % 2} for n in range(40)]
    for split in ("train", "val"):
        (mbeir / "query" / split).mkdir(parents=True)
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (mbeir / "query" / split / f"mbeir_a_{split}.jsonl").write_text(lines)
    (mbeir / "cand_pool").mkdir()
    few_photos.draw(mbeir, tmp_path)
    return tmp_path


def read(directory: Path, split: str = "train") -> list[dict]:
    """The rows of a split."""
    with (directory / "query" / split / f"mbeir_a_{split}.jsonl").open() as file:
        return [json.loads(line) for line in file]


def test_each_task_keeps_a_tenth_of_its_labels(drawn: Path) -> None:
    """And all other files."""
    rows = read(drawn / "labelled")
    assert [row["task_id"] for row in rows] == [0, 0, 1, 1]
    assert all(row["pos_cand_list"] == [row["qid"]] for row in rows)
    assert len(read(drawn / "labelled", "val")) == 40
    assert (drawn / "labelled" / "cand_pool").is_dir()


def test_unpaired_rows_keep_the_candidates_of_their_task(drawn: Path) -> None:
    """Dealt anew: few have their own again."""
    rows = read(drawn / "unpaired")
    for task in (0, 1):
        own = [row for row in rows if row["task_id"] == task]
        assert sorted(row["qid"] for row in own) == sorted(row["pos_cand_list"][0] for row in own)
    assert sum(row["pos_cand_list"] == [row["qid"]] for row in rows) < 10
