"""lance and faiss find what exact search finds, under every filter."""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from stages.contract.context import InputError
from stages.search import choice, exact
from stages.search.exact import ExactIndex, HeldIndex
from stages.search.filters import Condition, Filter, filter_of, parse_where

ROWS, DIM = 3000, 64
CARD = {
    "instructions": [],
    "metadata": {
        "brand": {"column": "m0", "kind": "text"},
        "price": {"column": "m1", "kind": "number"},
        "fresh": {"column": "m2", "kind": "truth"},
    },
}
FILTERS = {
    "none": Filter(),
    "modality": Filter(modalities=("image",)),
    "dataset": Filter(datasets=(1,)),
    "pool": Filter(pool="a"),
    "quoted text": filter_of({"brand": "O'Neil"}, CARD),
    "any of": filter_of({"brand": ["Arla", "O'Neil"]}, CARD),
    "range": filter_of({"price": {">=": 3, "<": 9}}, CARD),
    "truth": filter_of({"fresh": True}, CARD, ("text",)),
    "not": filter_of({"brand": {"!=": "Arla"}}, CARD),
    "one in a hundred": filter_of({"price": 7}, CARD),
    "nothing": filter_of({"price": 1e6}, CARD),
}


def corpus(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Clustered unit vectors with every column that a filter looks at; some values are missing."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, DIM))
    points = centres[random.integers(0, 40, rows)] + 0.5 * random.normal(size=(rows, DIM))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)
    brands = [("Arla", "O'Neil", None)[pick] for pick in random.integers(0, 3, rows)]
    return pa.table(
        {
            "did": [f"c{number}" for number in range(rows)],
            "dataset_id": pa.array(random.integers(0, 2, rows), pa.int32()),
            "modality": [("text", "image")[pick] for pick in random.integers(0, 2, rows)],
            "pools": pa.array([["a"] if pick else ["b"] for pick in random.integers(0, 2, rows)]),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(points.reshape(-1)), DIM),
            "m0": pa.array(brands, pa.string()),
            "m1": pa.array(random.integers(0, 100, rows), pa.float64()),
            "m2": pa.array(random.random(rows) < 0.3),
        }
    )


def stored(directory: Path, table: pa.Table) -> ExactIndex:
    pq.write_table(table, directory / "part.parquet")
    return ExactIndex((str(directory / "part.parquet"),), LocalFileSystem())


def queries(count: int = 8) -> np.ndarray:
    table = corpus(count, seed=5)
    return np.array(table["vector"].to_pylist(), dtype=np.float32)


