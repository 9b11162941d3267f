"""What a query's hard negatives are: those of the data, then the mined ones."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from stages.data.schemas import NEGATIVES
from stages.learn.sampling import PairSampler
from stages.mine import Mined
from tests.training_world import write_ingest


def test_mined_negatives_follow_those_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = {"qid": "9:1", "negatives": ["9:5", "9:7"], "scores": [0.5, 0.4]}
    pq.write_table(pa.Table.from_pylist([row], NEGATIVES), tmp_path / "mined.parquet")
    mined = Mined("train", "k", (str(tmp_path / "mined.parquet"),), LocalFileSystem())
    ingest = write_ingest(Path(tmp_path, "store"))
    arguments = {"batch": 8, "world": 1, "rank": 0, "seed": 0, "vary_instructions": False}
    sampler = PairSampler(ingest, **arguments, mined=mined)
    assert sampler.negatives({"qid": "9:1", "negatives": ["9:7", "9:2"]}) == ["9:7", "9:2", "9:5"]
    assert sampler.negatives({"qid": "9:2", "negatives": ["9:4"]}) == ["9:4"]
    assert PairSampler(ingest, **arguments).negatives({"qid": "9:1", "negatives": []}) == []
