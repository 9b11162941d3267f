"""ingest on Ray: a hand-made M-BEIR directory with every kind of bad row, checked row by row."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages import ingest
from stages.contract.context import StageError
from stages.data.images import decode
from stages.data.schemas import CANDIDATES, IMAGES, INSTRUCTIONS, QUERIES, REJECTS
from tests.mbeir_files import (
    image_candidate,
    image_query,
    png,
    text_candidate,
    text_query,
    write_bytes,
    write_lines,
    write_minimal,
)
from tests.support import begin, commit, rows

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]

TRAIN = "query/train/mbeir_toy_train.jsonl"
TEST0 = "query/test/mbeir_toy_task0_test.jsonl"
VAL3 = "query/val/mbeir_toy_task3_val.jsonl"
POOL0 = "cand_pool/local/mbeir_toy_task0_cand_pool.jsonl"
POOL3 = "cand_pool/local/mbeir_toy_task3_cand_pool.jsonl"
UNION = "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
SCENES = ingest.Scenes(train=20, val=8, test=8, size=32)


def make_messy(root: Path) -> Path:
    """A small data set in which everything that can go wrong does."""
    write_minimal(root)
    secret = root.parent / "secret.png"
    secret.write_bytes(png("black"))
    for name in ("red", "green", "blue"):
        write_bytes(root, f"mbeir_images/{name}.png", png(name))
    write_bytes(root, "mbeir_images/red_again.png", png("red"))
    write_bytes(root, "mbeir_images/torn.png", png("red", (90, 90))[:120])
    write_bytes(root, "mbeir_images/huge.png", png(0, (10_001, 10_000), "1"))
    write_bytes(root, "mbeir_images/page.png", b"<html>")
    write_bytes(root, "mbeir_images/wide.png", png("cyan", (64, 32)))
    (root / "mbeir_images/link.png").symlink_to(secret)
    images = [
        image_candidate("7:10", "mbeir_images/red.png"),
        image_candidate("7:11", "mbeir_images/green.png"),
        image_candidate("7:12", "mbeir_images/red_again.png"),
        image_candidate("7:13", "mbeir_images/torn.png"),
        image_candidate("7:14", "mbeir_images/gone.png"),
        image_candidate("7:15", "../secret.png"),
        image_candidate("7:16", "mbeir_images/link.png"),
        image_candidate("7:17", "mbeir_images/huge.png"),
        image_candidate("7:18", "mbeir_images/page.png"),
    ]
    broken = '{"did": "7:19", "modality": '
    write_lines(root, POOL0, [*images, broken, image_candidate("7:10", "mbeir_images/blue.png")])
    texts = [text_candidate("7:20", "a red thing"), text_candidate("7:21", None), {"txt": "no id", "modality": "text"}]
    write_lines(root, POOL3, texts)
    write_lines(root, UNION, [images[0], images[1], texts[0], text_candidate("7:1", "one")])
    train = [
        text_query("7:100", ["7:10", {"did": "7:12"}, "7:999"], ["7:11", "7:998"]),
        text_query("7:101", ["7:999"]),
        text_query("7:102", ["7:13"]),
        text_query("7:103", []),
        text_query("7:100", ["7:10"]),
        image_query("7:104", "mbeir_images/wide.png", ["7:20"]),
        image_query("7:105", "mbeir_images/torn.png", ["7:20"]),
        image_query("7:106", "/etc/hostname", ["7:20"]),
        "not json",
        text_query("7:107", ["7:10"]) | {"qid": None},
    ]
    write_lines(root, TRAIN, train)
    write_lines(root, TEST0, [text_query("7:200", ["7:11"]), text_query("7:201", ["7:11"])])
    write_lines(root, "qrels/test/mbeir_toy_task0_test_qrels.txt", ["7:200 0 7:10 1 0", "7:200 0 7:11 0 0"])
    write_lines(root, VAL3, [image_query("7:300", "mbeir_images/blue.png", ["7:20"])])
    return root


def ingested(tmp_path: Path, root: Path, **params):
    """(the artifact, its metrics, the context)."""
    data = ingest.Params(kind="mbeir", path=str(root), **{"max_reject_share": 1.0, "max_pixels": 1024} | params)
    context = begin(tmp_path / "store", "ingest", data=data, seed=0)
    metrics = ingest.run(context)
    return commit(tmp_path / "store", context), metrics, context


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("messy")
    return ingested(tmp_path, make_messy(tmp_path / "data"))


def test_every_bad_row_is_rejected_with_its_line_and_reason(messy):
    found = {(row["kind"], row["id"], row["source"], row["reason"]) for row in rows(messy[0], "rejects")}
    images = "mbeir_images"
    assert found == {
        ("candidate", "7:13", f"{POOL0}:4", "truncated image"),
        ("candidate", "7:14", f"{POOL0}:5", "missing image"),
        ("candidate", "7:15", f"{POOL0}:6", "path outside root"),
        ("candidate", "7:16", f"{POOL0}:7", "link outside root"),
        ("candidate", "7:17", f"{POOL0}:8", "huge image"),
        ("candidate", "7:18", f"{POOL0}:9", "unknown format"),
        ("candidate", None, f"{POOL0}:10", "broken JSON"),
        ("candidate", "7:10", f"{POOL0}:11", "conflicting id"),
        ("candidate", "7:21", f"{POOL3}:2", "missing text"),
        ("candidate", None, f"{POOL3}:3", "missing id"),
        ("query", "7:101", f"{TRAIN}:2", "dangling positives"),
        ("query", "7:102", f"{TRAIN}:3", "dangling positives"),
        ("query", "7:103", f"{TRAIN}:4", "no positive"),
        ("query", "7:100", f"{TRAIN}:5", "duplicate id"),
        ("query", "7:105", f"{TRAIN}:7", "truncated image"),
        ("query", "7:106", f"{TRAIN}:8", "path outside root"),
        ("query", None, f"{TRAIN}:9", "broken JSON"),
        ("query", None, f"{TRAIN}:10", "missing id"),
        ("query", "7:201", f"{TEST0}:2", "no positive"),
        ("image", None, f"{images}/torn.png", "truncated image"),
        ("image", None, f"{images}/gone.png", "missing image"),
        ("image", None, "../secret.png", "path outside root"),
        ("image", None, f"{images}/link.png", "link outside root"),
        ("image", None, f"{images}/huge.png", "huge image"),
        ("image", None, f"{images}/page.png", "unknown format"),
        ("image", None, "/etc/hostname", "path outside root"),
    }


def test_every_good_candidate_is_there_once_with_all_its_pools(messy):
    found = {row["did"]: row for row in rows(messy[0], "candidates")}
    assert {did: row["pools"] for did, row in found.items()} == {
        "7:1": ["toy_task1", "union_test", "union_val"],
        "7:2": ["toy_task1", "union_val"],
        "7:10": ["toy_task0", "union_test", "union_val"],
        "7:11": ["toy_task0", "union_test", "union_val"],
        "7:12": ["toy_task0", "union_val"],
        "7:20": ["toy_task3", "union_test", "union_val"],
    }
    assert found["7:20"]["text"] == "A red thing."
    assert found["7:10"]["content_id"] == found["7:12"]["content_id"] != found["7:11"]["content_id"]


def test_queries_keep_what_exists(messy):
    found = {(row["split"], row["qid"]): row for row in rows(messy[0], "queries")}
    assert set(found) == {
        ("train", "7:100"),
        ("train", "7:104"),
        ("val", "7:2"),
        ("val", "7:300"),
        ("test", "7:3"),
        ("test", "7:200"),
    }
    first = found["train", "7:100"]
    assert (first["positives"], first["negatives"], first["pool"]) == (["7:10", "7:12"], ["7:11"], None)
    assert (first["target_modality"], first["text"]) == ("image", "Query 7:100.")
    assert (found["test", "7:200"]["positives"], found["test", "7:200"]["pool"]) == (["7:10"], "toy_task0")
    assert (found["val", "7:300"]["pool"], found["val", "7:300"]["modality"]) == ("toy_task3", "image")
    assert {row["dataset"] for row in found.values()} == {"toy"}


def test_pictures_are_stored_once_capped_and_referred_to(messy):
    artifact = messy[0]
    images = {row["image_id"]: row for row in rows(artifact, "images")}
    assert len(images) == len(rows(artifact, "images")) == 4  # red, green, blue, wide
    used = {row["image_id"] for name in ("queries", "candidates") for row in rows(artifact, name) if row["image_id"]}
    assert used == set(images)
    wide = images[next(row["image_id"] for row in rows(artifact, "queries") if row["qid"] == "7:104")]
    assert wide["width"] * wide["height"] <= 1024 and wide["width"] > wide["height"]
    assert decode(wide["bytes"]).size == (wide["width"], wide["height"])


def test_counts_add_up(messy):
    artifact, metrics, context = messy
    stats = artifact.read_json("stats.json")
    assert stats["rejects"] == metrics["rejects"]
    assert (stats["rejects"]["queries"], stats["rejects"]["candidates"], stats["rejects"]["images"]) == (9, 10, 7)
    assert sum(stats["rejects"]["by_reason"].values()) == 19
    assert stats["share"] == pytest.approx(19 / (19 + 6 + 6))
    assert stats["queries"]["by_split"] == {"train": 2, "val": 2, "test": 2}
    assert stats["queries"]["by_task"]["val"]["toy_task3"] == {"queries": 1, "modality": "image→text"}
    assert stats["queries"]["dangling_ids_dropped"] == 2
    assert stats["pools"]["toy_task0"] == 3
    assert context.tracker.told["rejected_queries"] == 9 and len(context.tracker.datasets) == 1


def test_files_have_the_shared_schemas(messy):
    schemas = {"queries": QUERIES, "candidates": CANDIDATES, "images": IMAGES, "rejects": REJECTS}
    for name, schema in (schemas | {"instructions": INSTRUCTIONS}).items():
        files = messy[0].files(name)
        assert files and all(pq.read_schema(path).remove_metadata() == schema for path in files)


def test_a_source_without_pictures_and_rejects_still_gives_readable_files(tmp_path):
    artifact, metrics, _ = ingested(tmp_path, write_minimal(tmp_path / "data"))
    assert rows(artifact, "images") == rows(artifact, "rejects") == []
    assert [pq.read_schema(path) for path in artifact.files("images")] == [IMAGES]
    assert metrics["queries"] == 3 and metrics["reject_share"] == 0


def test_too_many_rejects_stop_the_stage_and_stay_readable(tmp_path):
    with pytest.raises(StageError) as caught:
        ingested(tmp_path, make_messy(tmp_path / "data"), max_reject_share=0.3)
    message = str(caught.value)
    assert "\n" not in message and "data.max_reject_share=0.3" in message
    assert f"broken JSON 2 ({POOL0}:10)" in message
    path = Path(message.partition("rows and reasons in ")[2].partition(";")[0])
    assert {"kind": "query", "id": "7:103"}.items() <= next(
        row for row in json.loads(path.read_text()) if row["source"] == f"{TRAIN}:4"
    ).items()


def test_a_split_without_usable_queries_is_named(tmp_path):
    root = write_minimal(tmp_path / "data")
    write_lines(root, "query/val/mbeir_toy_task1_val.jsonl", [text_query("7:2", ["7:77"], task=1)])
    with pytest.raises(StageError, match=r"no usable query in val: .*mbeir_toy_task1_val\.jsonl:1"):
        ingested(tmp_path, root)


def test_a_pool_without_a_positive_leaves_no_usable_query_and_no_crash(tmp_path):
    root = write_minimal(tmp_path / "data")
    write_lines(root, "cand_pool/local/mbeir_toy_task1_cand_pool.jsonl", [text_candidate("7:9", "nine")])
    with pytest.raises(StageError, match="no usable query in train, val, test: dangling positives 3"):
        ingested(tmp_path, root)


def test_the_same_source_gives_the_same_rows_in_the_same_order(tmp_path, messy):
    again, _, _ = ingested(tmp_path, make_messy(tmp_path / "data"))
    for name in ("queries", "candidates", "rejects"):
        assert rows(again, name) == rows(messy[0], name)


def test_scenes_are_drawn_and_ingested_without_a_reject(tmp_path):
    context = begin(tmp_path / "store", "ingest", data=ingest.Params(scenes=SCENES), seed=1)
    metrics = ingest.run(context)
    artifact = commit(tmp_path / "store", context)
    assert (metrics["queries"], metrics["reject_share"]) == (8 * 36, 0)
    known = {row["did"]: row for row in rows(artifact, "candidates")}
    for row in rows(artifact, "queries"):
        assert row["split"] == "train" or row["pool"] == f"scenes_task{row['task_id']}_{row['split']}"
        assert row["target_modality"] == known[row["positives"][0]]["modality"]
        assert row["pool"] is None or all(row["pool"] in known[did]["pools"] for did in row["positives"])
