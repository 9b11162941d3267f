"""Layer pruning: load the first k decoder layers of a checkpoint as the stock class with `num_hidden_layers = k`.

The deep layers are never built, so a 7B teacher costs a student no memory. The final norm, the token embeddings and
the vision tower stay; the language-model head is not loaded. The output equals `norm(hidden_states[k])` of the full
model exactly (PUMA keeps a plain prefix: no layer search, no importance score; paper.md §1.1).

Any other k layers are a stock checkpoint too, one behind the other. They are loaded with those between them, which are
then dropped; no single pass of the full model gives their output.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from stages.model.families import family_of, refusal

Layers = int | tuple[int, ...] | None
"""Which decoder layers stay: the first so many, those of these numbers, counted from 1, or all."""
KEPT = "kept_layers"
"""In a student's settings file: its numbers of the backbone's layers, where they are not the first ones."""


def pruned_config(directory: Path, layers: Layers) -> PreTrainedConfig:
    """The configuration of a checkpoint cut to `layers` decoder layers (None keeps all).

    Raises:
        ValueError: `layers` is outside what the checkpoint can give; the message names the range.
    """
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    family = family_of(config.model_type)
    text = config.text_config
    if layers is None or layers == text.num_hidden_layers:
        return config
    if isinstance(layers, tuple):
        if why := refusal(layers, text.num_hidden_layers, family):
            raise ValueError(f"student.layers={list(layers)} can't be kept: {why}")
        _shrink(text, layers)
        return config
    if layers not in family.depths(text.num_hidden_layers):
        steps = f" in steps of {family.group}" if family.group > 1 else ""
        raise ValueError(
            f"student.layers is {layers}, but {config.model_type} with {text.num_hidden_layers} layers "
            f"can be cut to {family.least}..{text.num_hidden_layers}{steps}"
        )
    _shrink(text, range(1, layers + 1))
    return config


def _shrink(text: Any, kept: Sequence[int]) -> None:
    """Makes a text configuration that of these layers alone."""
    text.num_hidden_layers = len(kept)
    # Qwen2-VL lists a type for each layer, and saving fails when the list is longer than the stack.
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[number - 1] for number in kept]
    if getattr(text, "max_window_layers", 0) > len(kept):  # vLLM asserts that they are no more than there are layers
        text.max_window_layers = len(kept)


def kept_layers(directory: Path) -> list[int]:
    """The numbers of the backbone's layers that a student has; empty where they are its first ones."""
    return json.loads((directory / "puma.json").read_text(encoding="utf-8")).get(KEPT, [])


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


def load_backbone(directory: Path, layers: Layers = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The stock base model of a checkpoint directory, cut to `layers`; safetensors only, no remote code.

    Raises:
        ValueError: `layers` is outside what the checkpoint can give, or weights are missing, which transformers would
            draw at random.
    """
    config = pruned_config(directory, layers)
    loaded = pruned_config(directory, layers[-1]) if isinstance(layers, tuple) else config
    model: Any = family_of(config.model_type).base()  # its loader does not tell the types of two results
    options = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    backbone, found = model.from_pretrained(directory, config=loaded, dtype=dtype, output_loading_info=True, **options)
    if found["missing_keys"]:
        raise ValueError(f"{directory} lacks the weights {min(found['missing_keys'])}; give the whole checkpoint")
    if isinstance(layers, tuple):
        _drop_others(backbone, layers)
    return backbone


def _drop_others(backbone: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leaves these layers of a loaded backbone, as a checkpoint of them alone would load them."""
    text: Any = backbone.language_model
    text.layers = torch.nn.ModuleList(text.layers[number - 1] for number in kept)
    for place, layer in enumerate(text.layers):
        for part in layer.modules():  # whichever kind of attention it has
            if hasattr(part, "layer_idx"):
                part.layer_idx = place
    for config in {id(one): one for one in (backbone.config.text_config, text.config)}.values():
        _shrink(config, kept)
