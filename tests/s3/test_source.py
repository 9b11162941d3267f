"""A source in a bucket is read as the same one in a directory; what is wrong with it is one line."""

import pickle
from pathlib import Path

import pytest

from pipeline import s3
from stages import ingest
from stages.context import InputError
from stages.data import mbeir, mbeir_rows
from stages.data.images import ImageRejected, Limits, load
from stages.data.remote import RemotePath, source
from tests.mbeir_files import image_candidate, png, write_bytes, write_lines, write_minimal

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
    for path in local.rglob("*"):
        if path.is_file():
            upload(moto, path, f"{tmp_path.name}/data/{path.relative_to(local)}")
    return local, pickle.loads(pickle.dumps(source(f"s3://bucket/{tmp_path.name}/data/")))


def upload(address: str, path: Path, key: str) -> None:
    s3.client(address, "us-east-1").put_object(Bucket="bucket", Key=key, Body=path.read_bytes())


def test_files_rows_and_instructions_are_the_same(both):
    local, remote = both
    mbeir.require(remote)
    for find in (mbeir.candidate_sources, mbeir.query_sources, mbeir.instructions):
        assert find(remote) == find(local)
    for one in (*mbeir.candidate_sources(local), *mbeir.query_sources(local)):
        pieces = list(mbeir.chunks(remote, one, 50))
        assert pieces == list(mbeir.chunks(local, one, 50))
        for number, piece in enumerate(pieces):
            read = [mbeir_rows.read_chunk(root, number, piece, {7: "toy"}) for root in both]
            assert read[0] == read[1]


def test_pictures_are_read_below_the_prefix_only(both):
    assert load(both[1], "mbeir_images/red.png", Limits()) == load(both[0], "mbeir_images/red.png", Limits())
    for reference, reason in (("mbeir_images/gone.png", "missing image"), ("../red.png", "path outside root")):
        with pytest.raises(ImageRejected) as caught:
            load(both[1], reference, Limits())
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


@pytest.mark.parametrize("path", ["s3://nowhere/data", "s3://bucket/nothing"])
def test_a_bucket_or_prefix_that_is_not_there_is_one_line(both, path):
    with pytest.raises(InputError) as caught:
        ingest.check(ingest.Params(kind="mbeir", path=path))
    assert path in str(caught.value) and "\n" not in str(caught.value)
