"""A step's samples, and what is known about them: hard negatives, teacher states."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow.fs import LocalFileSystem

from pipeline.artifacts.store import open_store
from stages.data.keys import NOTHING, hash_ids
from stages.data.schemas import NEGATIVES
from stages.learn.loop import cached_teacher, live_teacher
from stages.learn.sampling import PairSampler, some_words
from stages.mining.negatives import Mined
from stages.model.encoder import Encoder
from tests import training_world
from tests.tiny_models import write_checkpoint
from tests.training_world import PAIRS, write_ingest

ARGUMENTS = {"batch": 8, "world": 1, "rank": 0, "seed": 0, "vary_instructions": False}


def test_mined_negatives_follow_those_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = {"qid": "9:1", "negatives": ["9:5", "9:7"], "scores": [0.5, 0.4]}
    pq.write_table(pa.Table.from_pylist([row], NEGATIVES), tmp_path / "mined.parquet")
    mined = Mined("train", "k", (str(tmp_path / "mined.parquet"),), LocalFileSystem())
    ingest = write_ingest(Path(tmp_path, "store"))
    sampler = PairSampler(ingest, **ARGUMENTS, mined=mined)
    assert sampler.negatives({"qid": "9:1", "negatives": ["9:7", "9:2"]}) == ["9:7", "9:2", "9:5"]
    assert sampler.negatives({"qid": "9:2", "negatives": ["9:4"]}) == ["9:4"]
    assert PairSampler(ingest, **ARGUMENTS).negatives({"qid": "9:1", "negatives": []}) == []


def sampler_of(tmp_path, monkeypatch, **changes) -> PairSampler:
    """Over made pairs in which query 9:3k+1 has one hard negative, 9:3k+2 three, one of them a positive, 9:3k none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [f"9:{number}" for number in range(PAIRS)]
    lists = [[], ["9:0"], [names[0], names[1], "positive"]]
    rows = []
    for number, name in enumerate(names):
        given = [f"9:{(number + 3) % PAIRS}" if did == "positive" else did for did in lists[number % 3]]
        rows.append({"qid": name, "negatives": given, "scores": [0.5] * len(given)})
    pq.write_table(pa.Table.from_pylist(rows, NEGATIVES), tmp_path / "mined.parquet")
    mined = Mined("train", "k", (str(tmp_path / "mined.parquet"),), LocalFileSystem())
    store = tmp_path / "store"
    ingest = open_store(str(store)).artifact("ingest", "0123456789ab") if store.exists() else write_ingest(store)
    return PairSampler(ingest, **ARGUMENTS | {"mined": mined, "hard_negatives": 2} | changes)


def test_hard_negatives_fill_their_places_and_leave_the_others_empty(tmp_path, monkeypatch):
    pairs = sampler_of(tmp_path, monkeypatch).pairs(0)
    kinds = [int(qid.split(":")[1]) % 3 for qid in pairs.query_ids]
    count = sum({0: 0, 1: 1, 2: 2}[kind] for kind in kinds)  # the positive among them is no negative
    assert len(pairs.negative_rows) == count > 0
    assert len(pairs.candidate_hash) == len(pairs.content_hash) == len(pairs.modality) == 8 * 3
    assert (pairs.candidate_hash != NOTHING).sum() == 8 + count
    assert (pairs.candidate_hash[8 + count :] == NOTHING).all()


def test_hard_negatives_are_drawn_by_step_and_query_alone(tmp_path, monkeypatch):
    whole = sampler_of(tmp_path, monkeypatch, hard_negatives=1)
    halves = [sampler_of(tmp_path, monkeypatch, hard_negatives=1, world=2, rank=rank) for rank in (0, 1)]
    drawn = set()
    for step in range(9):
        pairs = whole.pairs(step)
        assert np.array_equal(pairs.candidate_hash, whole.pairs(step).candidate_hash)
        parts = [half.pairs(step) for half in halves]
        assert pairs.negative_rows == parts[0].negative_rows + parts[1].negative_rows
        drawn |= {row.text for row in pairs.negative_rows}
    assert "Thing number 1." in drawn and None in drawn  # 9:1, and 9:0 which is a picture


def test_sub_batches_are_of_one_task(tmp_path, monkeypatch):
    sampler = sampler_of(tmp_path, monkeypatch, sub_batch=4)
    mixed = sampler_of(tmp_path, monkeypatch)
    kinds = [[int(qid.split(":")[1]) % 3 for qid in one.pairs(0).query_ids] for one in (sampler, mixed)]
    assert len(set(kinds[0][:4])) == len(set(kinds[0][4:])) == 1 < len(set(kinds[1][:4]))


def test_some_words_of_a_text_are_left_out_by_its_own_draw_alone(tmp_path, monkeypatch):
    whole = sampler_of(tmp_path, monkeypatch)
    sampler = sampler_of(tmp_path, monkeypatch, drop_words=0.5)
    halves = [sampler_of(tmp_path, monkeypatch, drop_words=0.5, world=2, rank=rank) for rank in (0, 1)]
    changed = 0
    for step in range(9):
        rows = sampler.pairs(step).query_rows
        assert rows == sampler.pairs(step).query_rows
        assert rows == [row for half in halves for row in half.pairs(step).query_rows]
        for row, full in zip(rows, whole.pairs(step).query_rows, strict=True):
            instruction, *words = (row.text or "").split("\n")
            assert instruction == (full.text or "").split("\n")[0] and row.image == full.image
            changed += row.text != full.text
            assert bool(words) == (row.image is None)
    assert changed > 20  # of 72, a third of them pictures


