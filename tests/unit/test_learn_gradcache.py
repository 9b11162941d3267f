"""GradCache against the whole batch: the same update on every ZeRO stage, with two ranks that see different things.

The comparisons run in two processes, once for all tests; see `tests/gradcache_world.py`. Tolerance: 1e-5 of the
largest change of a weight. fp32 sums in another order make about 1e-6; a lost chunk or rank makes more than 1e-1.
"""

import json
from contextlib import nullcontext

import pytest
import torch

from stages.learn.gradcache import RandomState, Sums, backward
from stages.model import inputs
from stages.model.encoder import Encoder
from stages.model.families import FAMILIES
from stages.model.inputs import Batch
from tests.support import in_ranks
from tests.tiny_models import depths, ragged_rows, write_checkpoint

EXACT = 1e-5


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> dict[str, dict[str, float]]:
    directory = tmp_path_factory.mktemp("gradcache")
    result = directory / "result.json"
    model = write_checkpoint(directory / "model", "qwen2_vl", layers=2)
    linear = write_checkpoint(directory / "linear", "qwen3_5", layers=4)
    in_ranks(2, "tests.gradcache_world", {"model": str(model), "linear": str(linear), "result": str(result)})
    return json.loads(result.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_update_is_that_of_the_whole_batch(compared, stage):
    assert compared[f"zero {stage}"]["all"] < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_parameter_of_the_loss_gets_its_gradient_once(compared, stage):
    assert compared[f"zero {stage}"]["temperature"] < EXACT


@pytest.mark.slow
def test_zero_3_gathers_what_linear_attention_takes_from_its_parts(compared):
    """It reads a convolution's weights without calling it, which is what ZeRO-3 gathers for."""
    assert compared["linear attention, zero 3"]["all"] < EXACT


@pytest.mark.slow
def test_without_one_reduction_gradients_are_lost(compared):
    assert compared["naive"]["all"] > 0.1


@pytest.mark.slow
def test_ranks_with_and_without_images_and_with_other_numbers_of_chunks_meet_on_zero_3(compared):
    assert compared["whole, zero 3"]["all"] < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_trained_vision_tower_learns_also_where_one_rank_has_no_image(compared, stage):
    trained = compared[f"trained vision, zero {stage}"]
    assert trained["all"] < EXACT < trained["vision"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_in_bf16_the_update_is_that_of_the_whole_batch_but_for_rounding(compared, stage):
    assert 0 < compared[f"bf16, zero {stage}"]["mean"] < 0.05  # a lost chunk makes more than 0.3


def test_gradients_of_many_chunks_add_up_as_in_fp32():
    rows = torch.rand(300, 16, generator=torch.manual_seed(0)).bfloat16()
    exact = rows.double().sum(0)

    def error(sums: bool) -> float:
        layer = torch.nn.Linear(16, 1, bias=False).bfloat16()
        kept = Sums(layer if sums else torch.nn.Module())
        for row in rows:
            layer(row).backward()
            kept.take()
        kept.give()
        return float(((layer.weight.grad[0].double() - exact) / exact).abs().max())

    assert error(sums=True) < 2**-8 < error(sums=False)  # one rounding; three hundred of them


@pytest.mark.slow
def test_both_passes_draw_the_same_dropout(compared):
    assert compared["dropout matters"]["all"] > 1e-2
    assert compared["dropout"]["all"] < EXACT


def test_a_replayed_random_state_leaves_the_present_one_alone():
    kept = RandomState.now("cpu")
    first = torch.rand(3)
    present = torch.get_rng_state()
    assert RandomState.now("cpu", kept) is not kept
    with kept.replayed():
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), present)
    same = RandomState.now("cpu")
    assert RandomState.now("cpu", same) is same  # without dropout all chunks share one


class Alone:
    """What GradCache asks of an engine, on one rank without DeepSpeed."""

    def __init__(self, module):
        self.module, self.device = module, "cpu"

    def __call__(self, *given):
        return self.module(*given)

    def zero_optimization_stage(self):
        return 0

    def backward(self, loss):
        loss.backward()

    no_sync = staticmethod(nullcontext)

    def allreduce_gradients(self):
        """There are no others."""


