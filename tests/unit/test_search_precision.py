"""int8 and binary vectors: sentence-transformers' bytes, made of a stream, searched alike however they are held."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from pipeline.artifacts.store import open_store
from stages.contract.context import InputError
from stages.distributed.pools import written
from stages.distributed.shards import write_file
from stages.distributed.smaller import store
from stages.search import exact
from stages.search.backends import open_index
from stages.search.choice import choose
from stages.search.columns import vectors, with_vectors
from stages.search.exact import ExactIndex, HeldIndex
from stages.search.precision import Coded, Precision, find_ranges, quantize
from tests.unit.test_search_backends import FILTERS, ROWS, corpus, queries

SMALLER = ("int8", "binary")


def precision_of(name: str, vectors_ND: np.ndarray) -> Precision:
    return Precision(name, vectors_ND.shape[1], find_ranges([vectors_ND]) if name == "int8" else None)


def matrix(dim: int = 20, kind: type = np.float16) -> np.ndarray:
    """Vectors with a dimension that is the same in all, one that is 0 in some, and exact ends of ranges."""
    values = np.random.default_rng(3).normal(size=(300, dim)).astype(kind)
    values[:, 4] = 0.25
    values[::7, 5] = 0
    return values


@pytest.mark.parametrize("dim", [20, 64])  # the first fills no whole number of bytes
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("name", ["int8", "uint8", "binary", "ubinary"])
def test_codes_are_those_of_sentence_transformers_to_the_bit(name: str, kind: type, dim: int) -> None:
    from sentence_transformers.util import quantize_embeddings

    values = matrix(dim, kind)
    ranges = find_ranges([values[:100], values[100:100], values[100:]])
    for given in (values, 2 * values):  # the second leaves the ranges, as a query may
        expected = quantize_embeddings(given, name, ranges=ranges, calibration_embeddings=values)
        found = quantize(given, name, ranges)
        assert found.dtype == expected.dtype and np.array_equal(found, expected)
    assert np.array_equal(quantize(values, name, ranges), quantize_embeddings(values, name))


@pytest.mark.parametrize("name", SMALLER)
def test_a_code_stands_for_the_middle_of_what_has_it_and_gives_itself(name: str) -> None:
    values = matrix()
    precision = precision_of(name, values)
    codes = precision.encode(values)
    decoded = precision.decode(codes)
    assert decoded.dtype == np.float32 and decoded.shape == values.shape
    assert np.array_equal(precision.encode(decoded), codes)
    if name == "int8":
        low, high = precision.ranges_2D
        assert (np.abs(decoded - values) <= 0.502 * (high - low) / 255 + 1e-6).all()
    else:
        assert np.array_equal(decoded > 0, values > 0)
        assert np.linalg.norm(decoded, axis=1) == pytest.approx(1, abs=1e-6)


def test_bytes_of_a_vector() -> None:
    sizes = [Precision(name, 20).nbytes for name in ("float16", "int8", "binary")]
    assert sizes == [40, 20, 3]
    assert [precision_of(name, matrix()).encode(matrix())[0].nbytes for name in ("float16", *SMALLER)] == sizes


@pytest.fixture(params=SMALLER)
def coded(request: pytest.FixtureRequest, tmp_path) -> tuple[ExactIndex, ExactIndex]:
    """The corpus as float16, and in a smaller precision in files of uneven length."""
    table = corpus()
    precision = precision_of(request.param, vectors(table))
    pq.write_table(table, tmp_path / "floats.parquet")
    smaller = precision.encoded(table)
    assert smaller["vector"].type == pa.list_(pa.int8(), {"int8": 64, "binary": 8}[request.param])
    for part, (start, rows) in enumerate([(0, 1), (1, 1234), (1235, ROWS)]):
        pq.write_table(smaller.slice(start, rows), tmp_path / f"coded-{part}.parquet")
    files = tuple(str(tmp_path / f"coded-{part}.parquet") for part in range(3))
    system = LocalFileSystem()
    return ExactIndex((str(tmp_path / "floats.parquet"),), system), ExactIndex(files, system, precision)


def whole(index: ExactIndex, k: int) -> list[list[str]]:
    """The best of all decoded vectors at once."""
    table = pa.concat_tables(pq.read_table(path) for path in index.files)
    scores = queries() @ index.precision.decode(vectors(table)).T
    dids = np.array(table["did"].to_pylist())
    return [dids[np.lexsort((dids, -row))][:k].tolist() for row in scores]


def test_a_search_by_blocks_finds_what_a_search_of_all_at_once_does(coded, monkeypatch) -> None:
    _, index = coded
    expected = whole(index, 10)
    assert index.dim == 64 and index.nbytes() == ROWS * index.precision.nbytes
    monkeypatch.setattr(exact, "TILE", 512)
    assert index.search(queries(), 10)[0].dids == expected


@pytest.mark.parametrize("room", [2**30, 0], ids=["as numbers", "as stored"])
def test_vectors_in_memory_give_the_same_scores_as_those_that_are_streamed(coded, room, monkeypatch) -> None:
    _, index = coded
    monkeypatch.setattr(exact, "HELD_BYTES", room)
    held = index.ready()
    assert isinstance(held, HeldIndex) and {rows.itemsize for _, rows in held.held} == {4 if room else 1}
    for name in ("none", "one in a hundred"):
        assert held.search(queries(), 10, FILTERS[name]) == index.search(queries(), 10, FILTERS[name])


def test_an_index_of_floats_read_as_a_smaller_one_answers_as_that_does(coded) -> None:
    floats, index = coded
    read = Coded(floats, index.precision)
    assert exact.search_batches(read.batches(), queries(), 10, [FILTERS["none"]]) == index.search(queries(), 10)
    assert next(read.batches(["did"])).schema.names == ["did"]


def test_faiss_holds_int8_as_it_is_stored(tmp_path, monkeypatch) -> None:
    pytest.importorskip("faiss")
    from stages.search import faiss_index

    table = corpus()
    precision = precision_of("int8", vectors(table))
    pq.write_table(precision.encoded(table), tmp_path / "part.parquet")
    index = ExactIndex((str(tmp_path / "part.parquet"),), LocalFileSystem(), precision)
    expected = index.search(queries(), 10)[0]
    for flat in (ROWS + 1, ROWS):  # all rows, then lists
        monkeypatch.setattr(faiss_index, "FLAT", flat)
        made = faiss_index.FaissIndex.of(index.batches(index.columns()), ROWS, precision)
        assert made.index.code_size == 64
        found = made.search(queries(), 10)[0]
        assert found.dids == expected.dids
        assert np.array(found.scores) == pytest.approx(np.array(expected.scores), abs=1e-5)


def test_a_precision_that_a_backend_cannot_search_is_refused() -> None:
    assert choose("auto", 10**7, precision="int8") == "exact" == choose("auto", 10, precision="binary")
    with pytest.raises(InputError, match=r"lance can't search .*precision=int8; choose the backend exact or faiss$"):
        choose("lance", 10, precision="int8")
    with pytest.raises(InputError, match=r"faiss can't search .*precision=binary; choose the backend exact$"):
        choose("faiss", 10, precision="binary")


@pytest.mark.parametrize("name", ["float16", *SMALLER])
def test_the_card_says_how_vectors_are_stored(name: str, tmp_path) -> None:
    table = corpus(50)
    precision = precision_of(name, vectors(table))
    card = {"dim": 64, "rows": 50, "backend": "exact", **precision.describe()}
    assert ("precision" in card) == (name != "float16") and ("ranges" in card) == (name == "int8")
    pq.write_table(precision.encoded(table), tmp_path / "part.parquet")

    class Artifact:
        filesystem, uri = LocalFileSystem(), "here"

        def files(self, prefix: str) -> list[str]:
            return [str(tmp_path / "part.parquet")]

    found = open_index(Artifact(), card).search(queries(2), 5)
    stored = with_vectors(table, precision.decode(precision.encode(vectors(table))))
    assert found == exact.search_batches(stored.to_batches(), queries(2), 5, [FILTERS["none"]])


@pytest.mark.parametrize("name", ["float16", *SMALLER])
def test_an_artifact_holds_the_vectors_in_its_precision_alone(name: str, tmp_path) -> None:
    table, place = corpus(300), open_store(str(tmp_path))
    attempt = place.begin("index", "1" * 16)

    def embed(prefix: str) -> dict:
        write_file(table.slice(0, 200), attempt, f"{prefix}/0.parquet")
        write_file(table.slice(200), attempt, f"{prefix}/1.parquet")
        return written(attempt, prefix, 300)

    made, card = store(attempt, name, 300, embed)
    artifact = place.commit(attempt, {"metrics": {}})
    assert [entry["path"] for entry in artifact.manifest["files"]] == ["embeddings/0.parquet", "embeddings/1.parquet"]
    assert (made["dim"], made["files"]) == (64, artifact.files("embeddings"))
    assert made["bytes"] == sum(entry["size"] for entry in artifact.manifest["files"])
    precision = Precision.of({"dim": 64, **card})
    stored = pa.concat_tables(map(pq.read_table, made["files"]))
    assert np.array_equal(vectors(stored), precision.encode(vectors(table)))
    assert stored.drop_columns(["vector"]).equals(table.drop_columns(["vector"]))
    if name == "int8":
        assert np.array_equal(precision.ranges_2D, [vectors(table).min(0), vectors(table).max(0)])
