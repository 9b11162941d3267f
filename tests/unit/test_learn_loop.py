"""The loop itself, with DeepSpeed and without Ray: ranks, ZeRO stages, resuming, frozen vision, cached teacher.

Two starts of processes serve all tests, because DeepSpeed keeps one process group for a process's life. Tolerances:
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

pytestmark = pytest.mark.slow

MUON = {"muon_rate": 0.02, "steps": 5}
TURNED = {"feature_weight": 1.0, "turn": True, "steps": 4}
NARROW = {**TURNED, "teacher_width": 16}
"""A teacher of whose every direction the few rows tell: the others of a wider one are turned as rounding has it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    write_checkpoint(directory / "model", "qwen2_vl", layers=2)
    write_ingest(directory / "store")
    return directory


def run(world: Path, ranks: int, jobs: dict) -> dict:
    """Trains in `ranks` processes as `tests/training_world.py` says; returns what rank 0 wrote."""
    result = world / f"{ranks}.json"
    in_ranks(ranks, "tests.training_world", {"world": str(world), "result": str(result), "jobs": jobs})
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def one_rank(world) -> dict:
    killed, noisy = {"save": str(world / "killed"), "save_at": 3}, {"save": str(world / "noisy"), "save_at": 2}
    stopped = {"save": str(world / "stopped"), "save_at": 3}
    chunks = {"chunk": 3, "dropout": 0.2, "zero_stage": 2, "steps": 4}
    good, spoilt = {"save": str(world / "good"), "save_at": 1}, {"save": str(world / "spoilt"), "save_at": 2}
    cut = {"save": str(world / "cut"), "save_at": 2}
    return run(world, 1, {
        "through": {},
        "interrupted": {**killed, "stop": True},
        "resumed": {"resume": killed["save"]},
        "through in chunks": {**noisy, **chunks},
        "resumed in chunks": {"resume": noisy["save"], **chunks},
        "distilled": {"feature_weight": 1.0, "steps": 12},
        "turned": TURNED,
        "interrupted, turned": {**TURNED, **cut, "stop": True},
        "resumed, turned": {**TURNED, "resume": cut["save"]},
        "narrow": NARROW,
        "muon": MUON,
        "interrupted with muon": {**MUON, **stopped, "stop": True},
        "resumed with muon": {**MUON, "resume": stopped["save"]},
        "too fast": {**good, "learning_rate": 1e30},
        "spoilt": {**spoilt, "spoil": (2, 0)},
    })  # fmt: skip


@pytest.fixture(scope="module")
def two_ranks(world) -> dict:
    muon = {f"muon, zero {stage}": {**MUON, "zero_stage": stage, "chunk": 3 * (stage % 2)} for stage in range(4)}
    spoilt = {"one rank spoilt": {"spoil": (2, 1)}, "zero 3, one rank spoilt": {"spoil": (6, 1), "zero_stage": 3}}
    zero = {"zero 1": {}, "zero 2, chunks": {"zero_stage": 2, "chunk": 3}}
    return run(world, 2, {**zero, "narrow": NARROW, **muon, **spoilt})


def apart(one: dict, other: dict) -> float:
    return np.abs(np.array(one["weights"]) - np.array(other["weights"])).max()


def test_training_lowers_the_loss(one_rank):
    assert one_rank["through"]["losses"][-1] < one_rank["through"]["losses"][0]


@pytest.mark.parametrize("name", ["zero 1", "zero 2, chunks"])
def test_two_ranks_make_the_update_of_one(one_rank, two_ranks, name):
    assert two_ranks[name]["losses"] == pytest.approx(one_rank["through"]["losses"], rel=2e-5)
    assert apart(two_ranks[name], one_rank["through"]) < 2e-5


@pytest.mark.parametrize(("name", "step"), [("", 3), (" in chunks", 2)])  # in chunks: GradCache, with dropout
def test_a_resumed_run_continues_the_uninterrupted_one(one_rank, name, step):
    through, resumed = one_rank[f"through{name}"], one_rank[f"resumed{name}"]
    assert resumed["losses"] == pytest.approx(through["losses"][step:], rel=1e-6)
    assert apart(resumed, through) < 1e-6


@pytest.mark.parametrize("stage", range(4))
def test_two_ranks_make_muon_s_update_of_one_at_every_zero_stage(one_rank, two_ranks, stage):
    """Newton-Schulz enlarges the rounding in a gradient's small singular values: 1e-5 after five steps as measured."""
    two = two_ranks[f"muon, zero {stage}"]
    assert two["losses"] == pytest.approx(one_rank["muon"]["losses"], rel=2e-5)
    assert apart(two, one_rank["muon"]) < 1e-4


def test_a_resumed_run_has_muon_s_momentum(one_rank):
    through, resumed = one_rank["muon"], one_rank["resumed with muon"]
    assert resumed["losses"] == pytest.approx(through["losses"][3:], rel=1e-6)
    assert apart(resumed, through) < 1e-6


def test_a_frozen_vision_tower_stays_and_the_rest_moves(one_rank):
    assert one_rank["through"]["vision_change"] == 0
    assert one_rank["through"]["decoder_change"] > 0


def test_the_cached_teacher_pulls_the_student(one_rank):
    features = one_rank["distilled"]["features"]
    assert features[-1] < 0.9 * features[0]


def test_a_turned_teacher_begins_nearer_and_a_resumed_run_turns_it_alike(one_rank):
    through, resumed, plain = (one_rank[name] for name in ("turned", "resumed, turned", "distilled"))
    assert through["features"][0] < plain["features"][0] - 0.02 and plain["rotation"] is None
    assert np.abs(np.array(resumed["rotation"]) - np.array(through["rotation"])).max() < 1e-6
    assert resumed["losses"] == pytest.approx(through["losses"][2:], rel=1e-6)
    assert apart(resumed, through) < 1e-6


def test_two_ranks_turn_the_teacher_as_one_does_and_learn_the_same_from_it(one_rank, two_ranks):
    one, two = one_rank["narrow"], two_ranks["narrow"]
    assert np.abs(np.array(two["rotation"]) - np.array(one["rotation"])).max() < 1e-5
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-5) and apart(two, one) < 2e-5


def test_a_training_whose_loss_is_not_finite_stops_and_leaves_the_checkpoint_before(one_rank, world):
    assert one_rank["too fast"]["stopped"] == "step 2 of 6: the loss is not finite"
    assert (world / "good").exists() and len(one_rank["too fast"]["losses"]) == 1


def test_weights_that_are_not_finite_are_not_saved(one_rank, world):
    assert one_rank["spoilt"]["stopped"] == "step 2 of 6: weights are not finite"
    assert not (world / "spoilt").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "step 3 of 6: the loss is not finite"), ("zero 3, ", "step 6 of 6: weights are not finite")],
)
def test_all_ranks_stop_where_one_has_the_wrong_numbers(two_ranks, name, words):
    assert two_ranks[f"{name}one rank spoilt"]["stopped"] == words
