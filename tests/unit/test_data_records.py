"""A user's files are found, laid out as JSON lines, and told apart by what changes in them."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from stages import index
from stages.contract.context import InputError
from stages.data.metadata import RAW, UNTYPED, kinds, name_columns, read_cell, spoiled, typed, with_columns
from stages.data.sources import records
from stages.data.sources.chunks import file_chunks
from stages.data.sources.corpus_rows import candidate, read_rows
from stages.data.sources.fields import BadField
from stages.distributed import corpus
from stages.search.retriever import metadata_of
from tests.corpus_files import write_csv, write_pictures, write_records
from tests.mbeir_files import png


def read(path: Path, work: Path) -> list[dict]:
    """All rows of a corpus as the stage reads them."""
    laid = records.lay_out(path, records.find(path, "index.corpus", bare=True), work)
    return [
        row
        for source in laid.sources
        for number, chunk in enumerate(file_chunks(laid.root, source))
        for row in read_rows(laid, number, chunk).to_pylist()
    ]


def type_all(rows: list[dict]) -> tuple[dict, list[dict]]:
    """The metadata columns of read rows, and what results show of those that are kept."""
    columns = name_columns(kinds(pa.Table.from_pylist(rows, RAW)).to_pylist())
    kept = pa.Table.from_pylist([row for row in rows if row["reason"] is None], UNTYPED)
    return columns, [json.loads(text or "{}") for text in typed(kept, columns)["metadata"].to_pylist()]


def test_pictures_of_a_folder_are_a_corpus_whose_ids_are_paths(tmp_path: Path) -> None:
    text, *rows = read(write_pictures(tmp_path / "photos"), tmp_path / "work")
    assert (text["did"], text["modality"], text["text"]) == ("notes.txt:1", "text", "No picture.")
    assert [row["did"] for row in rows] == [
        "blue square.png",
        "red square.png",
        "deep/green square.png",
        "deep/yellow square.png",
    ]
    assert all(row["image_path"] == row["did"] and row["modality"] == "image" for row in rows)
    assert len({row["position"] for row in rows}) == 4


def test_pictures_of_a_folder_are_told_by_content_and_other_files_are_counted(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos")
    for name in ("IMG_1.heic", "scan.TIFF", "old.jfif"):  # called like pictures: not opened here
        (folder / name).write_bytes(b"x")
    (folder / "no ending").write_bytes(png("red"))
    (folder / "deep" / "film.mov").write_bytes(b"\0\0\0\x14ftypqt  ")
    (folder / "deep" / "metadata.jsonl").write_bytes(b"{}")
    (folder / "album").symlink_to(tmp_path)
    laid = records.lay_out(folder, [], tmp_path / "work")
    paths = set(records.list_pictures(folder, look=True))
    assert paths >= {"IMG_1.heic", "scan.TIFF", "old.jfif", "no ending"} and len(paths) == 8
    assert laid.notes == (
        "3 files beside 8 pictures are none and left out (.jsonl 1, .mov 1, .txt 1)",
        f"linked folders are not entered: album; copy the folder with its links followed: cp -rL {folder} COPY",
        f"deep/metadata.jsonl is not read: give its folder, {folder}/deep, to read it",
    )
    seen = records.fingerprint(folder)
    (folder / "deep" / "film.mov").write_bytes(b"another")
    assert records.fingerprint(folder) == seen
    (folder / "no ending").write_bytes(png("blue", (9, 9)))
    assert records.fingerprint(folder) != seen


def test_a_folder_of_nothing_but_links_is_refused_with_the_mend(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "album").symlink_to(tmp_path / "photos")
    with pytest.raises(InputError, match=r"holds no file of records and no picture; its folders are links: .*cp -rL"):
        records.find(tmp_path / "own", "index.corpus", bare=True)


def test_folders_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = write_pictures(tmp_path / "photos"), os.scandir

    def scandir(place: str) -> object:  # root may read every folder
        if str(place).endswith(("deep", "closed")):
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return real(place)

    (tmp_path / "own" / "closed").mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", scandir)
    told = records.lay_out(folder, [], tmp_path / "work").notes
    assert told[-1].startswith(f"folders that may not be read are left out: deep; chmod -R u+rX {folder}, or ask")
    with pytest.raises(InputError, match=r"no picture; its folders may not be read: chmod -R u\+rX .*/own, or ask"):
        records.find(tmp_path / "own", "index.corpus", bare=True)


def test_lines_of_texts_are_rows_of_a_corpus_beside_pictures_and_alone(tmp_path: Path) -> None:
    folder, work = write_pictures(tmp_path / "shop"), tmp_path / "work"
    (folder / "notes.txt").write_text("oat milk\n\nrye bread\n")
    texts = [("notes.txt:1", "Oat milk."), ("notes.txt:3", "Rye bread.")]
    assert [(row["did"], row["text"]) for row in read(folder, work) if row["text"]] == texts
    assert len(read(folder, work)) == 6
    assert [(row["did"], row["text"]) for row in read(folder / "notes.txt", work)] == texts


def test_an_index_of_a_corpus_follows_its_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.model.identity.identify", lambda model: "a student")
    (tmp_path / "lines.txt").write_text("oat milk")
    params, student = index.Params(corpus=str(tmp_path)), SimpleNamespace(model="model")
    corpus.check(params)
    seen = corpus.fingerprint(params, student)
    (tmp_path / "lines.txt").write_text("oat milk\nrye bread")
    assert corpus.fingerprint(params, student) != seen


def test_a_table_keeps_ids_as_text_and_reads_numbers_and_truths(tmp_path: Path) -> None:
    table = [["id", "text", "price", "fresh", "code"], ["007", "milk, whole", "9.50", "TRUE", "0042"]]
    table += [["8", 'two\nlines "quoted"', "", "false", "x"], ["9", "", "1", "true", ""]]
    rows = read(write_csv(tmp_path / "goods.csv", table), tmp_path / "work")
    assert [row["did"] for row in rows] == ["007", "8", "9"]
    columns, shown = type_all(rows)
    assert {name: column["kind"] for name, column in columns.items()} == {
        "price": "number",
        "fresh": "truth",
        "code": "text",
    }
    assert shown == [
        {"price": 9.5, "fresh": True, "code": "0042"},
        {"fresh": False, "code": "x"},
    ]
    assert (rows[2]["reason"], rows[2]["source"]) == ("empty", "goods.csv:5")


def test_bad_rows_name_their_line_and_their_reason(tmp_path: Path) -> None:
    rows = [
        {"text": "good"},
        b"{broken",
        {"id": True, "text": "x"},
        {"text": 5},
        {"image": ""},
        b'{"text": "\\ud800"}',
        b"[1]",
    ]
    found = read(write_records(tmp_path / "own.jsonl", rows), tmp_path / "work")
    assert [(row["source"], row["reason"]) for row in found] == [
        ("own.jsonl:1", None),
        ("own.jsonl:2", "broken JSON"),
        ("own.jsonl:3", "bad id"),
        ("own.jsonl:4", "bad field"),
        ("own.jsonl:5", "empty"),
        ("own.jsonl:6", "broken JSON"),
        ("own.jsonl:7", "broken JSON"),
    ]
    assert found[0]["did"] == "own.jsonl:1"


def test_what_is_no_number_of_json_is_no_value(tmp_path: Path) -> None:
    rows = [b'{"text": "pear", "price": NaN, "size": [1, -Infinity], "weight": 1e999}', {"text": "fig", "price": 2}]
    columns, shown = type_all(read(write_records(tmp_path / "own.jsonl", rows), tmp_path / "work"))
    assert shown == [{"size": [1, None]}, {"price": 2}] and columns["price"]["kind"] == "number"
    written = metadata_of({"metadata": '{"price": NaN}'})  # as indexes once held it
    assert written == {"price": None}


def test_a_row_with_more_cells_than_the_header_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none,two\nthree\n")
    rows = read(tmp_path / "a.csv", tmp_path / "work")
    assert [row["reason"] for row in rows] == ["too many cells", None]
    assert rows[0]["detail"].endswith("than the header names; quote cells that hold what separates cells")


def test_a_row_that_is_no_utf8_is_named_by_its_line_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('id,text\n1,"two\nlines"\n2,k\xe4se\n3,milk\n'.encode("latin-1"))
    rows = read(tmp_path / "a.csv", tmp_path / "work")
    assert [(row["source"], row["reason"]) for row in rows] == [
        ("a.csv:3", None),
        ("a.csv:4", "not UTF-8"),
        ("a.csv:5", None),
    ]
    assert rows[1]["detail"].endswith("; save a table as CSV UTF-8, a text as UTF-8")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.doc", "x", "is not read by its name; give a file that ends in .jsonl .ndjson .csv .tsv .txt"),
        ("a.csv", "text,text\na,b\n", "names each column once"),
        ("a.csv", "", "names each column once"),
        ("a.csv", 'text\n"open\n', "correct the quotes"),
    ],
)
def test_files_that_cannot_be_followed_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name, tmp_path / "work")


def test_an_empty_or_missing_place_is_refused(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "holds no file of records and no picture"), (tmp_path / "gone", "is not there")):
        with pytest.raises(InputError, match=message):
            records.find(path, "index.corpus", bare=True)


def test_the_fingerprint_sees_records_and_pictures_and_nothing_else(tmp_path: Path) -> None:
    path = write_records(tmp_path / "own.jsonl", [{"text": "a"}])
    write_pictures(tmp_path)
    seen = [records.fingerprint(path)]
    (tmp_path / ".puma").mkdir()
    (tmp_path / ".puma" / "thumb.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("changed")
    assert records.fingerprint(path) == seen[0]
    (tmp_path / "red square.png").write_bytes(b"another")
    seen.append(records.fingerprint(path))
    write_records(path, [{"text": "a"}, {"text": "b"}])
    assert len({*seen, records.fingerprint(path)}) == 3


def test_of_many_pictures_the_fingerprint_sees_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_records(tmp_path / "own.jsonl", [{"text": "a"}])
    (tmp_path / "shelf").mkdir()
    for number in range(4):
        (tmp_path / "shelf" / f"{number}.png").write_bytes(b"x")
    few, _ = records.fingerprint(path), monkeypatch.setattr(records, "MOST", 3)
    seen = [few, records.fingerprint(path)]
    (tmp_path / "notes.txt").write_text("beside the records")
    (tmp_path / "shelf" / "0.png").write_bytes(b"written over in place")
    assert records.fingerprint(path) == seen[1]
    os.utime(tmp_path / "shelf", (1, 1))
    seen.append(records.fingerprint(path))
    (tmp_path / "4.png").write_bytes(b"x")
    seen.append(records.fingerprint(path))
    write_records(path, [{"text": "b"}, {"text": "c"}])
    assert len({*seen, records.fingerprint(path)}) == 5


def test_in_a_folder_that_is_the_corpus_a_replaced_picture_shows(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "MOST", 1)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    before = records.fingerprint(tmp_path)
    (tmp_path / "new").write_bytes(b"y")
    (tmp_path / "new").replace(tmp_path / "a.png")
    os.utime(tmp_path, (1, 1))
    assert records.fingerprint(tmp_path) != before


def test_metadata_columns_get_the_type_that_all_their_values_have() -> None:
    told = [{"price": 3, "brand": "A", "mixed": 1, "list": [1]}, {"price": 2.5, "mixed": "x"}, None]
    shown = [json.dumps(one) if one else None for one in told]
    table = pa.Table.from_pylist([{"metadata": one, "source": "a"} for one in shown], RAW)
    columns = name_columns(kinds(table).to_pylist())
    assert {name: column["kind"] for name, column in columns.items()} == {
        "brand": "text",
        "list": "text",
        "mixed": "text",
        "price": "number",
    }
    typed = with_columns(table, columns)
    assert typed[columns["price"]["column"]].to_pylist() == [3.0, 2.5, None]
    assert typed[columns["mixed"]["column"]].to_pylist() == ["1", "x", None]
    assert typed[columns["list"]["column"]].to_pylist() == ["[1]", None, None]


def test_one_cell_that_is_no_number_leaves_its_column_text_as_it_is_written(tmp_path: Path) -> None:
    prices = ["9.50", "12.00", "100", "N/A", "19.90", "2"]
    table = [["text", "price"], *([f"thing {price}", price] for price in prices)]
    rows = read(write_csv(tmp_path / "goods.csv", table), tmp_path / "work")
    columns, shown = type_all(rows)
    assert columns["price"]["kind"] == "text" and [row["price"] for row in shown] == prices
    (line,) = spoiled(kinds(pa.Table.from_pylist(rows, RAW)).to_pylist())
    assert line == "column 'price' is text, for 1 of its 6 values are no numbers: 'N/A' (goods.csv:5)"


def test_a_column_that_is_text_for_the_most_part_is_no_spoilt_one() -> None:
    rows = [{"metadata": json.dumps({"code": one}), "source": "a"} for one in ("x", "y", 1, " ", 2)]
    told = kinds(pa.Table.from_pylist(rows, RAW)).to_pylist()
    assert {row["kind"]: row["count"] for row in told} == {"text": 2, "number": 2} and not spoiled(told)


@pytest.mark.parametrize(
    ("cell", "value"),
    [(" 12 ", 12), ("-0.5e1", -5.0), ("007", "007"), ("1e999", "1e999"), ("9" * 5000, "9" * 5000), ("+1", "+1")],
)
def test_a_cell_is_a_number_where_json_would_write_it_so(cell: str, value: object) -> None:
    assert read_cell(cell) == value


def test_a_blank_between_numbers_is_no_value() -> None:
    rows = [{"metadata": json.dumps({"price": one}), "source": "a"} for one in (1, "", 2.5)]
    columns, shown = type_all([{**row, "reason": None} for row in rows])
    assert columns["price"]["kind"] == "number" and shown == [{"price": 1}, {}, {"price": 2.5}]


def test_a_metadata_object_is_opened_up() -> None:
    row = candidate({"text": "milk", "price": 3, "metadata": {"brand": "A"}})
    assert json.loads(row["metadata"]) == {"price": 3, "brand": "A"}
    with pytest.raises(BadField, match="neither text nor image"):
        candidate({"metadata": {"text": "no"}})


@pytest.mark.parametrize(("value", "kind"), [(2**53, "number"), (2**53 + 1, "text"), (-(10**30), "text")])
def test_an_integer_that_a_float_cannot_hold_is_kept_as_its_text(value: int, kind: str) -> None:
    shown = [candidate({"text": "x", "code": one})["metadata"] for one in (value, 7)]
    table = pa.Table.from_pylist([{"metadata": one, "source": "a"} for one in shown], RAW)
    columns = name_columns(kinds(table).to_pylist())
    assert columns == {"code": {"column": "m0", "kind": kind}}
    expected = [value, 7] if kind == "number" else [str(value), "7"]
    assert with_columns(table, columns)["m0"].to_pylist() == expected
