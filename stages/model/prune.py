"""Layer pruning: load the first k decoder layers of a checkpoint as the stock class with `num_hidden_layers = k`.

The deep layers are never built, so a 7B teacher costs a student no memory. The final norm, the token embeddings and
the vision tower stay; the language-model head is not loaded. The output equals `norm(hidden_states[k])` of the full
model exactly (PUMA keeps a plain prefix: no layer search, no importance score; paper.md §1.1).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from stages.model.families import family_of


def pruned_config(directory: Path, layers: int | None) -> PreTrainedConfig:
    """The configuration of a checkpoint cut to `layers` decoder layers (None keeps all).

    Raises:
        ValueError: `layers` is outside what the checkpoint can give; the message names the range.
    """
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    family = family_of(config.model_type)
    text = config.text_config
    if layers is None or layers == text.num_hidden_layers:
        return config
    if not family.minimum_layers <= layers <= text.num_hidden_layers:
        raise ValueError(
            f"student.layers is {layers}, but {config.model_type} with {text.num_hidden_layers} layers "
            f"can be cut to {family.minimum_layers}..{text.num_hidden_layers}"
        )
    text.num_hidden_layers = layers
    # Qwen2-VL lists a type for each layer, and saving fails when the list is longer than the stack.
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config


@contextmanager
def first_layers(backbone: PreTrainedModel, layers: int) -> Iterator[PreTrainedModel]:
    """The loaded backbone with its first `layers` layers only, for the block; it computes what a cut checkpoint does.

    For measuring every depth of one model without loading it as often.
    """
    text: Any = backbone.language_model  # torch declares a submodule as a tensor or a module
    whole, depth = text.layers, text.config.num_hidden_layers
    text.layers, text.config.num_hidden_layers = whole[:layers], layers
    try:
        yield backbone
    finally:
        text.layers, text.config.num_hidden_layers = whole, depth


def load_backbone(directory: Path, layers: int | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The stock base model of a checkpoint directory, cut to `layers`; safetensors only, no remote code."""
    config = pruned_config(directory, layers)
    model = family_of(config.model_type).base()
    return model.from_pretrained(
        directory, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
