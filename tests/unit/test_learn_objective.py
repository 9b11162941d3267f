"""All parts of the method in one training: ranks, GradCache, resuming; and the paper's recipes on a tiny model.

Two starts of processes serve all tests; see `tests/objective_world.py` and, for tolerances, `test_learn_loop`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.objective_world import write_negatives
from tests.support import in_ranks
from tests.tiny_models import write_checkpoint
from tests.training_world import write_ingest

pytestmark = pytest.mark.slow

RECIPES = [(f"puma_qwen2vl_{size}", section) for size in ("7b", "2b") for section in ("distill", "train")]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict:
    directory = tmp_path_factory.mktemp("objective")
    write_checkpoint(directory / "model", "qwen2_vl", layers=2)
    write_checkpoint(directory / "deep", "qwen2_vl", layers=28)  # as many as Qwen2-VL-2B and 7B have
    write_ingest(directory / "store")
    return {"world": str(directory), "negatives": str(write_negatives(directory))}


def run(world: dict, ranks: int, jobs: dict) -> dict:
    result = Path(world["world"], f"{ranks}.json")
    in_ranks(ranks, "tests.objective_world", {**world, "result": str(result), "jobs": jobs})
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def one_rank(world) -> dict:
    checkpoint = str(Path(world["world"], "checkpoint"))
    jobs = {
        "through": {},
        "alignment": {"alone": True},
        "two temperatures": {"loss": "mac_learnable"},
        "interrupted": {"save": checkpoint, "save_every": 2, "stop_at": 3},
        "resumed": {"resume": checkpoint},
    }
    jobs |= {" ".join(one): {"recipe": one, "stop_at": 1} for one in RECIPES}
    return run(world, 1, jobs)


@pytest.fixture(scope="module")
def two_ranks(world) -> dict:
    checkpoint, third = str(Path(world["world"], "checkpoint of two")), {"zero_stage": 3, "chunk": 3}
    return run(world, 2, {
        "zero 1": {},
        "zero 2, chunks": {"zero_stage": 2, "chunk": 3},
        "zero 3": {"zero_stage": 3, "unset_is_nan": True},  # there is such memory behind a weight's end
        "alignment, chunks": {"alone": True, "chunk": 3},
        "two temperatures, zero 3, chunks": {**third, "loss": "mac_learnable"},
        "zero 3, chunks": third,
        "interrupted": {**third, "save": checkpoint, "save_every": 2, "stop_at": 3},
        "zero 3, chunks, resumed": {**third, "resume": checkpoint},
    })  # fmt: skip


def apart(one: dict, other: dict) -> float:
    return np.abs(np.array(one["weights"]) - np.array(other["weights"])).max()


@pytest.mark.parametrize("name", ["zero 1", "zero 2, chunks", "zero 3", "zero 3, chunks"])
def test_two_ranks_make_the_update_of_one_with_every_part_of_the_method(one_rank, two_ranks, name):
    assert two_ranks[name]["losses"] == pytest.approx(one_rank["through"]["losses"], rel=2e-5)
    assert apart(two_ranks[name], one_rank["through"]) < 2e-5
    assert two_ranks[name]["last"]["tau"] == pytest.approx(one_rank["through"]["last"]["tau"], rel=1e-5)


def test_two_ranks_align_as_one_does(one_rank, two_ranks):
    one, two = one_rank["alignment"], two_ranks["alignment, chunks"]
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-5)
    assert apart(two, one) < 2e-5
    assert one["losses"][-1] < one["losses"][0] and "in_batch_hit@1" not in one["last"]


def test_two_ranks_learn_two_temperatures_as_one_does(one_rank, two_ranks):
    one, two = one_rank["two temperatures"], two_ranks["two temperatures, zero 3, chunks"]
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-5)
    assert apart(two, one) < 2e-5
    learnt = [one["last"][name] for name in ("tau_norm", "tau_hard")]
    assert [two["last"][name] for name in ("tau_norm", "tau_hard")] == pytest.approx(learnt, rel=1e-5)
    assert learnt[0] != 0.07 and learnt[1] != 0.05 and "tau" not in one["last"]


def test_a_resumed_run_has_its_temperature_and_adapters(one_rank):
    through, resumed = one_rank["through"], one_rank["resumed"]
    assert resumed["losses"] == pytest.approx(through["losses"][2:], rel=1e-6)
    assert resumed["last"]["tau"] == pytest.approx(through["last"]["tau"], rel=1e-6) != 0.07
    assert apart(resumed, through) < 1e-6


def test_two_ranks_on_zero_3_resume_as_one_does(two_ranks):
    through, resumed = two_ranks["zero 3, chunks"], two_ranks["zero 3, chunks, resumed"]
    assert resumed["losses"] == pytest.approx(through["losses"][2:], rel=1e-6)
    assert apart(resumed, through) < 1e-6


@pytest.mark.parametrize(("ranks", "name"), [(1, "checkpoint"), (2, "checkpoint of two")])
def test_a_checkpoint_holds_no_frozen_weight(world, request, ranks, name):
    """With adapters all but these and τ is frozen; of each trained number DeepSpeed writes three, beside its own."""
    request.getfixturevalue(("one_rank", "two_ranks")[ranks - 1])
    saved = list(Path(world["world"], name, "step2").iterdir())
    states = [torch.load(path, weights_only=False) for path in saved if path.name.endswith("model_states.pt")]
    assert len(states) == (1 if ranks == 1 else 2)  # ZeRO-3 writes one for each rank
    for state in states:
        assert not state["frozen_param_fragments"] and not state["frozen_param_shapes"]
        assert all("lora" in key or "temperature" in key for key in state["module"]), list(state["module"])
    whole = sum(path.stat().st_size for path in Path(world["world"], "model").glob("*.safetensors"))
    assert sum(path.stat().st_size for path in saved) < whole / 2


def test_adapters_change_the_decoder_s_projections_alone(one_rank):
    changed = one_rank["through"]["changed"]
    assert len(changed) == 2 * 7 and all("_proj.weight" in name for name in changed)


def test_the_parts_of_the_objective_are_logged(one_rank):
    parts = one_rank["through"]["last"]
    assert {"contrastive 16d", "contrastive 32d", "contrastive 64d", "feature relational"} <= set(parts)
    assert parts["masked_share"] > 0


@pytest.mark.parametrize("name", [" ".join(one) for one in RECIPES])
def test_the_paper_s_recipes_train_a_tiny_model_of_their_class(one_rank, name):
    step = one_rank[name]["last"]
    assert np.isfinite(step["loss"]) and step["gradient_norm"] > 0
    assert one_rank[name]["layers"] == 12
    assert ("tau_hard" in step) == name.endswith("train")
    assert ("feature mse" in step) == name.endswith("distill")
