"""A row of pairs becomes a query and its candidates, or the reason why not."""

from pathlib import Path

import pytest

from stages.data.instructions import default_instructions, plain_instructions
from stages.data.sources import delimited, pairs, records
from stages.data.sources.chunks import file_chunks
from stages.data.sources.fields import BadField
from tests.corpus_files import pair, write_csv, write_records


def read(path: Path, work: Path) -> tuple[list[dict], list[dict]]:
    """(queries, candidates) of a file of pairs."""
    laid = records.lay_out(path, records.find(path, "data.path", bare=False), work)
    cut = [chunk for source in laid.sources for chunk in file_chunks(laid.root, source)]
    return (
        [row for number, chunk in enumerate(cut) for row in pairs.read_queries(laid, number, chunk).to_pylist()],
        [row for number, chunk in enumerate(cut) for row in pairs.read_candidates(laid, number, chunk).to_pylist()],
    )


def test_a_row_is_a_query_with_positives_and_hard_negatives(tmp_path: Path) -> None:
    rows = [pair(0, "test", id="q1", task="squares"), pair(1, "train")]
    queries, candidates = read(write_records(tmp_path / "p.jsonl", rows), tmp_path / "work")
    first, second = queries
    assert (first["qid"], first["text"], first["modality"]) == ("q1", "Something red 0.", "text")
    assert (first["positives"], first["negatives"], first["task_id"]) == (["p0"], ["p1"], 0)
    assert (first["dataset"], first["split"], first["pool"]) == ("squares", "test", "squares_task0")
    assert (second["qid"], second["dataset"], second["pool"]) == ("p.jsonl:2", "pairs", None)
    assert [(row["did"], row["image_path"], row["pool"]) for row in candidates] == [
        ("p0", "red.png", "squares_task0"),
        ("p1", "green.png", "squares_task0"),
        ("p1", "green.png", "pairs_task0"),
        ("p2", "blue.png", "pairs_task0"),
    ]
    assert len({row["position"] for row in candidates}) == 4


def test_what_answers_a_query_is_none_of_its_negatives() -> None:
    asked = pair(0, positives=[{"text": "red"}], negatives=[{"text": "Red."}, {"text": "blue"}])
    found = pairs.query(asked, "x")
    assert found["negatives"] == [pairs.candidate({"text": "blue"})["did"]] and len(found["positives"]) == 1


def test_a_spreadsheet_tells_the_same(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("Query_Text;Positive_Text;Split\nmilk;A carton, one litre;val\n")
    path = tmp_path / "p.csv"
    pairs.check_columns(delimited.read_header(path), str(path))
    laid = records.lay_out(path, [path], tmp_path / "work", of_tables=pairs.COLUMNS)
    (query,) = pairs.read_queries(laid, 0, next(file_chunks(laid.root, laid.sources[0]))).to_pylist()
    assert (query["text"], query["split"], query["reason"]) == ("Milk.", "val", None)


def test_a_table_tells_the_same(tmp_path: Path) -> None:
    header = ["id", "query_text", "positive_id", "positive_text", "negative_text", "split"]
    table = [
        header,
        ["1", "milk", "m", "A carton, one litre", "A loaf", "val"],
        ["2", "bread", "", "A loaf", "", "val"],
    ]
    queries, candidates = read(write_csv(tmp_path / "p.csv", table), tmp_path / "work")
    assert [row["qid"] for row in queries] == ["1", "2"] and queries[0]["positives"] == ["m"]
    assert queries[0]["negatives"] == queries[1]["positives"]  # the same content without an id is the same candidate
    assert [row["text"] for row in candidates] == ["A carton, one litre.", "A loaf.", "A loaf."]


@pytest.mark.parametrize("task", ["photo to label", "../../etc", "靴", "C/D: 50 %", 7])
def test_any_short_text_is_the_name_of_a_task(task: object, tmp_path: Path) -> None:
    queries, candidates = read(write_records(tmp_path / "p.jsonl", [pair(0, "val", task=task)]), tmp_path / "work")
    assert (queries[0]["dataset"], queries[0]["pool"]) == (str(task), f"{task}_task0")
    assert {row["pool"] for row in candidates} == {f"{task}_task0"}


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"query": {}}, "empty"),
        ({"query": "red"}, "bad field"),
        ({"positives": []}, "no positive"),
        ({"positives": "p0"}, "bad list"),
        ({"positives": [{"id": "p0"}]}, "empty"),
        ({"negatives": [{"text": 3}]}, "bad field"),
        ({"split": "dev"}, "bad split"),
        ({"task": "x" * 65}, "bad task"),
        ({"task": "\x1b[31m"}, "bad task"),
        ({"task": ["shoes"]}, "bad task"),
        ({"id": "a b"}, "bad id"),
        ({"id": [1]}, "bad id"),
    ],
)
def test_a_bad_row_is_rejected_whole_with_its_line(change: dict, reason: str, tmp_path: Path) -> None:
    queries, candidates = read(write_records(tmp_path / "p.jsonl", [pair(0), pair(1) | change]), tmp_path / "work")
    assert [(row["source"], row["reason"]) for row in queries] == [("p.jsonl:1", None), ("p.jsonl:2", reason)]
    assert len(candidates) == 2


def test_rows_without_a_split_are_shared_out_by_their_query() -> None:
    splits = [pairs.query(pair(0, query={"text": f"query {number}"}), "x")["split"] for number in range(2000)]
    assert splits.count("val") == pytest.approx(200, abs=60) and splits.count("test") == pytest.approx(200, abs=60)
    again = [pairs.query(pair(1, query={"text": f"query {number}"}), "y")["split"] for number in range(2000)]
    assert again == splits
    blanks = [pairs.query(pair(2, query={"text": f" query\u00a0 {number}"}), "z")["split"] for number in range(2000)]
    assert blanks == splits


def test_every_pair_of_modalities_has_wordings() -> None:
    rows = default_instructions()
    assert len(rows) == 9 and all(len(set(row["prompts"])) == 2 for row in rows)
    assert rows == plain_instructions((row["dataset"], row["query_modality"], row["target_modality"]) for row in rows)


def test_candidates_need_text_or_image() -> None:
    with pytest.raises(BadField, match="neither text nor image"):
        pairs.candidate({"text": ' "" '})
