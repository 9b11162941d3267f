"""The loop itself, with DeepSpeed and without Ray: ranks, ZeRO stages, resuming, frozen vision, cached teacher.

Each case runs in processes of its own, because DeepSpeed keeps one process group for a process's life. Tolerances:
fp32 sums in another order change a loss by about 1e-7 of it and a step's weights by less; a lost gradient or a
replayed batch changes a loss by more than 1e-2.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support import in_ranks
from tests.tiny_models import write_checkpoint
from tests.training_world import write_ingest


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    write_checkpoint(directory / "model", "qwen2_vl", layers=2)
    write_ingest(directory / "store")
    return directory


def train(world: Path, name: str, *, ranks: int = 1, **case) -> dict:
    """Trains in `ranks` processes as `tests/training_world.py` says; returns what rank 0 wrote."""
    result = world / f"{name}.json"
    case = {"world": str(world), "result": str(result), "steps": 6, "zero_stage": 1, **case}
    in_ranks(ranks, "tests.training_world", case)
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def one_rank(world) -> dict:
    return train(world, "one_rank")


def test_training_lowers_the_loss(one_rank):
    assert one_rank["losses"][-1] < one_rank["losses"][0]


@pytest.mark.parametrize(("zero_stage", "chunk"), [(1, 0), (2, 3)])
def test_two_ranks_make_the_update_of_one(world, one_rank, zero_stage, chunk):
    both = train(world, f"two_ranks_{zero_stage}", ranks=2, zero_stage=zero_stage, chunk=chunk)
    assert both["losses"] == pytest.approx(one_rank["losses"], rel=2e-5)
    assert np.abs(np.array(both["weights"]) - np.array(one_rank["weights"])).max() < 2e-5


def test_a_resumed_run_continues_the_uninterrupted_one(world, one_rank):
    train(world, "interrupted", stop_at=3)
    resumed = train(world, "resumed", resume=True)
    assert resumed["losses"] == pytest.approx(one_rank["losses"][3:], rel=1e-6)
    assert np.abs(np.array(resumed["weights"]) - np.array(one_rank["weights"])).max() < 1e-6


def test_a_run_with_gradcache_and_dropout_resumes_as_if_never_interrupted(world):
    case = {"chunk": 3, "dropout": 0.2, "zero_stage": 2, "steps": 4}
    through = train(world, "through", save_at=2, **case)
    resumed = train(world, "resumed_in_chunks", resume=True, **case)
    assert resumed["losses"] == pytest.approx(through["losses"][2:], rel=1e-6)
    assert np.abs(np.array(resumed["weights"]) - np.array(through["weights"])).max() < 1e-6


def test_a_frozen_vision_tower_stays_and_the_rest_moves(one_rank):
    assert one_rank["vision_change"] == 0
    assert one_rank["decoder_change"] > 0


def test_the_cached_teacher_pulls_the_student(world):
    distilled = train(world, "distilled", feature_weight=1.0, steps=12)
    assert distilled["features"][-1] < 0.8 * distilled["features"][0]
