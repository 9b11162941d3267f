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
from stages.data.tables import MappedTable
from stages.learn.loop import cached_teacher, centred, live_teacher
from stages.learn.sampling import PairSampler
from stages.learn.settings import Sampling
from stages.mining.negatives import Mined
from stages.model.encoder import Encoder
from tests.tiny_models import write_checkpoint
from tests.training_world import PAIRS, write_ingest

PLACE = {"world": 1, "rank": 0, "seed": 0, "vary_instructions": False}
EIGHT = Sampling(batch_size=8)


def test_mined_negatives_follow_those_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = {"qid": "9:1", "negatives": ["9:5", "9:7"], "scores": [0.5, 0.4]}
    pq.write_table(pa.Table.from_pylist([row], NEGATIVES), tmp_path / "mined.parquet")
    mined = Mined("train", "k", (str(tmp_path / "mined.parquet"),), LocalFileSystem())
    ingest = write_ingest(Path(tmp_path, "store"))
    sampler = PairSampler(ingest, EIGHT, **PLACE, mined=mined)
    assert sampler.negatives({"qid": "9:1", "negatives": ["9:7", "9:2"]}) == ["9:7", "9:2", "9:5"]
    assert sampler.negatives({"qid": "9:2", "negatives": ["9:4"]}) == ["9:4"]
    assert PairSampler(ingest, EIGHT, **PLACE).negatives({"qid": "9:1", "negatives": []}) == []


def sampler_of(tmp_path, monkeypatch, settings: Sampling = EIGHT, **changes) -> PairSampler:
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
    return PairSampler(ingest, settings, **PLACE | {"mined": mined, "hard_negatives": 2} | changes)


def test_hard_negatives_fill_their_places_and_leave_the_others_empty(tmp_path, monkeypatch):
    pairs = sampler_of(tmp_path, monkeypatch).pairs(0)
    kinds = [int(qid.split(":")[1]) % 3 for qid in pairs.query_ids]
    count = sum({0: 0, 1: 1, 2: 2}[kind] for kind in kinds)  # the positive among them is no negative
    assert len(pairs.negative_rows) == count > 0
    assert len(pairs.candidate_hash) == len(pairs.content_hash) == len(pairs.modality) == 8 * 3
    assert (pairs.candidate_hash != NOTHING).sum() == 8 + count
    assert (pairs.candidate_hash[8 + count :] == NOTHING).all()


def test_a_step_opens_no_table_for_which_other_ranks_would_wait(tmp_path, monkeypatch):
    sampler = sampler_of(tmp_path, monkeypatch)
    monkeypatch.setattr(MappedTable, "open", lambda *_, **__: pytest.fail("a table was opened in a step"))
    assert len(sampler.pairs(0).query_ids) == 8


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
    sampler = sampler_of(tmp_path, monkeypatch, Sampling(batch_size=8, sub_batch=4))
    mixed = sampler_of(tmp_path, monkeypatch)
    kinds = [[int(qid.split(":")[1]) % 3 for qid in one.pairs(0).query_ids] for one in (sampler, mixed)]
    assert len(set(kinds[0][:4])) == len(set(kinds[0][4:])) == 1 < len(set(kinds[1][:4]))


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


@pytest.mark.parametrize("layer", [4, 3])
def test_a_live_teacher_says_what_the_cached_one_does(tmp_path, monkeypatch, layer):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = write_checkpoint(tmp_path / "model", "qwen2_vl")
    pairs = PairSampler(write_ingest(Path(tmp_path, "store")), EIGHT, **PLACE).pairs(0)
    whole = Encoder.load(model)
    tables = []
    for ids, rows in ((pairs.query_ids, pairs.query_rows), (pairs.candidate_ids, pairs.candidate_rows)):
        with torch.inference_mode():  # one row at a time and in fp16, as the features are stored
            states = [whole.states_by_layer(whole.collator([row]))[layer - 1, 0].numpy() for row in rows]
        tables.append(dict(zip(ids, [state.astype(np.float16) for state in states], strict=True)))
    live = live_teacher(Encoder.load(model, layer))(pairs)
    chunked = live_teacher(Encoder.load(model, layer), chunk=3)(pairs)
    torch.testing.assert_close(chunked, live, rtol=1e-5, atol=5e-6)
    assert not live.requires_grad and not live.is_inference()
    torch.testing.assert_close(live, cached_teacher(*tables)(pairs), rtol=2e-3, atol=2e-3)
    mean = live.mean(dim=0)
    off = centred(live_teacher(Encoder.load(model, layer)), mean.tolist())(pairs)
    torch.testing.assert_close(off, live - mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [EIGHT, Sampling(batch_size=8, sub_batch=4, smallest_task=PAIRS)])
def test_a_subset_is_the_same_for_every_training_and_all_that_it_comes_to(tmp_path, monkeypatch, settings):
    def met(seed: int, world: int = 1) -> set[str]:
        ranks = [
            sampler_of(tmp_path, monkeypatch, settings, seed=seed, subset=(16, 7), rank=rank, world=world)
            for rank in range(world)
        ]
        assert len(ranks[0]) == 16
        return {qid for rank in ranks for step in range(9) for qid in rank.pairs(step).query_ids}

    assert met(0) == met(1) == met(1, world=2) and len(met(0)) <= 16
    assert met(0) < {f"9:{number}" for number in range(PAIRS)}
    assert len(sampler_of(tmp_path, monkeypatch, subset=(10**6, 7))) == PAIRS


def test_small_tasks_are_filled_up_by_whole_repetitions(tmp_path, monkeypatch):
    sampler = sampler_of(tmp_path, monkeypatch, Sampling(batch_size=8, smallest_task=PAIRS))
    count = Counter(sampler.queries.row(row)["qid"] for row in sampler.epoch)
    assert count == {f"9:{number}": 3 for number in range(PAIRS)}  # each of the three tasks has a third of them
