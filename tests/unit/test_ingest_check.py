"""What is known about a source before anything runs: its fingerprint, and whether it can be read at all."""

import os

import pytest

from stages import ingest
from stages.contract.context import InputError
from stages.data.sources import changes, mbeir
from stages.data.sources.remote import source
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


@pytest.fixture
def stranger():
    """The process is no administrator, whom nothing is closed to."""
    administrator = os.geteuid() == 0
    if administrator:
        os.seteuid(65534)
    yield
    if administrator:
        os.seteuid(0)


@pytest.fixture
def closed(tmp_path, monkeypatch):
    """A directory, one that only tells names, and a file that nobody may read, in the current directory."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    (tmp_path / "data").mkdir(mode=0)
    (tmp_path / "listed").mkdir(mode=0o444)
    (tmp_path / "pairs.jsonl").touch(mode=0)


@pytest.mark.parametrize("name", ["data", "listed", "pairs.jsonl", "data/inner"])
def test_a_source_that_may_not_be_read_is_called_that_and_not_empty(closed, stranger, name):
    with pytest.raises(
        InputError, match=rf"^data\.path={name} can't be read \(Permission denied\); change its rights"
    ):
        source(name)


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


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A source of more files than are looked at one by one."""
    root = write_minimal(tmp_path / "data")
    for number in range(20):
        write_bytes(root, f"mbeir_images/deep/{number}.png", b"x")
    monkeypatch.setattr(changes, "MOST", 10)
    return root


def test_of_many_pictures_only_folders_and_tables_are_looked_at(many, monkeypatch):
    looked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: looked.append(str(path)) or stat(path, **options))
    ingest.fingerprint(params(many))
    assert f"{many}/mbeir_images/deep" in looked and not any(path.endswith(".png") for path in looked)
    assert {path for path in looked if path.endswith(".jsonl")} == set(map(str, many.rglob("*.jsonl")))


def test_of_many_pictures_those_that_come_go_or_are_replaced_are_seen(many):
    deep, seen = many / "mbeir_images" / "deep", [ingest.fingerprint(params(many))]
    write_bytes(many, "mbeir_images/new.png", b"x")
    seen.append(ingest.fingerprint(params(many)))
    os.utime(deep, (1, 1))  # as a picture that takes another's place leaves it
    seen.append(ingest.fingerprint(params(many)))
    (deep / "3.png").unlink()
    os.utime(deep, (1, 1))  # also where a copying program sets the time back
    seen.append(ingest.fingerprint(params(many)))
    write_bytes(many, "query/test/mbeir_toy_task1_test.jsonl", b"{}")
    seen.append(ingest.fingerprint(params(many)))
    assert len(set(seen)) == 5


def test_of_many_pictures_one_that_is_written_over_in_place_is_not_seen_nor_what_lies_beside(many):
    before = ingest.fingerprint(params(many))
    write_bytes(many, "mbeir_images/deep/3.png", b"another")
    os.utime(many, (1, 1))
    assert ingest.fingerprint(params(many)) == before
