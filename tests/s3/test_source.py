"""A source or corpus in a bucket is read as the same one in a directory; what is wrong with it is one line."""

import pickle
from functools import partial
from pathlib import Path

import pytest

from stages import index, ingest
from stages.contract.context import InputError
from stages.data.images import ImageLimits, ImageRejected, load
from stages.data.sources import changes, mbeir, mbeir_rows, pairs, records
from stages.data.sources.chunks import file_chunks
from stages.data.sources.corpus_rows import read_rows
from stages.data.sources.counting import count_candidates
from stages.data.sources.remote import RemotePath, source
from stages.distributed import corpus
from tests.corpus_files import pair, write_csv, write_pictures, write_records
from tests.mbeir_files import image_candidate, png, write_bytes, write_lines, write_minimal
from tests.s3.servers import upload

pytestmark = pytest.mark.s3

POOL = "cand_pool/local/mbeir_toy_task1_cand_pool.jsonl"


@pytest.fixture
def both(moto, tmp_path, monkeypatch) -> tuple[Path, RemotePath]:
    """The same source as a directory and in a bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    local = write_minimal(tmp_path / "data")
    write_bytes(local, "mbeir_images/red.png", png("red"))
    write_lines(
        local, "cand_pool/local/mbeir_toy_task0_cand_pool.jsonl", [image_candidate("7:9", "mbeir_images/red.png")]
    )
    upload(moto, local, f"{tmp_path.name}/data")
    return local, pickle.loads(pickle.dumps(source(f"s3://bucket/{tmp_path.name}/data/")))


def test_files_rows_and_instructions_are_the_same(both):
    local, remote = both
    mbeir.require(remote)
    for find in (mbeir.candidate_files, mbeir.query_files, mbeir.instructions):
        assert find(remote) == find(local)
    assert count_candidates(remote, "test", 100) == count_candidates(local, "test", 100) == 3
    for one in (*mbeir.candidate_files(local), *mbeir.query_files(local)):
        pieces = list(file_chunks(remote, one, 50))
        assert pieces == list(file_chunks(local, one, 50))
        for number, piece in enumerate(pieces):
            read = [mbeir_rows.read_chunk(root, number, piece, {7: "toy"}) for root in both]
            assert read[0] == read[1]


def test_pictures_are_read_below_the_prefix_only(both):
    assert load(both[1], "mbeir_images/red.png", ImageLimits()) == load(both[0], "mbeir_images/red.png", ImageLimits())
    for reference, reason in (("mbeir_images/gone.png", "missing image"), ("../red.png", "path outside root")):
        with pytest.raises(ImageRejected) as caught:
            load(both[1], reference, ImageLimits())
        assert caught.value.reason == reason


def test_the_fingerprint_changes_with_content_and_not_with_time(both, moto):
    local, remote = both
    params = ingest.Params(kind="mbeir", path=str(remote))
    ingest.check(params)
    first = ingest.fingerprint(params)
    key = f"{remote.path.partition('/')[2]}/{POOL}"
    upload(moto, local / POOL, key)
    assert ingest.fingerprint(params) == first
    (local / POOL).write_text((local / POOL).read_text() + "\n")
    upload(moto, local / POOL, key)
    assert ingest.fingerprint(params) != first


def test_of_many_objects_only_tables_and_records_are_looked_at(both, shop, moto, monkeypatch):
    for module in (changes, records):
        monkeypatch.setattr(module, "MOST", 1)
    params = ingest.Params(kind="mbeir", path=str(both[1]))
    for ask, (local, remote), table, other in (
        (partial(ingest.fingerprint, params), both, POOL, "mbeir_images/zebra.png"),
        (partial(records.fingerprint, shop[1] / "lists"), shop, "lists/a.csv", "lists/zebra.png"),
    ):
        key, before = remote.path.partition("/")[2], ask()
        upload(moto, local / table, f"{key}/{other}")
        assert ask() == before
        (local / table).write_text((local / table).read_text() + "\n")
        upload(moto, local / table, f"{key}/{table}")
        assert ask() != before


@pytest.mark.parametrize("path", ["s3://nowhere/data", "s3://bucket/nothing"])
def test_a_bucket_or_prefix_that_is_not_there_is_one_line(both, path):
    with pytest.raises(InputError) as caught:
        ingest.check(ingest.Params(kind="mbeir", path=path))
    assert path in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_file_that_is_listed_and_may_not_be_read_is_one_line(both, proxy, monkeypatch, method):
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    denied = lambda request: request.method == method and request.path.endswith(".tsv")  # noqa: E731
    proxy.rule = lambda request: "403 AccessDenied" if denied(request) else None
    with pytest.raises(InputError, match=r"^data\.path=s3://bucket/\S+\.tsv can't be read: .*ACCESS_DENIED") as caught:
        ingest.check(ingest.Params(kind="mbeir", path=str(both[1])))
    assert "\n" not in str(caught.value)


@pytest.fixture
def shop(moto, tmp_path, monkeypatch) -> tuple[Path, RemotePath]:
    """A folder of pictures, with records in three formats below it, as a directory and in a bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    write_pictures(tmp_path / "shop")
    write_csv(tmp_path / "shop/lists/a.csv", [["id", "text", "price"], ["1", "two\nlines", "9.5"], ["2", "", "1"]])
    write_records(tmp_path / "shop/lists/b.jsonl", [{"text": "milk"}, b"{broken", pair(0)])
    (tmp_path / "shop/lists/c.TSV").write_bytes(b"text\tsize\nM\xfcsli\t1\nbread\t2\t3\n")
    upload(moto, tmp_path / "shop", f"{tmp_path.name}/shop")
    return tmp_path / "shop", source(f"s3://bucket/{tmp_path.name}/shop", "index.corpus")