def test_words_are_left_out_as_often_as_asked_and_one_always_stays():
    texts = [some_words("One two three four five.", draw, 0.3) for draw in range(2000)]
    # One word is kept in any case: 5 · 0.7 + 0.3 of 5 on average; three standard errors are 0.07.
    assert np.mean([len(text.split()) for text in texts]) == pytest.approx(3.8, abs=0.07)
    assert all(text.endswith(".") for text in texts)
    assert {some_words('Nails 2 ".', draw, 0.99) for draw in range(50)} >= {"Nails.", "2."}
    assert all(some_words('" x.', draw, 0.99) for draw in range(50))
    assert {some_words("One two.", draw, 0.99) for draw in range(50)} <= {"One.", "Two.", "One two."}


def test_only_positives_of_the_target_s_modality_are_drawn(tmp_path, monkeypatch):
    sampler = sampler_of(tmp_path, monkeypatch)
    query = {"positives": ["9:1", "9:0", "9:2", "9:3"], "target_modality": "image"}  # pictures are 9:0, 9:3, …
    assert {sampler._drawn_positive(query, draw)["did"] for draw in range(9)} == {"9:0", "9:3"}


def test_contents_of_all_positives_are_known(tmp_path, monkeypatch):
    sampler = sampler_of(tmp_path, monkeypatch, hard_negatives=0)
    pairs = sampler.pairs(0)
    assert pairs.negative_rows == [] and len(pairs.candidate_hash) == 8
    for qid, known in zip(pairs.query_ids, pairs.contents, strict=True):
        positives = sampler.queries.row(sampler.queries.find(qid))["positives"]
        stored = [sampler.candidates.row(sampler.candidates.find(did))["content_id"] for did in positives]
        assert known.tolist() == hash_ids(stored).view(np.int64).tolist()


@pytest.mark.parametrize(
    ("layer", "normed", "before_mlp"), [(4, True, False), (3, True, False), (3, False, False), (4, True, True)]
)
def test_a_live_teacher_says_what_the_cached_one_does(tmp_path, monkeypatch, layer, normed, before_mlp):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = write_checkpoint(tmp_path / "model", "qwen2_vl")
    pairs = PairSampler(write_ingest(Path(tmp_path, "store")), **ARGUMENTS).pairs(0)
    whole = Encoder.load(model)
    tables = []
    for ids, rows in ((pairs.query_ids, pairs.query_rows), (pairs.candidate_ids, pairs.candidate_rows)):
        with torch.inference_mode():  # one row at a time and in fp16, as the features are stored
            states = [
                whole.states_by_layer(whole.collator([row]), normed, before_mlp)[layer - 1, 0].numpy() for row in rows
            ]
        tables.append(dict(zip(ids, [state.astype(np.float16) for state in states], strict=True)))
    live = live_teacher(Encoder.load(model, layer), normed, before_mlp)(pairs)
    chunked = live_teacher(Encoder.load(model, layer), normed, before_mlp, chunk=3)(pairs)
    torch.testing.assert_close(chunked, live, rtol=1e-5, atol=5e-6)
    assert not live.requires_grad and not live.is_inference()
    torch.testing.assert_close(live, cached_teacher(*tables)(pairs), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("most", [1, 2, 50])
def test_a_query_comes_as_often_as_it_has_positives_up_to_a_limit(tmp_path, monkeypatch, most):
    count = sampler_of_counts(tmp_path, monkeypatch, repeat_positives=most)
    assert count == {f"9:{number}": min(1 + number % 3, most) for number in range(PAIRS)}


def test_small_tasks_are_counted_after_their_queries_are_repeated(tmp_path, monkeypatch):
    count = sampler_of_counts(tmp_path, monkeypatch, repeat_positives=50, smallest_task=PAIRS)
    # Task k holds the queries of k + 1 positives, a third of all: one and two thirds are filled up to three.
    tasks = [sum(count[f"9:{number}"] for number in range(PAIRS) if number % 3 == task) for task in range(3)]
    assert tasks == [PAIRS, PAIRS, PAIRS]


def sampler_of_counts(tmp_path, monkeypatch, **arguments) -> dict[str, int]:
    """How often each query is in an epoch, where query k has 1 + k mod 3 positives."""
    made = training_world._query

    def query(index: int) -> dict:
        positives = [f"9:{(index + step) % PAIRS}" for step in range(0, 3 * (1 + index % 3), 3)]
        return made(index) | {"positives": positives}

    monkeypatch.setattr(training_world, "_query", query)
    sampler = sampler_of(tmp_path, monkeypatch, **arguments)
    return Counter(sampler.queries.row(row)["qid"] for row in sampler.epoch)
