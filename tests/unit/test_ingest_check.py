"""What is known about a source before anything runs: its fingerprint, and whether it can be read at all."""

import os
import time

import pytest

from stages import ingest
from stages.contract.context import InputError
from stages.data.sources import mbeir
from tests.mbeir_files import write_bytes, write_minimal


def params(root, **fields) -> ingest.Params:
    return ingest.Params(**{"kind": "mbeir", "path": str(root)} | fields)


def test_a_good_source_passes_and_so_do_scenes(tmp_path):
    ingest.check(params(write_minimal(tmp_path)))
    ingest.check(ingest.Params())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"path": "/nowhere"}, "is not a directory"),
        ({"path": "gs://bucket/data"}, "give a directory or s3://bucket/prefix"),
        ({"kind": "pairs"}, "holds no file of records"),
        ({"kind": "pairs", "path": "s3:///x"}, "give s3://bucket/prefix"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_in_one_line(tmp_path, fields, said):
    with pytest.raises(InputError, match=said) as caught:
        ingest.check(params(write_minimal(tmp_path), **fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("line", "said"), [(b"text\ttext\ttoy", ":2: correct"), (b"B\xfccher", "not in UTF-8")])
def test_instructions_that_cannot_be_read_are_refused_before_anything_runs(tmp_path, line, said):
    root = write_minimal(tmp_path)
    write_bytes(root, mbeir.INSTRUCTIONS_FILE, b"header\n" + line + b"\n")
    with pytest.raises(InputError, match=said):
        ingest.check(params(root))


def test_the_fingerprint_changes_with_any_file_and_with_nothing_else(tmp_path):
    root = write_minimal(tmp_path / "a")
    before = ingest.fingerprint(params(root))
    assert before == ingest.fingerprint(params(root, max_pixels=2048))
    write_bytes(root, "mbeir_images/new.png", b"x")
    added = ingest.fingerprint(params(root))
    write_bytes(root, "mbeir_images/new.png", b"xy")
    grown = ingest.fingerprint(params(root))
    os.utime(root / "mbeir_images/new.png", (1, 1))
    touched = ingest.fingerprint(params(root))
    assert len({before, added, grown, touched}) == 4


def test_a_moved_source_is_the_same_source(tmp_path):
    before = ingest.fingerprint(params(write_minimal(tmp_path / "a")))
    (tmp_path / "a").rename(tmp_path / "b")
    assert ingest.fingerprint(params(tmp_path / "b")) == before


def test_a_dangling_link_is_part_of_the_fingerprint_and_no_error(tmp_path):
    root = write_minimal(tmp_path)
    before = ingest.fingerprint(params(root))
    (root / "link.png").symlink_to("nowhere.png")
    assert ingest.fingerprint(params(root)) != before


def test_scenes_have_no_fingerprint_and_a_missing_directory_is_refused(tmp_path):
    assert ingest.fingerprint(ingest.Params()) is None
    with pytest.raises(InputError, match="is not a directory"):
        ingest.fingerprint(params(tmp_path / "nowhere"))


def test_thousands_of_files_are_fingerprinted_in_no_time(tmp_path):
    root = write_minimal(tmp_path)
    folder = root / "mbeir_images"
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number}.png").touch()
    start = time.process_time()
    ingest.fingerprint(params(root))
    assert time.process_time() - start < 0.5
