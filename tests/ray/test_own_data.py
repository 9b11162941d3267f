"""A user's own data on a real cluster: pairs become an ingest artifact, a folder becomes an index that is searched."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.store import Artifact, open_store
from pipeline.lookup.indexes import find_keys, open_retriever
from pipeline.retriever import Retriever
from pipeline.web.served import ServedIndex
from stages import index, ingest
from stages.contract.context import InputError, StageError
from stages.data.images import ImageLimits, check
from stages.distill import Student
from stages.distributed import corpus
from stages.search.exact import ExactIndex
from stages.search.retriever import row_of
from tests.corpus_files import COLOURS, pair, write_csv, write_pictures, write_records
from tests.mbeir_files import png, write_bytes
from tests.s3.servers import upload
from tests.search_world import make_world, picture, write_run
from tests.serve.conftest import serving
from tests.support import begin, commit, rows

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]


@pytest.fixture(scope="module")
def home(shared_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for all tests of this file."""
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def world(home: Path) -> dict:
    """A store with an untrained student, and the records of a shop indexed by it."""
    store, artifacts = make_world(home / "store")
    for colour in COLOURS:
        write_bytes(home / "shop", f"{colour}.png", picture(colour).bytes)
    write_bytes(home, "outside.png", png("black"))
    good = [
        {"id": f"s{number}", "image": f"{colour}.png", "brand": ("Arla", "O'Neil")[number % 2], "price": number}
        for number, colour in enumerate(COLOURS)
    ]
    good += [{"id": f"t{number}", "text": f"a {colour} square"} for number, colour in enumerate(COLOURS)]
    good += [{"id": f"u{number}", "text": f"filler {number}", "price": 50 + number} for number in range(40)]
    bad = [{"id": "leaves", "image": "../outside.png"}, b"{broken"]
    path = write_records(home / "shop" / "goods.jsonl", [*good, *bad])
    model = artifacts["train"].local("model")
    artifact, metrics = run_corpus(home, path, model)
    return {"store": store, "index": artifact, "metrics": metrics, "model": model, "home": home}


def run_corpus(home: Path, path: Path | str, model: Path, **params: object) -> tuple[Artifact, dict]:
    """Runs the stage and commits what it wrote."""
    sections = {"index": index.Params(corpus=str(path), **params), "student": Student(model=str(model))}
    context = begin(home / "store", "index", **sections)
    metrics = corpus.run(context)
    return commit(home / "store", context), metrics


def test_records_are_indexed_and_bad_ones_are_reported(world: dict) -> None:
    assert world["metrics"]["rows"] == 48
    assert world["metrics"]["rejects"] == {"candidates": 2, "by_reason": {"broken JSON": 1, "path outside root": 1}}
    rejects = {(row["source"], row["reason"]) for row in rows(world["index"], "rejects") if row["kind"] == "candidate"}
    assert rejects == {("goods.jsonl:49", "path outside root"), ("goods.jsonl:50", "broken JSON")}
    card = world["index"].read_json("retriever.json")
    made = world["model"].parent
    assert card["student"] | {"stage": "train", "key": made.parent.name, "attempt": made.name} == card["student"]
    assert (card["backend"], card["rows"], card["modalities"]) == ("exact", 48, {"image": 4, "text": 44})
    assert {name: column["kind"] for name, column in card["metadata"].items()} == {"brand": "text", "price": "number"}


def test_the_index_is_searched_by_its_address_with_filters(world: dict) -> None:
    retriever = Retriever.load(world["index"].uri)
    found = retriever.search(text="red", want="image", k=10, where={"brand": "Arla", "price": {"<": 2}})
    assert [(one.id, one.metadata) for one in found] == [("s0", {"brand": "Arla", "price": 0})]
    assert retriever.picture(found[0].image)[0] == picture("red").bytes
    vectors = {row["did"]: row["vector"] for row in rows(world["index"], "embeddings")}
    shown = retriever.ask(None, picture("blue"), "image")
    query = retriever.embed_many([row_of(shown)])[0]
    order = sorted(COLOURS, key=lambda colour: -np.dot(query, vectors[f"s{COLOURS.index(colour)}"]))
    found = retriever.search(image=picture("blue").bytes, want="image", k=4)
    assert [one.id for one in found] == [f"s{COLOURS.index(colour)}" for colour in order]
    assert [retriever.picture(one.image)[0] for one in found] == [picture(colour).bytes for colour in order]
    asked = [retriever.ask("Red.", None, "image"), retriever.ask("Red.", None, "text", {"price": {">=": 50}})]
    many = retriever.search_many(asked, 3)
    assert [one.id for one in many[0]] == [one.id for one in retriever.find(asked[0], 3)]
    assert all(one.metadata["price"] >= 50 for one in many[1]) and len(many[1]) == 3


