"""The M-BEIR reader: files, chunks, rows, spellings, qrels."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract.context import InputError
from stages.data.sources import mbeir
from stages.data.sources.chunks import FileChunk, SourceFile, file_chunks, lines
from stages.data.sources.fields import BadField, modality, normalise
from stages.data.sources.mbeir_rows import dids, read_chunk
from tests.mbeir_files import (
    image_candidate,
    text_candidate,
    text_query,
    write_bytes,
    write_lines,
    write_minimal,
)

POOL = "cand_pool/local/mbeir_toy_task0_cand_pool.jsonl"
TEST = "query/test/mbeir_toy_task0_test.jsonl"


def read(root, source: SourceFile) -> list[dict]:
    """All rows of a source."""
    chunks = list(file_chunks(root, source))
    return [
        row for number, chunk in enumerate(chunks) for row in read_chunk(root, number, chunk, {7: "toy"}).to_pylist()
    ]


def only_reason(root, line) -> tuple[str | None, str]:
    write_lines(root, POOL, [line])
    (row,) = read(root, SourceFile(POOL, pool="toy_task0"))
    return row["did"], row["reason"]


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("a dog", "A dog."),
        ('  "a dog"\r\n', "A dog."),
        ("is it a dog?", "Is it a dog?"),
        ("Stop!", "Stop!"),
        ("ändern", "Ändern."),
        ('" "', None),
        ('" "a dog" "', "A dog."),
        ('"" "a dog" says he', 'A dog" says he.'),
        ("", None),
        (None, None),
    ],
)
def test_text_is_normalised_as_published(raw, normal):
    assert normalise(raw) == normal


@given(st.text())
def test_normal_text_stays_as_it_is(text):
    once = normalise(text)
    assert normalise(once) == once
    assert once is None or (once.endswith((".", "?", "!")) and "\r" not in once and once[0] not in '" ')


def test_both_spellings_of_a_modality_are_read():
    assert modality("text,image") == modality("image, text") == "image,text"
    with pytest.raises(BadField, match="none of text, image"):
        modality("video")


def test_lists_hold_dids_or_objects_and_each_did_once():
    assert dids({"pos": ["1:1", {"did": "1:2"}, "1:1"]}, "pos") == ["1:1", "1:2"]
    assert dids({"pos": None}, "pos") == dids({}, "pos") == []
    for bad in ("1:1", [3], [{"id": "1:1"}]):
        with pytest.raises(BadField, match="bad list"):
            dids({"pos": bad}, "pos")


def test_a_bad_query_is_known_to_miss_from_its_set(tmp_path):
    write_lines(tmp_path, TEST, ["not json", text_query("7:1", ["7:1"], task=0) | {"query_txt": ""}])
    rows = read(tmp_path, SourceFile(TEST, split="test", dataset="toy", task_id=0))
    known = [(row["reason"], row["split"], row["dataset"], row["task_id"]) for row in rows]
    assert known == [("broken JSON", "test", "toy", 0), ("missing text", "test", "toy", 0)]


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=30), max_size=40)
)
def test_chunks_hold_every_line_once_and_know_its_number(tmp_path_factory, texts):
    root = tmp_path_factory.mktemp("chunks")
    content = "\n".join(texts).encode()
    write_bytes(root, "lines.txt", content)
    source = SourceFile("lines.txt")
    expected = [(number, line.encode()) for number, line in enumerate(texts, start=1) if line.encode().strip()]
    for size in (1, 7, 64, 10_000):
        found = [line for chunk in file_chunks(root, source, size) for line in lines(root, chunk)]
        assert found == expected


def test_chunks_cover_the_file_without_overlap(tmp_path):
    write_lines(tmp_path, POOL, [text_candidate(f"7:{number}", "x" * number) for number in range(200)])
    chunks = list(file_chunks(tmp_path, SourceFile(POOL), 1000))
    assert len(chunks) > 5
    assert [chunk.offset for chunk in chunks[1:]] == [chunk.offset + chunk.nbytes for chunk in chunks[:-1]]
    assert sum(chunk.nbytes for chunk in chunks) == (tmp_path / POOL).stat().st_size


@pytest.mark.parametrize(
    ("line", "did", "reason"),
    [
        ('{"did": "7:1", "txt":', None, "broken JSON"),
        ("[1, 2]", None, "broken JSON"),
        ('{"did": "7:1", "txt": "\\ud800", "modality": "text"}', None, "broken JSON"),
        ("9" * 5000, None, "broken JSON"),
        ({"txt": "no id", "modality": "text"}, None, "missing id"),
        (text_candidate("", "empty id"), "", "missing id"),
        (text_candidate("seven", "no colon"), "seven", "bad id"),
        (text_candidate("x:1", "no number"), "x:1", "bad id"),
        (text_candidate("99999999999:1", "too large"), "99999999999:1", "bad id"),
        ({"did": 17, "txt": "a number", "modality": "text"}, None, "bad id"),
        ({"did": "7:1", "txt": "x", "modality": "sound"}, "7:1", "bad modality"),
        (text_candidate("7:1", None), "7:1", "missing text"),
        (text_candidate("7:1", ' "" '), "7:1", "missing text"),
        (image_candidate("7:1", None), "7:1", "missing image"),
        ({"did": "7:1", "txt": 5, "modality": "text"}, "7:1", "bad field"),
    ],
)
def test_a_bad_candidate_names_its_reason(tmp_path, line, did, reason):
    assert only_reason(tmp_path, line) == (did, reason)


def test_a_bad_row_is_found_by_file_and_line(tmp_path):
    lines = [text_candidate("7:1", "good"), "", "broken", text_candidate("7:2", "good")]
    write_lines(tmp_path, POOL, lines)
    rows = read(tmp_path, SourceFile(POOL, pool="toy_task0"))
    assert [(row["source"], row["reason"]) for row in rows] == [
        (f"{POOL}:1", None),
        (f"{POOL}:3", "broken JSON"),
        (f"{POOL}:4", None),
    ]
    assert len({row["position"] for row in rows}) == 3


def test_the_modality_decides_what_is_read(tmp_path):
    both = {"did": "7:1", "txt": "t", "img_path": "p.png", "modality": "text,image"}
    write_lines(tmp_path, POOL, [both, both | {"modality": "text"}, both | {"modality": "image"}])
    rows = read(tmp_path, SourceFile(POOL, pool="toy_task0"))
    assert [(row["modality"], row["text"], row["image_path"]) for row in rows] == [
        ("image,text", "T.", "p.png"),
        ("text", "T.", None),
        ("image", None, "p.png"),
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"task_id": 9}, "bad task"),
        ({"task_id": None}, "bad task"),
        ({"task_id": True}, "bad task"),
        ({"task_id": 3}, "bad task"),
        ({"pos_cand_list": "7:1"}, "bad list"),
        ({"query_modality": None}, "bad modality"),
        ({"query_txt": ""}, "missing text"),
        ({"qid": None}, "missing id"),
    ],
)
def test_a_bad_query_names_its_reason(tmp_path, fields, reason):
    write_lines(tmp_path, TEST, [text_query("7:1", ["7:1"]) | fields])
    (row,) = read(tmp_path, SourceFile(TEST, split="test", dataset="toy", task_id=0))
    assert row["reason"] == reason


def test_qrels_say_what_is_relevant_where_there_are_any(tmp_path):
    write_lines(tmp_path, TEST, [text_query("7:1", ["7:9"]), text_query("7:2", ["7:9"]), text_query("7:3", ["7:9"])])
    qrels = "qrels/test/mbeir_toy_task0_test_qrels.txt"
    write_lines(tmp_path, qrels, ["7:1 0 7:1 1 0", "7:1 0 7:2 2 0", "7:1 0 7:3 0 0", "7:3 0 7:4 1 0", "", "torn 0"])
    with_qrels = read(tmp_path, SourceFile(TEST, split="test", dataset="toy", task_id=0, qrels=qrels))
    assert [row["positives"] for row in with_qrels] == [["7:1", "7:2"], [], ["7:4"]]
    without = read(tmp_path, SourceFile(TEST, split="test", dataset="toy", task_id=0))
    assert [row["positives"] for row in without] == [["7:9"]] * 3


def test_files_are_found_and_named(tmp_path):
    write_minimal(tmp_path)
    write_lines(tmp_path, "cand_pool/local/mbeir_toy_task1_val_cand_pool.jsonl", [text_candidate("7:3", "three")])
    write_lines(tmp_path, "cand_pool/global/mbeir_union_test_cand_pool.jsonl", [text_candidate("7:2", "two")])
    write_lines(tmp_path, "query/union_train/mbeir_union_up_train.jsonl", [text_query("7:1", ["7:1"])])
    write_lines(tmp_path, "qrels/test/mbeir_toy_task1_test_qrels.txt", ["7:3 0 7:2 1 1"])
    assert [source.pool for source in mbeir.candidate_files(tmp_path)] == [
        "toy_task1",
        "toy_task1_val",
        "union_test",
    ]
    train, val, test = mbeir.query_files(tmp_path)
    assert (train.split, train.dataset, train.task_id, train.pools) == ("train", "toy", None, ())
    assert (val.split, val.task_id, val.qrels) == ("val", 1, None)
    assert val.pools == ("toy_task1_val", "toy_task1", "union_val")
    assert test.pools == ("toy_task1", "union_test")
    assert test.qrels == "qrels/test/mbeir_toy_task1_test_qrels.txt"


def test_the_union_of_train_is_read_only_where_it_is_all_there_is(tmp_path):
    write_minimal(tmp_path)
    (tmp_path / "query/train/mbeir_toy_train.jsonl").unlink()
    union = "query/union_train/mbeir_union_up_train.jsonl"
    write_lines(tmp_path, union, [text_query("7:1", ["7:1"]), text_query("8:1", ["7:1"])])
    mbeir.require(tmp_path)
    source = mbeir.query_files(tmp_path)[0]
    assert source.path == union
    assert [row["dataset"] for row in read(tmp_path, source)] == ["toy", "dataset8"]


def test_a_missing_union_pool_is_made_of_the_local_ones():
    pools = ["a_task0", "b_task1_test", "b_task1_val", "union_train"]
    assert mbeir.implied_unions(pools) == {
        "union_val": {"a_task0", "b_task1_val"},
        "union_test": {"a_task0", "b_task1_test"},
    }
    assert "union_test" not in mbeir.implied_unions([*pools, "union_test"])


@pytest.mark.parametrize(
    "missing",
    ["query/train", "query/val", "query/test", "cand_pool/local", "instructions"],
)
def test_a_directory_that_lacks_a_part_is_refused_by_its_name(tmp_path, missing):
    write_minimal(tmp_path)
    for path in (tmp_path / missing).iterdir():
        path.unlink()
    with pytest.raises(InputError, match=missing) as caught:
        mbeir.require(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a directory"):
        mbeir.require(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("query/train/train.jsonl", "mbeir_DATASET_train.jsonl"),
        ("query/val/mbeir_toy_val.jsonl", "mbeir_DATASET_taskN_val.jsonl"),
        ("query/test/mbeir_toy_task1_val.jsonl", "mbeir_DATASET_taskN_test.jsonl"),
        ("cand_pool/local/x_cand_pool.jsonl", "mbeir_DATASET_taskN_cand_pool.jsonl"),
        ("cand_pool/global/union.jsonl", "mbeir_union_SPLIT_cand_pool.jsonl"),
    ],
)
def test_a_file_that_would_be_passed_over_for_its_name_is_refused(tmp_path, path, told):
    write_lines(write_minimal(tmp_path), path, [])
    with pytest.raises(InputError, match=f"{path} is not named as M-BEIR names it: call it {told}"):
        mbeir.require(tmp_path)


def test_files_that_a_system_hides_are_no_misnamed_data(tmp_path):
    write_lines(write_minimal(tmp_path), "query/test/._mbeir_toy_task1_test.jsonl", [])
    mbeir.require(tmp_path)


def refusal(root) -> str:
    with pytest.raises(InputError) as caught:
        mbeir.require(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_test_set_without_its_own_pool_is_refused_and_a_val_set_is_asked_of_the_union(tmp_path):
    write_minimal(tmp_path)
    pool = tmp_path / "cand_pool/local/mbeir_toy_task1_cand_pool.jsonl"
    other = pool.rename(pool.with_name("mbeir_other_task0_cand_pool.jsonl"))
    assert "test/mbeir_toy_task1_test.jsonl lacks its own pool, cand_pool/local/mbeir_toy_task1_" in refusal(tmp_path)
    other.rename(pool.with_name("mbeir_toy_task1_test_cand_pool.jsonl"))
    mbeir.require(tmp_path)


def test_qrels_whose_queries_are_missing_are_refused(tmp_path):
    write_minimal(tmp_path)
    write_lines(tmp_path, "qrels/test/mbeir_toy_task1_test_qrels.txt", ["7:3 0 7:2 1 1"])
    mbeir.require(tmp_path)
    write_lines(tmp_path, "qrels/test/mbeir_toy_task2_test_qrels.txt", ["7:3 0 7:2 1 1"])
    assert "lacks its queries, query/test/mbeir_toy_task2_test.jsonl: add them" in refusal(tmp_path)


def test_pictures_that_were_not_unpacked_are_missed_before_anything_runs(tmp_path):
    write_minimal(tmp_path)
    paths = ["mbeir_images/a/1.png", "mbeir_images/b/2.png", 3, None]
    write_lines(tmp_path, POOL, [image_candidate(f"7:{number}", path) for number, path in enumerate(paths)])
    assert "lacks its pictures, mbeir_images: put them there, M-BEIR's by `cat mbeir_images.tar" in refusal(tmp_path)
    (tmp_path / "mbeir_images").mkdir()  # what lies in it, ingest says
    mbeir.require(tmp_path)


@pytest.mark.parametrize(
    "path",
    ["query/test/mbeir_toy_task1_test.jsonl", "query/train/mbeir_toy_train.jsonl", POOL, mbeir.INSTRUCTIONS_FILE],
)
def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path, path):
    place = write_minimal(tmp_path) / path
    place.unlink(missing_ok=True)
    for make in (Path.mkdir, os.mkfifo, lambda place: place.symlink_to("gone")):
        make(place)
        lost = path == mbeir.INSTRUCTIONS_FILE and place.is_symlink()
        assert ("it lacks instructions" if lost else f"{place} can't be read (no file)") in refusal(tmp_path)
        place.rmdir() if place.is_dir() else place.unlink()


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every file")
def test_what_may_not_be_read_is_refused(tmp_path):
    (write_minimal(tmp_path) / mbeir.INSTRUCTIONS_FILE).chmod(0)
    assert "can't be read (Permission denied)" in refusal(tmp_path)


@pytest.mark.parametrize(
    "path", ["query/test/mbeir_toy_task1_test.jsonl", "cand_pool/local/mbeir_toy_task1_cand_pool.jsonl"]
)
@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"\x1f\x8b\0\n\xff{", b"qid,text\n1,dog\n", b"[" * 100_000, b"[1]\n2\n"]
)
def test_a_file_of_rows_that_begins_with_none_is_refused(tmp_path, path, content):
    write_bytes(write_minimal(tmp_path), path, content)
    assert f"{path} begins without a row, a JSON object in a line" in refusal(tmp_path)


def test_a_bad_first_row_alone_is_no_reason_to_refuse_a_file(tmp_path):
    write_lines(
        write_minimal(tmp_path), TEST.replace("task0", "task1"), ["not json", text_query("7:3", ["7:2"], task=1)]
    )
    mbeir.require(tmp_path)


def test_instructions_in_another_encoding_are_refused(tmp_path):
    write_bytes(tmp_path, mbeir.INSTRUCTIONS_FILE, "header\nFind Bücher\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not in UTF-8"):
        mbeir.instructions(tmp_path)


def test_instructions_are_read_by_column(tmp_path):
    header = "query_modality\tcand_modality\tname\tid\tp1\tp2\tp3\n"
    lines = "text\ttext,image\ttoy\t7\tFind it.\t\tSeek it.\n\n"
    write_bytes(tmp_path, mbeir.INSTRUCTIONS_FILE, (header + lines).encode())
    assert mbeir.instructions(tmp_path) == [
        {
            "dataset_id": 7,
            "dataset": "toy",
            "query_modality": "text",
            "target_modality": "image,text",
            "prompts": ["Find it.", "Seek it."],
        }
    ]


def test_an_instruction_may_hold_other_ends_of_lines(tmp_path):
    told = "Find it\u2028or\u0085not."
    lines = f"header\r\ntext\ttext\ttoy\t7\t{told}\r\ntext\timage\ttoy\t7\tSeek it.\r\n"
    write_bytes(tmp_path, mbeir.INSTRUCTIONS_FILE, lines.encode())
    assert [row["prompts"] for row in mbeir.instructions(tmp_path)] == [[told], ["Seek it."]]


@pytest.mark.parametrize("line", ["text\ttext\ttoy", "text\ttext\ttoy\tseven\tp", "sound\ttext\ttoy\t7\tp"])
def test_a_broken_instruction_line_is_named(tmp_path, line):
    write_bytes(tmp_path, mbeir.INSTRUCTIONS_FILE, f"header\n{line}\n".encode())
    with pytest.raises(InputError, match=r"query_instructions.tsv:2"):
        mbeir.instructions(tmp_path)


def test_a_row_survives_the_way_through_json(tmp_path):
    write_lines(tmp_path, POOL, [json.dumps(text_candidate("7:1", "Grüße, 世界"), ensure_ascii=False)])
    chunk = FileChunk(SourceFile(POOL, pool="p"), 0, (tmp_path / POOL).stat().st_size, 1)
    assert read_chunk(tmp_path, 0, chunk, {})["text"].to_pylist() == ["Grüße, 世界."]
