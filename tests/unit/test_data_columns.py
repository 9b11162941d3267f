"""Tables as shops and spreadsheets write them: what separates cells is found, and columns are known or named."""

from pathlib import Path

import pytest

from stages import ingest
from stages.contract.context import InputError
from stages.data.sources import records
from stages.data.sources.chunks import file_chunks
from stages.data.sources.columns import Columns, IndexColumns, check_columns, rename
from stages.data.sources.corpus_rows import read_rows
from stages.data.sources.delimited import read_header
from stages.distributed import corpus
from stages.index import Params
from tests.corpus_files import write_pictures, write_records

SHOPIFY = "Handle,Title,Body (HTML),Image Src\nmilk,Whole milk,<p>cold</p>,milk.png\n"


def read(path: Path, work: Path, **named: str) -> list[dict]:
    """All rows of a corpus as the stage reads them."""
    columns = IndexColumns(**named).names()
    files = records.find(path, "index.corpus", bare=True)
    laid = records.lay_out(path, files, work, columns, setting="index.columns")
    chunks = [(one, chunk) for one in laid.sources for chunk in file_chunks(laid.root, one)]
    return [row for number, (_, chunk) in enumerate(chunks) for row in read_rows(laid, number, chunk).to_pylist()]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_what_separates_cells_is_found(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "goods.csv"
    path.write_text(f'id{separator}"Text"{separator}price\n7{separator}"milk, {separator} whole"{separator}"9,50"\n')
    assert read_header(path) == ["id", "Text", "price"]
    (row,) = read(path, tmp_path / "work")
    assert (row["did"], row["text"]) == ("7", f"Milk, {separator} whole.")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_comma_in_the_name_of_a_column_separates_nothing_where_the_row_below_has_none(
    separator: str, tmp_path: Path
) -> None:
    path = tmp_path / "goods.csv"
    path.write_text("id,text,size, cm\n1,milk,2\n".replace(",", separator).replace(f"{separator} ", ", "))
    assert read_header(path) == ["id", "text", "size, cm"]


def test_a_row_that_can_not_be_read_hides_nothing_that_the_header_tells(tmp_path: Path) -> None:
    path = tmp_path / "goods.csv"
    path.write_text('id;text\n1;"open\n')
    assert read_header(path) == ["id", "text"]


@pytest.mark.parametrize("told", ["sep=;\n", '"sep=;"\r\n', "\ufeffsep=;\r\n"])
def test_what_separates_cells_may_be_told_above_the_header(told: str, tmp_path: Path) -> None:
    path = tmp_path / "goods.csv"
    path.write_text(f'{told}id;text\n1;"milk,\ncold"\n;\n', newline="")
    assert read_header(path) == ["id", "text"]
    good, bad = read(path, tmp_path / "work")
    assert (good["did"], good["text"], good["source"]) == ("1", "Milk,\ncold.", "goods.csv:4")
    assert (bad["reason"], bad["source"]) == ("empty", "goods.csv:5")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_header_that_is_no_utf8_is_refused_with_the_mend(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "goods.csv"
    path.write_bytes("id\ttext\tgröße\n1\tmilk\t2\n".encode(encoding))
    with pytest.raises(InputError, match=r"header of .*goods.csv is no text in UTF-8; save the table as CSV UTF-8"):
        corpus.check(Params(corpus=str(path)))


@pytest.mark.parametrize("header", ["text", '"text; a, b"', "text,size (a;b;c)"])
def test_a_sign_in_the_name_of_a_column_separates_nothing(header: str, tmp_path: Path) -> None:
    path = tmp_path / "goods.csv"
    path.write_text(f"{header}\nx\n")
    assert len(read_header(path)) == 1 + header.endswith("c)")


def test_known_columns_hold_whatever_their_case_and_their_blanks() -> None:
    names = IndexColumns().names()
    assert rename([" TEXT ", "Image", "ID", "Price"], names) == ["text", "image", "id", "Price"]
    assert rename(["text", "Text"], names) == ["text", "Text"]
    assert rename(["text", "Title"], IndexColumns(text="title").names()) == ["text (own)", "text"]


def test_columns_that_a_setting_names_are_read_from_tables_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(SHOPIFY)
    write_records(tmp_path / "b.jsonl", [{"Handle": "fig", "Title": "Figs", "text": "not this"}])
    rows = read(tmp_path, tmp_path / "work", id="handle", text="Title", image=" image  src")
    assert [(row["did"], row["text"], row["image_path"]) for row in rows] == [
        ("milk", "Whole milk.", "milk.png"),
        ("fig", "Figs.", None),
    ]
    assert rows[0]["metadata"] == '{"Body (HTML)": "<p>cold</p>"}'
    assert rows[1]["metadata"] == '{"text (own)": "not this"}'


def test_a_table_without_known_columns_is_refused_with_those_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "goods.csv"
    path.write_text(SHOPIFY)
    said = r"goods.csv has the columns Handle, Title, Body \(HTML\), Image Src; name the one that counts"
    with pytest.raises(InputError, match=rf"{said}: index\.columns\.text='Handle' or the like, or index\.columns\.im"):
        corpus.check(Params(corpus=str(path)))
    corpus.check(Params(corpus=str(path), columns=IndexColumns(text="TITLE")))
    with pytest.raises(InputError, match=r"none that is called as index\.columns\.text says; correct index\.col"):
        corpus.check(Params(corpus=str(path), columns=IndexColumns(text="Titel")))
    given = ingest.OwnData(kind="corpus", path=str(path), columns=Columns(text="Title"))
    ingest.check(given)
    with pytest.raises(InputError, match=r"distill\.data\.columns\.text='Handle'"):
        ingest.check(given.model_copy(update={"columns": Columns()}))


def test_a_record_without_known_columns_is_rejected_with_those_that_it_has(tmp_path: Path) -> None:
    path = write_records(tmp_path / "own.jsonl", [{"Title": "Figs", "price": 3}, {"Text": "pears"}, {"text": ""}])
    rows = read(path, tmp_path / "work")
    assert rows[0]["detail"].startswith("the row has neither text nor image, it has Title, price; name the one that")
    assert [row["reason"] for row in rows] == ["empty", None, "empty"] and rows[1]["text"] == "Pears."


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_files_that_a_list_beside_pictures_names_are_the_pictures(kind: str, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos")
    if kind == "csv":
        (folder / "metadata.csv").write_text("file_name,text\nred square.png,a red one\n")
    else:
        write_records(folder / "metadata.jsonl", [{"file_name": "red square.png", "text": "a red one"}])
    corpus.check(Params(corpus=str(folder)))
    (row,) = read(folder, tmp_path / "work")
    assert (row["modality"], row["image_path"]) == ("image,text", "red square.png")


def test_a_row_without_an_id_tells_which_picture_it_is(tmp_path: Path) -> None:
    unnamed = [{"image": "a.png", "price": 3}, {"image": "b.png", "file_name": "own"}, {"text": "x", "id": ""}]
    named = [{"id": 0, "image": "c.png"}, {"id": "d", "image": "d.png"}]
    rows = read(write_records(tmp_path / "own.jsonl", [*unnamed, *named]), tmp_path / "work")
    assert [row["metadata"] for row in rows] == [
        '{"file_name": "a.png", "price": 3}',
        '{"file_name": "own"}',
        None,
        None,
        None,
    ]


def test_a_list_beside_pictures_that_is_not_read_is_named(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos")
    (folder / "metadata.parquet").write_bytes(b"PAR1")
    laid = records.lay_out(folder, [], tmp_path / "work")
    assert (
        "metadata.parquet is not read: write its rows as metadata.jsonl to have the texts of the pictures"
        in laid.notes
    )


def test_a_file_name_in_other_records_is_metadata(tmp_path: Path) -> None:
    (row,) = read(write_records(tmp_path / "own.jsonl", [{"file_name": "a.pdf", "text": "x"}]), tmp_path / "work")
    assert (row["modality"], row["image_path"]) == ("text", None)
    check_columns(["file_name", "text"], IndexColumns().names(), "own.csv", "index.columns")