def gradients(encoder: Encoder, limit: int, cached: bool) -> dict[str, torch.Tensor]:
    """Of a loss in which each row's state meets every other one's, by parameter."""
    encoder.zero_grad()
    mixed = torch.randn(5, 5, generator=torch.manual_seed(0))

    def loss_of(states_BD):
        unit_BD = torch.nn.functional.normalize(states_BD, dim=-1)
        return (unit_BD @ unit_BD.T * mixed).sum(), {}

    backward(Alone(encoder), encoder, encoder.collator(ragged_rows(), limit), loss_of, cached=cached)
    return {name: one.grad.clone() for name, one in encoder.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_alone_have_the_gradient_of_a_padded_batch(family, tmp_path, monkeypatch):
    """Padding reaches neither states nor gradients, whichever kind of attention carries them on."""
    encoder = Encoder.load(write_checkpoint(tmp_path, family, depths(family)[1]))
    monkeypatch.setattr(inputs, "SPREAD", 99)  # one chunk, and the shortest row is mostly padding
    whole, alone = gradients(encoder, limit=0, cached=False), gradients(encoder, limit=1, cached=True)
    largest = max(change.abs().max() for change in whole.values())
    assert whole.keys() == alone.keys() and len(whole) > 40
    assert max((whole[name] - alone[name]).abs().max() for name in whole) < EXACT * largest


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_kept_vision_outputs_give_the_states_of_live_ones(family, tmp_path):
    encoder = Encoder.load(write_checkpoint(tmp_path, family))
    batch = encoder.collator(ragged_rows())
    with torch.no_grad():
        live = encoder.states(batch)
        vision = [encoder.encode_images(chunk) for chunk in batch.chunks]
        encoder.freeze_vision()
        encoder.backbone.visual = None  # Not asked again.
        assert torch.equal(encoder.states(batch, vision), live)


def test_a_frozen_vision_tower_is_no_module_and_its_weights_stay_at_hand(tmp_path):
    encoder = Encoder.load(write_checkpoint(tmp_path, "qwen2_vl"))
    expected, before = dict(encoder.state_dict()), encoder.encode(ragged_rows())
    encoder.freeze_vision()
    assert not [name for name, _ in encoder.named_parameters() if ".visual." in name]
    assert {**encoder.state_dict(), **encoder.vision_weights()}.keys() == expected.keys()
    assert (encoder.encode(ragged_rows()) == before).all()


def test_chunks_have_at_most_so_many_rows_and_the_vectors_stay(tmp_path):
    encoder = Encoder.load(write_checkpoint(tmp_path, "qwen2_vl"))
    rows = ragged_rows() * 3
    small, whole = encoder.collator(rows, limit=2), encoder.collator(rows)
    assert max(len(chunk) for chunk in small.chunks) == 2 < max(len(chunk) for chunk in whole.chunks)
    with torch.no_grad():
        assert (encoder.states(small) - encoder.states(whole)).abs().max() < 5e-6


def test_fillers_have_images_and_no_place(tmp_path):
    encoder = Encoder.load(write_checkpoint(tmp_path, "qwen2_vl"))
    rows = ragged_rows()
    # One row to a chunk: two of the five are text alone.
    filled, plain = encoder.collator(rows, limit=1, needs_images=True), encoder.collator(rows, limit=1)
    assert all(chunk.pixels_PC is not None for chunk in filled.chunks)
    assert sorted(len(chunk) for chunk in filled.chunks) == [1, 1, 1, 2, 2]
    assert len(filled.place_B) == len(rows)
    longer = Batch((*plain.chunks, encoder.collator.filler()), plain.place_B)
    with torch.no_grad():
        expected = encoder.states(plain)
        assert (encoder.states(filled) - expected).abs().max() < 5e-6
        assert torch.equal(encoder.states(longer), expected)
