"""Which optimizer trains which parameter, and which weights a checkpoint has to hold."""

import pytest
import torch

from stages.learn.engine import load_trained, make_optimizer, parameter_groups
from stages.learn.loop import learning_rates
from stages.learn.settings import FineTuning, Optimisation
from stages.model.encoder import Encoder
from tests.tiny_models import write_checkpoint

WITH_MUON = FineTuning(muon_rate=0.02, clip=0, first_layer_rate=0.5)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Encoder:
    return Encoder.load(write_checkpoint(tmp_path_factory.mktemp("model"), "qwen2_vl", layers=2))


def groups_by_name(encoder: Encoder, settings: Optimisation) -> dict[str, dict]:
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    return {names[parameter]: group for group in parameter_groups(encoder, settings) for parameter in group["params"]}


def test_muon_trains_the_matrices_of_layers_and_adamw_the_rest(encoder):
    groups = groups_by_name(encoder, WITH_MUON)
    assert groups.keys() == {name for name, _ in encoder.named_parameters()}
    layer = "backbone.language_model.layers.{}.mlp.up_proj.weight"
    assert groups[layer.format(1)]["use_muon"]
    assert groups[layer.format(1)]["lr"] == 0.02
    assert groups[layer.format(0)]["lr"] == 0.01
    assert groups["backbone.visual.blocks.0.attn.qkv.weight"]["use_muon"]
    for name in ("language_model.embed_tokens.weight", "visual.patch_embed.proj.weight", "language_model.norm.weight"):
        assert not groups[f"backbone.{name}"]["use_muon"]
        assert groups[f"backbone.{name}"]["lr"] == 1e-3
    assert groups["backbone.language_model.norm.weight"]["weight_decay"] == 0


def test_without_a_rate_adamw_trains_all(encoder):
    settings = Optimisation()
    assert not any(group["use_muon"] for group in groups_by_name(encoder, settings).values())
    assert learning_rates(make_optimizer(encoder, settings)) == {"learning_rate": 1e-3}


def test_both_rates_are_reported(encoder):
    assert learning_rates(make_optimizer(encoder, WITH_MUON)) == {"learning_rate": 1e-3, "muon_rate": 0.02}


def test_muon_s_steps_are_not_clipped():
    with pytest.raises(ValueError, match="set clip=0"):
        Optimisation(muon_rate=0.02)


def test_a_checkpoint_may_lack_frozen_weights_and_no_other():
    frozen, trained = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    module, kept = torch.nn.Sequential(frozen.requires_grad_(False), trained), frozen.weight.clone()
    load_trained({"1.weight": torch.ones(2, 2), "1.bias": torch.ones(2)}, module)
    assert trained.weight.min() == trained.bias.max() == 1 and torch.equal(frozen.weight, kept)
    with pytest.raises(ValueError, match=r"another model: 1\.bias is in one of them"):
        load_trained({"1.weight": torch.ones(2, 2)}, module)
    with pytest.raises(ValueError, match=r"another model: 2\.weight"):
        load_trained({"1.weight": torch.ones(2, 2), "1.bias": torch.ones(2), "2.weight": torch.ones(1)}, module)