def test_vectors_are_the_students_own(world: dict) -> None:
    from stages.model.encoder import Encoder
    from stages.model.rows import Row

    stored = {row["did"]: row["vector"] for row in rows(world["index"], "embeddings")}
    own = Encoder.load(world["model"]).encode([Row(None, picture("red").bytes), Row("A red square.")])
    assert np.abs(np.array([stored["s0"], stored["t0"]], np.float32) - own).max() < 1e-3
    assert ExactIndex.open(world["index"]).dim == own.shape[1]


def test_the_newest_run_over_the_corpus_is_found(world: dict) -> None:
    sections = {"index": index.Params(corpus="shop"), "student": Student(model=str(world["model"]))}
    write_run(world["store"], {"index": world["index"]}, "1", **sections)
    keys = find_keys(world["store"], "here", {"index.corpus": "shop"})
    assert keys["index"] == world["index"].key
    assert open_retriever(world["store"], keys["index"]).search(text="red", k=1)


def test_a_student_that_was_trained_again_is_refused(world: dict, tmp_path: Path) -> None:
    weights = world["model"] / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + b"\0\0\0\1")
    try:
        with pytest.raises(InputError, match="another student than the one that made the index"):
            Retriever.load(world["index"].uri)
    finally:
        weights.write_bytes(kept)


