"""Validating rows: duplicates, dangling ids, pools and images, looked up in sorted arrays."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.ingest import survey, validate
from stages.data.ingest.pictures import Ledger
from stages.data.ingest.survey import NUMBERS, Firsts, ImageVerdicts
from stages.data.keys import hash64, hash_ids, locate
from stages.data.schemas import CANDIDATES, QUERIES, RAW_CANDIDATES, RAW_QUERIES, REJECTS
from stages.data.sources.chunks import SourceFile

POOLS = [f"pool{number}" for number in range(70)]
IMAGE = "ab" * 16
NO_IMAGES = ImageVerdicts(np.empty(0, np.uint64), np.empty(0, "V16"), np.empty(0, np.uint8))


def candidate(position: int, did: str, text: str | None = "T.", pool: str = "pool0", path: str | None = None) -> dict:
    kind = "image" if text is None else "image,text" if path else "text"
    return {
        "position": position,
        "source": f"file:{position}",
        "did": did,
        "dataset_id": 1,
        "modality": kind,
        "text": text,
        "image_path": path,
        "pool": pool,
    }


def query(position: int, qid: str, positives: list[str], **fields) -> dict:
    row = {
        "position": position,
        "source": f"query/train/x.jsonl:{position}",
        "qid": qid,
        "split": "train",
        "dataset": "d",
        "dataset_id": 1,
        "task_id": 0,
        "modality": "text",
        "text": "Q.",
        "positives": positives,
        "negatives": [],
    }
    return row | fields


def images(**paths: str) -> ImageVerdicts:
    """Verdicts: an image id, or a reason starting with '!'."""
    order = sorted(paths, key=hash64)
    ids = [bytes(16) if paths[path].startswith("!") else bytes.fromhex(paths[path]) for path in order]
    words = ("", *sorted({word[1:] for word in paths.values() if word.startswith("!")}))
    reasons = [words.index(paths[path][1:]) if paths[path].startswith("!") else 0 for path in order]
    return ImageVerdicts(hash_ids(order), np.array(ids, "V16"), np.array(reasons, np.uint8), words)


def known(rows: list[dict], verdicts: ImageVerdicts = NO_IMAGES, unions: dict | None = None) -> survey.Candidates:
    numbers = survey.candidate_numbers(pa.Table.from_pylist(rows, RAW_CANDIDATES), POOLS)
    return survey.survey_candidates(numbers, POOLS, unions or {}, verdicts.paths[verdicts.reasons != 0])


def validated(rows: list[dict], verdicts: ImageVerdicts = NO_IMAGES, unions: dict | None = None) -> list[dict]:
    table = pa.Table.from_pylist(rows, RAW_CANDIDATES)
    return validate.validate_candidates(table, known(rows, verdicts, unions), verdicts).to_pylist()


def validated_queries(rows: list[dict], candidates: list[dict], verdicts: ImageVerdicts = NO_IMAGES) -> list[dict]:
    table = pa.Table.from_pylist(rows, RAW_QUERIES)
    numbers = survey.query_numbers(table)
    firsts = Firsts.of(numbers["key"].to_numpy(), numbers["position"].to_numpy())
    return validate.validate_queries(table, firsts, known(candidates, verdicts), verdicts, {}).to_pylist()


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10**6)), unique_by=lambda row: row[1]))
def test_the_first_row_of_each_key_is_found(rows):
    keys = np.array([key for key, _ in rows], dtype=np.uint64)
    positions = np.array([position for _, position in rows], dtype=np.int64)
    first = {}
    for key, position in sorted(rows, key=lambda row: row[1]):
        first.setdefault(key, position)
    expected = [key != 0 and first[key] == position for key, position in rows]
    assert Firsts.of(keys, positions).is_first(keys, positions).tolist() == expected


@given(st.sets(st.integers(1, 50)), st.lists(st.integers(1, 50)))
def test_locate_finds_what_is_there(present, wanted):
    array = np.array(sorted(present), dtype=np.uint64)
    places = locate(np.array(wanted, dtype=np.uint64), array)
    assert [place >= 0 for place in places] == [key in present for key in wanted]
    assert all(array[place] == key for key, place in zip(wanted, places, strict=True) if place >= 0)


def test_a_candidate_in_several_pools_is_one_row_with_all_of_them():
    rows = [candidate(number, "1:1", pool=pool) for number, pool in enumerate(("pool69", "pool3", "pool64", "pool3"))]
    (row,) = validated(rows)
    assert row["pools"] == ["pool3", "pool64", "pool69"]
    assert row["reason"] is None


def test_the_same_id_with_other_content_is_rejected_by_its_own_line():
    rows = validated([candidate(5, "1:1", "Second."), candidate(2, "1:1", "First."), candidate(9, "1:1", "First.")])
    assert [(row["source"], row["reason"]) for row in rows] == [("file:5", "conflicting id"), ("file:2", None)]
    assert rows[0]["detail"] == "an earlier row gives this id another text or image"


def test_a_candidate_without_its_image_is_rejected_once():
    verdicts = images(good=IMAGE, bad="!missing image")
    rows = [candidate(0, "1:1", None, path="bad"), candidate(1, "1:1", None, pool="pool1", path="bad")]
    rows.append(candidate(2, "1:2", "T.", path="good"))
    first, second = validated(rows, verdicts)
    assert (first["did"], first["reason"], first["detail"]) == ("1:1", "missing image", "bad")
    assert (second["did"], second["reason"], second["image_id"]) == ("1:2", None, IMAGE)


def test_equal_content_has_an_equal_id_and_other_content_has_not():
    rows = validated([candidate(0, "1:1"), candidate(1, "1:2"), candidate(2, "1:3", "Other.")])
    assert rows[0]["content_id"] == rows[1]["content_id"] != rows[2]["content_id"]


def test_rows_that_were_rejected_when_read_pass_through():
    bad = candidate(0, None) | {"reason": "broken JSON", "detail": "…", "modality": None}
    table = validate.validate_candidates(
        pa.Table.from_pylist([bad], RAW_CANDIDATES), known([candidate(1, "1:1")]), NO_IMAGES
    )
    assert validate.kept(table, CANDIDATES).num_rows == 0
    assert validate.rejected(table, "candidate", "did").to_pylist() == [
        {"kind": "candidate", "id": None, "source": "file:0", "reason": "broken JSON", "detail": "…"}
    ]


def test_unions_are_made_of_their_members():
    rows = [candidate(0, "1:1", pool="pool1"), candidate(1, "1:2", pool="pool2")]
    found = validated(rows, unions={"union_test": {"pool1"}})
    assert [row["pools"] for row in found] == [["pool1", "union_test"], ["pool2"]]


def test_pool_sizes_count_what_survives():
    verdicts = images(bad="!missing image")
    rows = [candidate(0, "1:1", pool="pool1"), candidate(1, "1:2", pool="pool1"), candidate(2, "1:1", pool="pool2")]
    rows.append(candidate(3, "1:3", None, pool="pool1", path="bad"))
    assert known(rows, verdicts).pool_sizes() == {"pool1": 2, "pool2": 1}


def test_a_query_keeps_only_candidates_that_exist_and_survive():
    verdicts = images(bad="!missing image")
    candidates = [candidate(0, "1:1", None, path="bad"), candidate(1, "1:2"), candidate(2, "1:3", None, path="good")]
    verdicts = images(bad="!missing image", good=IMAGE)
    asked = query(9, "1:9", ["1:1", "1:3", "1:2", "1:77"], negatives=["1:2", "1:78"])
    (row,) = validated_queries([asked], candidates, verdicts)
    assert (row["positives"], row["negatives"], row["dangling"]) == (["1:3", "1:2"], ["1:2"], 3)
    assert row["target_modality"] == "image"


@pytest.mark.parametrize(("positives", "reason"), [([], "no positive"), (["1:77"], "dangling positives")])
def test_a_query_without_a_positive_is_rejected(positives, reason):
    (row,) = validated_queries([query(9, "1:9", positives)], [candidate(0, "1:1")])
    assert row["reason"] == reason


def test_a_qid_is_unique_within_its_split():
    rows = [query(9, "1:9", ["1:1"]), query(10, "1:9", ["1:1"]), query(11, "1:9", ["1:1"], split="val")]
    assert [row["reason"] for row in validated_queries(rows, [candidate(0, "1:1")])] == [None, "duplicate id", None]


def test_up_sampled_repeats_are_merged_without_a_reject():
    source = "query/union_train/mbeir_union_up_train.jsonl:7"
    rows = [query(number, "1:9", ["1:1"], source=source) for number in (9, 10)]
    assert [row["reason"] for row in validated_queries(rows, [candidate(0, "1:1")])] == [None]


def test_the_first_path_of_a_picture_owns_it_even_when_its_task_runs_twice():
    ledger = Ledger()
    first = [("a.png", IMAGE), ("b.png", IMAGE), ("c.png", "cd" * 16)]
    assert ledger.record(first, []) == [True, False, True]
    assert ledger.record(first, []) == [True, False, True]
    assert ledger.record([("d.png", "cd" * 16)], [("e.png", "missing image", "gone")]) == [False]
    verdicts, count, rejects = ledger.conclude()
    assert count == 2
    paths = hash_ids(["b.png", "d.png", "e.png", None])
    assert verdicts.look_up(paths) == ([IMAGE, "cd" * 16, None, None], [None, None, "missing image", None])
    assert [(row["source"], row["detail"]) for row in rejects.to_pylist()] == [("e.png", "gone")]


def test_a_ledger_without_pictures_concludes():
    verdicts, count, rejects = Ledger().conclude()
    assert (len(verdicts.paths), count, rejects.schema) == (0, 0, REJECTS)


def test_a_query_without_its_image_is_rejected():
    asked = query(9, "1:9", ["1:1"], modality="image", text=None, image_path="bad")
    (row,) = validated_queries([asked], [candidate(0, "1:1")], images(bad="!truncated image"))
    assert (row["reason"], row["detail"]) == ("truncated image", "bad")


def test_nothing_at_all_is_validated_too():
    empty = known([])
    assert empty.pool_sizes() == {}
    assert validate.validate_candidates(RAW_CANDIDATES.empty_table(), empty, NO_IMAGES).num_rows == 0
    (row,) = validated_queries([query(9, "1:9", ["1:1"])], [])
    assert row["reason"] == "dangling positives"
    assert NUMBERS.empty_table().num_rows == 0


def test_final_tables_have_exactly_the_shared_schemas():
    table = pa.Table.from_pylist([candidate(0, "1:1")], RAW_CANDIDATES)
    kept = validate.kept(validate.validate_candidates(table, known([candidate(0, "1:1")]), NO_IMAGES), CANDIDATES)
    assert kept.schema == CANDIDATES and kept.num_rows == 1
    table = pa.Table.from_pylist([query(9, "1:9", ["1:1"])], RAW_QUERIES)
    numbers = survey.query_numbers(table)
    firsts = Firsts.of(numbers["key"].to_numpy(), numbers["position"].to_numpy())
    found = validate.validate_queries(table, firsts, known([candidate(0, "1:1")]), NO_IMAGES, {})
    assert validate.kept(found, QUERIES).schema == QUERIES
    assert validate.rejected(found, "query", "qid").schema == REJECTS


@pytest.mark.parametrize(
    ("pools", "chosen"), [(["pool1", "union_val"], "pool1"), (["pool2", "union_val"], "union_val")]
)
def test_a_local_pool_without_any_positive_gives_way_to_the_union(pools, chosen):
    rows = [candidate(0, "1:1", pool="pool1"), candidate(1, "1:2", pool="pool2")]
    everything = known(rows, unions={"union_val": {"pool1"}})
    asked = pa.Table.from_pylist([query(9, "1:9", ["1:1"])], RAW_QUERIES)
    assert validate.own_pool(asked, SourceFile("query/val/x.jsonl", pools=tuple(pools)), everything) == chosen


def test_tallies_of_blocks_add_up():
    asked = [query(9, "1:9", ["1:1", "1:7"]), query(10, "1:10", []), query(11, "1:11", [])]
    rows = validated_queries(asked, [candidate(0, "1:1")])
    blocks = [
        pa.Table.from_pylist(rows[:2], validate.VALIDATED_QUERIES),
        pa.Table.from_pylist(rows[2:], validate.VALIDATED_QUERIES),
    ]
    tallies = [row for block in blocks for row in validate.tally(block, ["split", "reason"]).to_pylist()]
    merged = {row["reason"]: row for row in validate.merge_tallies(tallies, ["split", "reason"])}
    assert (merged[None]["count"], merged[None]["dangling"]) == (1, 1)
    assert (merged["no positive"]["count"], merged["no positive"]["source"]) == (2, "query/train/x.jsonl:10")
