"""A corpus without labels: every row a pair of itself, whatever it lies in; what cannot be used has a reason."""

from pathlib import Path

import pytest

from stages import ingest
from stages.contract.context import InputError
from stages.data.sources import pairs, records, unlabelled
from stages.data.sources.chunks import file_chunks
from tests.corpus_files import write_csv, write_pictures, write_records


def read(path: Path, work: Path) -> tuple[list[dict], list[dict]]:
    """(queries, candidates) of a corpus."""
    laid = records.lay_out(path, records.find(path, "data.path", bare=True), work)
    cut = [chunk for source in laid.sources for chunk in file_chunks(laid.root, source)]
    readers = (pairs.read_queries, pairs.read_candidates)
    return tuple(
        [
            row
            for number, chunk in enumerate(cut)
            for row in reader(laid, number, chunk, unlabelled.as_pair).to_pylist()
        ]
        for reader in readers
    )


def test_a_row_is_the_one_positive_of_itself_and_always_to_be_learnt_from(tmp_path: Path) -> None:
    rows = [{"id": "a b", "text": "milk", "split": "test", "price": 3}, {"text": "bread", "image": "b.png"}]
    queries, candidates = read(write_records(tmp_path / "own.jsonl", rows), tmp_path / "work")
    for query, candidate in zip(queries, candidates, strict=True):
        assert query["positives"] == [candidate["did"]] and query["negatives"] == [] and query["split"] == "train"
        assert [query[name] for name in ("modality", "text", "image_path", "source")] == [
            candidate[name] for name in ("modality", "text", "image_path", "source")
        ]
        assert query["dataset"] == "corpus" and query["pool"] is None
    assert [query["qid"] for query in queries] == ["own.jsonl:1", "own.jsonl:2"]
    assert [query["modality"] for query in queries] == ["text", "image,text"]


def test_a_folder_gives_its_texts_line_by_line_and_its_pictures(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "shop")
    (folder / "notes.txt").write_bytes(b"Milk, whole.\n\n  Bread \r\nM\xfcsli\n")
    (folder / "._notes.txt").write_bytes(b"what macOS keeps beside a text")
    queries, candidates = read(folder, tmp_path / "work")
    assert [(row["source"], row["text"] or row["image_path"], row["reason"]) for row in queries] == [
        ("notes.txt:1", "Milk, whole.", None),
        ("notes.txt:3", "Bread.", None),
        ("notes.txt:4", None, "not UTF-8"),
        ("shop:1", "blue square.png", None),
        ("shop:2", "red square.png", None),
        ("shop:3", "deep/green square.png", None),
        ("shop:4", "deep/yellow square.png", None),
    ]
    assert len(candidates) == 6


def test_records_say_which_pictures_of_a_folder_belong_to_the_corpus(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "shop")
    write_records(folder / "goods.jsonl", [{"image": "red square.png"}])
    queries, _ = read(folder, tmp_path / "work")
    assert [row["image_path"] for row in queries] == ["red square.png"]


def test_a_table_of_sentences_keeps_its_lines_and_its_bad_rows(tmp_path: Path) -> None:
    table = [["text", "source"], ["007", "wiki"], ["", "wiki"], ["two\nlines", "wiki"], ["last", "wiki", "?"]]
    queries, candidates = read(write_csv(tmp_path / "nli.csv", table), tmp_path / "work")
    assert [(row["source"], row["text"], row["reason"]) for row in queries] == [
        ("nli.csv:2", "007.", None),
        ("nli.csv:3", None, "empty"),
        ("nli.csv:5", "Two\nlines.", None),
        ("nli.csv:6", None, "too many cells"),
    ]
    assert len(candidates) == 2


def params(path: Path, kind: str = "corpus", own: bool = True) -> ingest.Params:
    return (ingest.OwnData if own else ingest.Params)(kind=kind, path=str(path))


@pytest.mark.parametrize(
    ("kind", "header", "said"),
    [
        (
            "corpus",
            "sentence,label",
            r"the columns sentence, label; name the one that counts: distill\.data\.columns\.text='sentence'",
        ),
        ("pairs", "gold_label,sentence1,sentence2", "anchor,positive"),  # a contradiction is no positive
        ("pairs", "premise,hypothesis", r"sent0,sent1\[,hard_neg\]"),
        ("pairs", "anchor,negative", "has the columns anchor, negative"),
        ("pairs", "anchor,sent0,positive", "has the columns anchor, sent0, positive"),
    ],
)
def test_a_table_whose_columns_are_not_known_is_refused_before_anything_runs(tmp_path, kind, header, said):
    (tmp_path / "t.csv").write_text(f"{header}\na,b,c\n")
    with pytest.raises(InputError, match=said) as caught:
        ingest.check(params(tmp_path, kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header", ["anchor,positive,negative", "sentence1,sentence2,hard_neg", "sent0,sent1,hard_neg"]
)
def test_tables_of_nli_are_pairs_as_they_were_published(tmp_path: Path, header: str) -> None:
    path = tmp_path / "nli.csv"
    path.write_text(f'{header}\n"One, two",3,true\n')
    ingest.check(params(path, "pairs", own=False))
    laid = records.lay_out(path, [path], tmp_path / "work", of_tables=pairs.COLUMNS)
    (chunk,) = file_chunks(laid.root, laid.sources[0])
    (query,) = pairs.read_queries(laid, 0, chunk).to_pylist()
    assert query["text"] == "One, two."
    assert [row["text"] for row in pairs.read_candidates(laid, 0, chunk).to_pylist()] == ["3.", "True."]


@pytest.mark.parametrize(("own", "name"), [(True, "distill.data.path"), (False, "data.path")])
def test_what_is_not_there_is_named_by_its_setting(tmp_path: Path, own: bool, name: str) -> None:
    for kind, said in (("corpus", "is not there"), ("mbeir", "is not a directory"), ("pairs", "is not there")):
        for ask in (ingest.check, ingest.fingerprint):
            if ask is ingest.check or kind == "mbeir":
                with pytest.raises(InputError, match=rf"^{name}=/nowhere {said}"):
                    ask(params(Path("/nowhere"), kind, own))
    with pytest.raises(InputError, match=rf"^{name}=.* holds no file of records and no picture"):
        ingest.check(params(tmp_path, own=own))


def test_the_fingerprint_follows_texts_where_they_are_rows(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path)
    seen = [ingest.fingerprint(params(folder))], [records.fingerprint(folder)]
    (folder / "notes.txt").write_text("another text")
    assert ingest.fingerprint(params(folder)) not in seen[0]
    assert records.fingerprint(folder) in seen[1]
