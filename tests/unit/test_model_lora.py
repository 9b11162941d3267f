"""LoRA: what is trained, and that the merged export is the unmerged model."""

import json

import numpy as np
import pytest
import torch

from stages.contract.params import Lora
from stages.distributed.training import save_weights
from stages.export.checkpoint import export_student
from stages.export.parity import stock_vectors
from stages.learn.settings import FineTuning
from stages.model.encoder import Encoder
from stages.model.families import FAMILIES
from stages.model.lora import add_adapters, merged
from stages.model.prune import pruned_config
from tests.tiny_models import depths, ragged_rows, write_checkpoint

LORA = Lora(rank=4, alpha=8, dropout=0.1)


def adapted(checkpoint) -> Encoder:
    """A student of fewer layers, with adapters that are zero."""
    encoder = Encoder.load(checkpoint, layers=depths(pruned_config(checkpoint, None).model_type)[1])
    encoder.freeze_vision()
    torch.manual_seed(0)
    add_adapters(encoder, LORA)
    return encoder


def move(encoder: Encoder) -> None:
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_merged_export_equals_the_unmerged_model(family, tmp_path):
    source = write_checkpoint(tmp_path / "source", family)
    encoder, rows = adapted(source), ragged_rows()
    untouched = Encoder.load(source, layers=encoder.layers).encode(rows)
    assert np.array_equal(encoder.eval().encode(rows), untouched)  # adapters start as zero
    move(encoder)
    unmerged = encoder.encode(rows)
    assert np.abs(unmerged - untouched).max() > 1e-2
    save_weights(encoder, encoder.state_dict(), FineTuning(lora=LORA), tmp_path / "weights")
    export_student(tmp_path / "weights", source, tmp_path / "model", {}, dims=(16, 32))
    # fp32 sums in another order; a lost or wrongly scaled adapter measures above 1e-2.
    assert np.abs(Encoder.load(tmp_path / "model").encode(rows) - unmerged).max() < 2e-6
    assert np.abs(stock_vectors(tmp_path / "model", encoder.collator, rows) - unmerged).max() < 2e-5
    assert json.loads((tmp_path / "model" / "config.json").read_text())["matryoshka_dimensions"] == [16, 32]


@pytest.mark.parametrize(("family", "linear"), [("qwen2_vl", 3 * 7), ("qwen3_5", 3 * (5 + 3) + 4 + 3)])
def test_adapters_sit_on_all_linear_layers_of_the_decoder_and_nothing_else_is_trained(tmp_path, family, linear):
    encoder = adapted(write_checkpoint(tmp_path, family))
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert len(trained) == linear * 2  # A and B
    parts = encoder.backbone.language_model.layers.modules()
    assert sum(isinstance(part, torch.nn.Linear) for part in parts) == linear * 3  # and the frozen one beside them
    assert all(".lora_" in name and ".language_model.layers." in name for name in trained)
    assert not any(parameter.requires_grad for parameter in encoder.backbone.visual.parameters())


def test_merging_is_what_peft_does(tmp_path):
    encoder = adapted(write_checkpoint(tmp_path, "qwen2_vl"))
    move(encoder)
    stock = merged(encoder.backbone.state_dict(), LORA)
    for name, module in encoder.backbone.named_modules():
        if hasattr(module, "lora_A"):
            module.merge()
            assert torch.allclose(stock[f"{name}.weight"], module.base_layer.weight, atol=1e-6)
    assert not any("lora" in name or "base_layer" in name for name in stock)