def read(path: Path | RemotePath, work: Path, reader=read_rows) -> list[dict]:
    """All rows of a place by a reader of chunks that knows nothing but what a task is sent."""
    laid = records.lay_out(path, records.find(path, "index.corpus", bare=True), work)
    pieces = [piece for one in laid.sources for piece in file_chunks(laid.root, one, 50)]
    laid, pieces = pickle.loads(pickle.dumps((laid, pieces)))
    return [row for number, piece in enumerate(pieces) for row in reader(laid, number, piece).to_pylist()]


@pytest.mark.parametrize("below", ["lists", "lists/a.csv", "lists/b.jsonl"])
def test_records_in_a_bucket_are_the_same_rows_with_the_same_places(shop, below, tmp_path):
    local, remote = (place / below for place in shop)
    for reader in (read_rows, pairs.read_queries, pairs.read_candidates):
        assert read(remote, tmp_path / "far", reader) == read(local, tmp_path / "near", reader)
    rejects = {row["source"] for row in read(remote, tmp_path / "far") if row["reason"]}
    wanted = {"a.csv:4", "b.jsonl:2", "b.jsonl:3", "c.TSV:3"}
    assert rejects >= {place for place in wanted if below == "lists" or place.startswith(remote.name)}
    assert not list((tmp_path / "far").rglob("*.png"))


def test_a_folder_of_pictures_in_a_bucket_is_listed_and_read_in_place(shop, moto, tmp_path):
    local, remote = shop
    write_bytes(tmp_path, "more/100% é #1?.png", png("red"))
    for place in (local, tmp_path / "more"):
        upload(moto, place, remote.path.partition("/")[2])
    paths = [row["image_path"] for row in read(remote, tmp_path / "work") if row["image_path"]]
    assert sorted(paths) == sorted(["100% é #1?.png", *records.list_pictures(local)])
    assert {load(remote, path, ImageLimits()).width for path in paths} == {32, 56}
    with pytest.raises(ImageRejected, match="missing image"):
        load(remote, "x" * 1100, ImageLimits())


def test_the_fingerprint_of_a_corpus_follows_its_records_and_pictures_alone(shop, moto, tmp_path):
    local, remote = shop
    params = index.Params(corpus=str(remote))
    corpus.check(params)
    table, seen = remote / "lists/a.csv", []
    key = remote.path.partition("/")[2]
    for name, kept in (("red square.png", False), ("notes.txt", True), (".hidden/x.png", True)):
        seen.append(records.fingerprint(remote))
        write_bytes(local, name, png("blue", (9, 9)))
        upload(moto, local / name, f"{key}/{name}")
        assert (records.fingerprint(remote) == seen[-1]) == kept
    before = records.fingerprint(table)
    upload(moto, local / "notes.txt", f"{key}/lists/other.csv")
    assert records.fingerprint(table) == before
    upload(moto, local / "notes.txt", f"{key}/lists/a.csv")
    assert records.fingerprint(table) != before


@pytest.mark.parametrize(
    "path", ["s3://nowhere/data", "s3://bucket/nothing", "s3://bucket/a//b", "s3://", "s3://b b/c"]
)
def test_a_corpus_that_is_not_there_is_one_line_with_the_settings_name(shop, path):
    for params in (index.Params(corpus=path), ingest.Params(kind="pairs", path=path)):
        stage, setting = (corpus, "index.corpus") if isinstance(params, index.Params) else (ingest, "data.path")
        with pytest.raises(InputError, match=f"^{setting}={path}") as caught:
            stage.check(params)
        assert "\n" not in str(caught.value)


def test_a_bucket_without_credentials_is_one_line(shop, monkeypatch, tmp_path):
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it would remember them
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(
        InputError, match=r"^index\.corpus=s3://.* can't be listed: Unable to locate credentials; check"
    ):
        corpus.check(index.Params(corpus=str(shop[1] / "deep")))
