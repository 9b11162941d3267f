"""A step's samples, and what is known about them: hard negatives, teacher states."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow.fs import LocalFileSystem

from stages.data.schemas import NEGATIVES
from stages.learn.loop import cached_teacher, live_teacher
from stages.learn.sampling import PairSampler
from stages.mine import Mined
from stages.model.encoder import Encoder
from tests.tiny_models import write_checkpoint
from tests.training_world import write_ingest

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


@pytest.mark.parametrize(("layer", "normed"), [(4, True), (3, True), (3, False)])
def test_a_live_teacher_says_what_the_cached_one_does(tmp_path, monkeypatch, layer, normed):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = write_checkpoint(tmp_path / "model", "qwen2_vl")
    pairs = PairSampler(write_ingest(Path(tmp_path, "store")), **ARGUMENTS).pairs(0)
    whole = Encoder.load(model)
    tables = []
    for ids, rows in ((pairs.query_ids, pairs.query_rows), (pairs.candidate_ids, pairs.candidate_rows)):
        with torch.inference_mode():  # one row at a time and in fp16, as the features are stored
            states = [whole.states_by_layer(whole.collator([row]), normed)[layer - 1, 0].numpy() for row in rows]
        tables.append(dict(zip(ids, [state.astype(np.float16) for state in states], strict=True)))
    live = live_teacher(Encoder.load(model, layer), normed)(pairs)
    assert not live.requires_grad and not live.is_inference()
    torch.testing.assert_close(live, cached_teacher(*tables)(pairs), rtol=2e-3, atol=2e-3)