@pytest.fixture(scope="module", params=["held", "lance", "faiss", "faiss lists"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The exact index, and the same by the backend."""
    if request.param != "held":
        pytest.importorskip(request.param.split()[0])
    home = tmp_path_factory.mktemp(request.param)
    exact = stored(home, corpus())
    return {"exact": exact, "backend": request.param, "index": build(request.param, exact, home)}


def build(backend: str, exact: ExactIndex, home: Path):
    if backend == "held":
        return HeldIndex(exact)
    if backend.startswith("faiss"):
        from stages.search import faiss_index

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(faiss_index, "FLAT", ROWS if backend == "faiss lists" else ROWS + 1)
            made = faiss_index.FaissIndex.of(exact.batches(exact.columns()), ROWS)
        assert hasattr(made.index, "nlist") == (backend == "faiss lists")
        return made
    from stages.search.lance_index import LanceIndex

    return LanceIndex.build(str(home / "lance"), exact)


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_finds_what_exact_search_finds(world: dict, name: str) -> None:
    expected, found = (world[one].search(queries(), 10, FILTERS[name])[0] for one in ("exact", "index"))
    # lance draws its clusters anew each time, and a neighbour in eighty may be in one that is not looked at.
    assert overlap(found.dids, expected.dids) >= (0.95 if world["backend"] == "lance" else 0.99)
    for dids, scores, best, truth in zip(found.dids, found.scores, expected.dids, expected.scores, strict=True):
        known = dict(zip(best, truth, strict=True))
        assert len(dids) == len(best) and scores == sorted(scores, reverse=True)
        assert [scores[place] for place, did in enumerate(dids) if did in known] == pytest.approx(
            [known[did] for did in dids if did in known], abs=1e-5
        )


def overlap(found: list[list[str]], expected: list[list[str]]) -> float:
    """Share of the expected candidates that were found, 1 where none was to be found."""
    wanted = sum(map(len, expected))
    return sum(len(set(one) & set(two)) for one, two in zip(found, expected, strict=True)) / wanted if wanted else 1.0


PICTURES = Filter(modalities=("image",))


def test_a_filter_that_passes_nothing_near_the_query_is_answered_whole(tmp_path: Path) -> None:
    """Texts and pictures lie apart, so all lists near a text may hold texts alone."""
    pytest.importorskip("faiss")
    table = corpus()
    sign = np.array([1.0 if one == "text" else -1.0 for one in table["modality"].to_pylist()], np.float32)
    vectors = np.array(table["vector"].to_pylist(), np.float32) * 0.05
    vectors[:, 0] = sign
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    field = table.schema.field("vector")
    apart = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), field.type.value_type), DIM)
    exact = stored(tmp_path, table.set_column(table.schema.get_field_index("vector"), field, apart))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.search.faiss_index.PROBED", 1)
        (found,) = build("faiss lists", exact, tmp_path).search(vectors[sign > 0][:4], 10, PICTURES)
    assert [len(dids) for dids in found.dids] == [10] * 4


def test_several_filters_are_answered_in_their_order(world: dict) -> None:
    chosen = [FILTERS["modality"], FILTERS["none"]]
    together = world["index"].search(queries(2), 5, *chosen)
    assert together == [world["index"].search(queries(2), 5, one)[0] for one in chosen]


def test_a_query_of_another_student_is_refused(world: dict) -> None:
    for index in (world["exact"], world["index"]):
        with pytest.raises(InputError, match="a query of 8 numbers meets an index of 64"):
            index.search(np.ones((1, 8), np.float32), 3)


def test_lance_answers_a_query_on_each_core_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lance_index = pytest.importorskip("stages.search.lance_index")
    together = threading.Barrier(3)

    def find(*_: object) -> tuple[list[str], list[float]]:
        together.wait(10)
        return [], []

    monkeypatch.setattr(lance_index, "cores", lambda: 3)
    monkeypatch.setattr(lance_index.LanceIndex, "dim", DIM)
    monkeypatch.setattr(lance_index.LanceIndex, "_nearest", lambda *_: ({}, ""))
    monkeypatch.setattr(lance_index.LanceIndex, "_find", find)
    (found,) = lance_index.LanceIndex("nowhere").search(np.ones((3, DIM)), 5)
    assert found.dids == [[], [], []]


def test_auto_is_exact_for_few_candidates_and_lance_for_many() -> None:
    pytest.importorskip("lance")
    assert [choice.choose("auto", rows) for rows in (99_999, 100_000)] == ["exact", "lance"]
    assert choice.choose("exact", 10**9) == "exact"


def test_an_index_too_large_for_memory_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = stored(tmp_path, corpus())
    assert index.nbytes() == ROWS * DIM * 2 and isinstance(index.ready(), HeldIndex)
    monkeypatch.setattr(exact, "MOST_HELD", ROWS * DIM * 2 - 1)
    assert index.ready() is index


def test_a_backend_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs lance, which is not installed: pip install 'puma-retrieval\[lance\]'"
    ):
        choice.choose("auto", 100_000)


@pytest.mark.parametrize(
    "where, message",
    [
        ({"colour": "red"}, "no column 'colour' to filter by; it has: brand, price, fresh"),
        ({"price": "cheap"}, "'price' holds number, so it can't be compared with 'cheap'"),
        ({"price": True}, "'price' holds number"),
        ({"brand": {"~": "A"}}, "'~' compares nothing"),
        ({"fresh": 1}, "'fresh' holds truth"),
        ({"brand": []}, "filter of 'brand' is empty"),
        ({"brand": {"!=": []}}, "filter of 'brand' is empty"),
        ({"brand": {}}, "filter of 'brand' is empty"),
        ({"price": {"<": float("inf")}}, "give a finite number"),
        ({"price": [1, float("nan")]}, "give a finite number"),
        ({"price": 10**400}, "give a finite number"),
        ({"brand": {"<": 20}}, "'brand' holds text, so it can't be compared with 20"),
        ({"brand": {"<": "20"}}, "'brand' holds text, which '<' can't compare with the number 20: correct the values"),
        ({"brand": {">=": ["A", "9.50"]}}, "'brand' holds text, which '>=' can't compare with the number 9.50"),
        ({"brand": "\udcff"}, "the value .* of 'brand' is not UTF-8"),
        (parse_where(["brand<20"], CARD), "'brand' holds text, which '<' can't compare with the number 20"),
    ],
)
def test_conditions_that_the_index_cannot_check_are_refused(where: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        filter_of(where, CARD)


def test_candidates_of_ones_own_are_of_no_data_set_also_where_they_have_no_columns() -> None:
    trained_on = [{"dataset": "shop", "dataset_id": 7}]
    assert filter_of({"dataset": "shop"}, {"instructions": trained_on}).datasets == (7,)
    with pytest.raises(InputError, match="no column 'dataset' to filter by; it has: none"):
        filter_of({"dataset": "shop"}, {"instructions": trained_on, "metadata": {}})


@pytest.mark.parametrize("amount", ["$20", "20 €", "-5 %", "1e3", ".5", "1'299.00", "9,50", "1" + "." * 10_000])
def test_texts_are_not_ordered_by_a_number_however_it_is_written(amount: str) -> None:
    with pytest.raises(InputError, match="'brand' holds text, which '<' can't compare with the number"):
        filter_of({"brand": {"<": amount}}, CARD)
    assert filter_of({"brand": amount}, CARD).conditions


@pytest.mark.parametrize("text", ["2024-01-31", "12:30", "7-Eleven", "M", "1" + "." * 10_000 + "a"])
def test_texts_are_ordered_by_dates_and_words(text: str) -> None:
    assert filter_of({"brand": {"<": text}}, CARD).conditions


SHOPS = {"instructions": [{"dataset": "a", "dataset_id": 0}, {"dataset": "b", "dataset_id": 1}]}


@pytest.mark.parametrize(
    "where, message",
    [
        ({"dataset": []}, "'dataset' is an empty list"),
        ({"dataset": {"!=": "a"}}, "'dataset' is compared by = alone"),
        ({"dataset": [["a"]]}, "knows no dataset"),
        ({"dataset": "c"}, "knows no dataset 'c'; it knows: a b"),
    ],
)
def test_datasets_that_cannot_be_chosen_are_refused(where: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        filter_of(where, SHOPS)


def test_datasets_are_reported_one_by_one() -> None:
    assert filter_of(parse_where(["dataset=a", "dataset=b"], SHOPS), SHOPS).datasets == (0, 1)
    with pytest.raises(InputError, match="'dataset!=a' can't be checked"):
        parse_where(["dataset!=a"], SHOPS)


def test_conditions_are_read_as_their_column_says() -> None:
    told = ["brand = Arla", "price<=9.5", "price>2", "fresh=TRUE"]
    assert parse_where(told, CARD) == {
        "brand": {"=": ["Arla"]},
        "price": {"<=": [9.5], ">": [2.0]},
        "fresh": {"=": [True]},
    }
    assert filter_of(parse_where(["brand!=x'; DROP"], CARD), CARD).conditions == (Condition("m0", "!=", "x'; DROP"),)
    for wrong, message in (("brand", "no condition"), ("price<cheap", "holds numbers")):
        with pytest.raises(InputError, match=message):
            parse_where([wrong], CARD)


def test_a_sign_that_is_given_twice_has_to_hold_twice() -> None:
    told = parse_where(["price<10", "price < 20", "brand!=Arla", "brand!=Oatly"], CARD)
    assert told == {"price": {"<": [10.0, 20.0]}, "brand": {"!=": ["Arla", "Oatly"]}}
    signs = [(one.column, one.sign, one.value) for one in filter_of(told, CARD).conditions]
    assert signs == [("m1", "<", 10.0), ("m1", "<", 20.0), ("m0", "!=", "Arla"), ("m0", "!=", "Oatly")]
