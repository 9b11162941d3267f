"""Queries that ask the same are one query with the candidates of all their rows."""

from pathlib import Path

import pyarrow as pa

from stages.data.ingest import merge
from stages.data.schemas import RAW_QUERIES
from stages.data.sources import pairs, records
from stages.data.sources.chunks import file_chunks
from tests.corpus_files import write_records


def merged(rows: list[dict], work: Path, cut: int = 80) -> tuple[list[dict], merge.Merged]:
    """The query rows of a file that is read in small chunks."""
    path = write_records(work / "p.jsonl", rows)
    laid = records.lay_out(path, [path], work / "work")
    chunks = enumerate(file_chunks(laid.root, laid.sources[0], cut))
    tables = [pairs.read_queries(laid, number, chunk) for number, chunk in chunks]
    several = merge.repeated(pa.concat_tables(map(merge.keys, tables)))
    known = merge.Merged.of(pa.concat_tables([merge.parts(table, several) for table in tables[::-1]]))
    left = [merge.merge(table, known) for table in tables]
    assert all(table.schema == RAW_QUERIES for table in left)
    return pa.concat_tables(left).to_pylist(), known


def ask(text: str, positive: str, negatives: str = "", **fields: object) -> dict:
    return {
        "query": {"text": text},
        "positives": [{"id": positive, "text": positive}],
        "negatives": [{"id": one, "text": one} for one in negatives],
        "split": "train",
        **fields,
    }


def test_rows_that_ask_the_same_become_the_first_of_them_with_all_candidates(tmp_path: Path) -> None:
    rows = [ask("red", "a", "bx"), ask("blue", "c"), ask("red", "b", "y", id="later"), ask("Red.", "a", "x")]
    found, known = merged(rows, tmp_path)
    assert [(row["qid"], row["positives"], row["negatives"]) for row in found] == [
        ("p.jsonl:1", ["a", "b"], ["x", "y"]),  # what answers one of the rows is no negative
        ("p.jsonl:2", ["c"], []),
    ]
    assert (known.rows, len(known.keys)) == (3, 1)


def test_blanks_composed_letters_and_detours_of_paths_make_no_other_query(tmp_path: Path) -> None:
    rows = [ask("café  au lait", "a"), ask("cafe\u0301\tau\u00a0lait", "b"), ask("Café au thé", "c")]
    rows += [ask("", one) | {"query": {"image": path}} for one, path in (("d", "x/r.png"), ("e", "./x/../x//r.png"))]
    found, _ = merged(rows, tmp_path)
    assert [row["positives"] for row in found] == [["a", "b"], ["c"], ["d", "e"]]
    assert found[0]["text"] == "Café  au lait." and found[2]["image_path"] == "x/r.png"


def test_another_task_split_or_picture_is_another_query_and_bad_rows_pass(tmp_path: Path) -> None:
    rows = [ask("red", "a"), ask("red", "b", task="t"), ask("red", "c", split="val"), ask("red", "d", split="dev")]
    rows += [ask("red", "e") | {"query": {"text": "red", "image": "r.png"}}, b"{broken"]
    rows += [ask("red", "f") | {"positives": [{"id": "f", "image": "f.png"}]}]  # text to image is a task of its own
    found, known = merged(rows, tmp_path)
    assert len(found) == len(rows) and known.rows == 0
    assert [row["reason"] for row in found if row["reason"]] == ["bad split", "broken JSON"]