def test_a_folder_of_pictures_and_texts_is_indexed(world: dict, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    artifact, metrics = run_corpus(tmp_path, write_pictures(tmp_path / "photos"), world["model"])
    assert metrics["rows"] == 5
    retriever = Retriever.load(artifact.uri)
    found = {want: {one.id for one in retriever.search(text="red", want=want, k=4)} for want in ("image", "text")}
    assert found == {
        "image": {"red square.png", "deep/green square.png", "blue square.png", "deep/yellow square.png"},
        "text": {"notes.txt:1"},
    }


def test_a_layout_of_imagefolder_with_a_number_that_is_none_is_indexed_and_served(
    world: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for colour in (*COLOURS, "purple"):
        write_bytes(tmp_path, f"shop/{colour}.png", picture(colour).bytes)
    sold = [{"file_name": f"{colour}.png", "text": f"a {colour} square", "price": 2, "size": 3} for colour in COLOURS]
    sold[1]["size"] = "N/A"
    lacking = json.dumps({**sold.pop(), "price": float("nan")}).encode()
    assert b"NaN" in lacking
    path = write_records(tmp_path / "shop" / "metadata.jsonl", [*sold, lacking])
    (tmp_path / "store").mkdir()
    artifact, metrics = run_corpus(tmp_path, path, world["model"])
    assert (metrics["rows"], artifact.read_json("retriever.json")["modalities"]) == (4, {"image,text": 4})
    said = capsys.readouterr().err
    assert "warning: pictures beside the records that no row names: 1" in said
    assert "warning: column 'size' is text, for 1 of its 4 values are no numbers: 'N/A' (metadata.jsonl:2)" in said
    with serving(ServedIndex(open_store(str(tmp_path / "store")), {"index": artifact.key}, False)) as served:
        answers = [served.post(json={"text": "yellow", "k": 4}), served.get("about")]
        assert [answer.status_code for answer in answers] == [200, 200]
        found, about = (json.loads(answer.text, parse_constant=pytest.fail) for answer in answers)
        priced = served.post(json={"text": "yellow", "k": 4, "where": {"price": {">": 1}}}).json()
    prices = {one["id"]: one["metadata"].get("price") for one in found["results"]}
    assert sorted(prices.values(), key=str) == [2, 2, 2, None]
    assert {one["id"] for one in priced["results"]} == {name for name, price in prices.items() if price}
    assert (about["rows"], len(about["examples"])) == (4, 4)


def test_a_corpus_that_is_mostly_broken_stops_and_says_why(world: dict, tmp_path: Path) -> None:
    path = write_records(tmp_path / "bad.jsonl", [{"text": "good"}, *[{"image": "gone.png"}] * 99])
    (tmp_path / "store").mkdir()
    with pytest.raises(
        StageError, match=r"99 of 100 rows .* are bad: missing image 99 \(bad.jsonl:2: 'gone.png' does"
    ):
        run_corpus(tmp_path, path, world["model"])


def test_pairs_become_queries_candidates_and_rejects(tmp_path: Path) -> None:
    for colour in COLOURS:
        write_bytes(tmp_path, f"own/{colour}.png", png(colour, (40, 40)))
    write_bytes(tmp_path, "outside.png", png("black"))
    good = [pair(number, ("train", "val", "test")[number % 3], id=f"q{number}") for number in range(60)]
    bad = [pair(60, id="q60", positives=[{"id": "x", "image": "../outside.png"}]), pair(61, id="q61", split="dev")]
    path = write_records(tmp_path / "own" / "pairs.jsonl", [*good, *bad])
    context = begin(tmp_path / "store", "ingest", data=ingest.Params(kind="pairs", path=str(path)), seed=0)
    metrics = ingest.run(context)
    artifact = commit(tmp_path / "store", context)
    queries = {row["qid"]: row for row in rows(artifact, "queries")}
    assert len(queries) == 60 and queries["q1"]["pool"] == "pairs_task0" and queries["q0"]["pool"] is None
    assert (queries["q1"]["positives"], queries["q1"]["negatives"]) == (["p1"], ["p2"])
    candidates = {row["did"]: row for row in rows(artifact, "candidates")}
    assert set(candidates) == {"p0", "p1", "p2", "p3"}
    assert candidates["p0"]["pools"] == ["pairs_task0", "union_test", "union_val"]
    assert metrics["rejects"]["by_reason"] == {"bad split": 1, "dangling positives": 1, "path outside root": 1}
    told = rows(artifact, "instructions")
    assert [(row["query_modality"], row["target_modality"]) for row in told] == [("text", "image")]


def test_a_table_with_pictures_in_a_bucket_is_indexed_and_shown(
    world: dict, bucket_server: str, tmp_path: Path
) -> None:
    good = [[colour, f"{colour}.png", str(number)] for number, colour in enumerate(COLOURS)]
    good += [[f"m{number}", "red.png", "9"] for number in range(40)]
    table = write_csv(tmp_path / "shop" / "goods.csv", [["id", "image", "price"], *good, ["away", "../red.png", "5"]])
    for colour in COLOURS:
        write_bytes(tmp_path / "shop", f"{colour}.png", picture(colour).bytes)
    upload(bucket_server, tmp_path / "shop", "own/shop")
    upload(bucket_server, tmp_path / "shop" / "red.png", "own/red.png")
    (tmp_path / "store").mkdir()
    artifact, metrics = run_corpus(tmp_path, f"s3://bucket/own/shop/{table.name}", world["model"])
    assert (metrics["rows"], metrics["rejects"]["by_reason"]) == (44, {"path outside root": 1})
    assert [row["source"] for row in rows(artifact, "rejects") if row["id"]] == ["goods.csv:46"]
    retriever = Retriever.load(artifact.uri)
    found = retriever.search(text="green", k=10, where={"price": {"<": 4}})
    assert {one.id: retriever.picture(one.image)[0] for one in found} == {
        colour: picture(colour).bytes for colour in COLOURS
    }


def test_a_query_in_several_rows_is_one_and_pictures_that_no_row_names_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for colour in (*COLOURS, "purple"):
        write_bytes(tmp_path, f"own/{colour}.png", png(colour, (40, 40)))
    good = [pair(number, ("train", "val", "test")[number % 3], task="photo to label") for number in range(6)]
    more = [{**row, "positives": [{"image": "./red.png"}], "negatives": []} for row in good]
    path = write_records(tmp_path / "own" / "pairs.jsonl", [*good, *more])
    context = begin(tmp_path / "store", "ingest", data=ingest.Params(kind="pairs", path=str(path)), seed=0)
    ingest.run(context)
    artifact = commit(tmp_path / "store", context)
    queries = rows(artifact, "queries")
    assert [(row["qid"], len(row["positives"]), row["dataset"]) for row in queries] == [
        (f"pairs.jsonl:{number}", 2, "photo to label") for number in range(1, 7)
    ]
    said = capsys.readouterr().err
    assert "12 rows ask what another row of their task asks: merged into 6 queries" in said
    assert "warning: pictures beside the records that no row names: 1" in said


def test_pairs_in_a_bucket_are_read_in_place(bucket_server: str, tmp_path: Path) -> None:
    for colour in COLOURS:
        write_bytes(tmp_path, f"own/{colour}.png", png(colour, (40, 40)))
    good = [pair(number, ("train", "val", "test")[number % 3], id=f"q{number}") for number in range(30)]
    write_records(tmp_path / "own" / "pairs.jsonl", [*good, pair(31, id="bad", split="dev")])
    upload(bucket_server, tmp_path / "own", "own/pairs")
    context = begin(tmp_path, "ingest", data=ingest.Params(kind="pairs", path="s3://bucket/own/pairs"), seed=0)
    metrics = ingest.run(context)
    artifact = commit(tmp_path, context)
    assert context.tracker.datasets[0][:2] == ("pairs pairs", "s3://bucket/own/pairs")
    assert [row["qid"] for row in rows(artifact, "queries")] == [f"q{number}" for number in range(30)]
    assert {row["did"]: row["image_id"] for row in rows(artifact, "candidates")} == {
        f"p{number}": check(png(colour, (40, 40)), ImageLimits()).image_id for number, colour in enumerate(COLOURS)
    }
    assert metrics["rejects"]["by_reason"] == {"bad split": 1}
    assert [row["source"] for row in rows(artifact, "rejects")] == ["pairs.jsonl:31"]
