"""LoRA by `peft`: small trained matrices beside the frozen linear layers of the decoder, merged for export.

As published (paper.md §1.3): on all linear layers of the kept decoder layers; the vision tower, the token embeddings
and the norms stay frozen. The adapters sit inside the backbone, so the forward pass stays the stock one. A merged
student has the stock layout and no trace of them.
"""

from collections.abc import Mapping
from typing import Any

import torch

from stages.contract.params import Lora
from stages.model.encoder import Encoder

TARGETS = (
    r"layers\.\d+\.(self_attn\.(q|k|v|o)_proj|linear_attn\.(in_proj_(qkv|z|b|a)|out_proj)|mlp\.(gate|up|down)_proj)"
)
BASE, DOWN, UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."


def add_adapters(encoder: Encoder, lora: Lora) -> None:
    """Puts adapters, which start as zero, into the decoder and freezes its rest; call it after `freeze_vision`."""
    from peft import LoraConfig, inject_adapter_in_model

    alpha: Any = lora.scale * lora.rank  # peft says int and divides
    settings = LoraConfig(
        r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=TARGETS, bias="none"
    )
    inject_adapter_in_model(settings, encoder.backbone.language_model)


def merged(weights: Mapping[str, torch.Tensor], lora: Lora) -> dict[str, torch.Tensor]:
    """A state dict, where it has adapters, as the stock one: W + scale · B A, summed in fp32 and stored as W was.

    It works on the state dict, because that is what ZeRO-3 gives whole, and `peft` merges modules only.
    """
    stock = {}
    for name, weight in weights.items():
        if DOWN in name or UP in name:
            continue
        place = name.replace(BASE, ".")
        if place != name and place.endswith(".weight"):
            down, up = (weights[name.replace(BASE, part)].float() for part in (DOWN, UP))
            weight = (weight.float() + lora.scale * (up @ down)).to(weight.dtype)
        stock[place] = weight
    return stock
