"""Where the Qwen-VL families differ, as data: one entry for each, looked up by the checkpoint's `model_type`.

All three read `hidden_states` and images through the same stock forward; what differs is the class names and how deep
a student must be. Qwen3-VL adds vision features after its first three decoder layers (DeepStack), so fewer layers
would run and silently lose them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """One family of checkpoints."""

    model_type: str
    base_class: str
    generation_class: str
    processor_class: str
    minimum_layers: int = 1

    def base(self) -> "type[PreTrainedModel]":
        """The stock class without a language-model head."""
        import transformers

        return getattr(transformers, self.base_class)

    def generation(self) -> "type[PreTrainedModel]":
        """The stock class with a head: the layout that every loader reads."""
        import transformers

        return getattr(transformers, self.generation_class)


FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", "Qwen2VLModel", "Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
        Family("qwen2_5_vl", "Qwen2_5_VLModel", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor"),
        Family("qwen3_vl", "Qwen3VLModel", "Qwen3VLForConditionalGeneration", "Qwen3VLProcessor", minimum_layers=3),
    )
}


def refusal(layers: Sequence[int], depth: int, family: Family | None) -> str:
    """Why a student can't keep these layers, in words; empty where it can.

    Args:
        layers: numbers of decoder layers, counted from 1.
        depth: how many the backbone has; 0 is not known yet.
        family: the backbone's; None is not known yet.
    """
    if not layers or layers[0] < 1 or any(later <= earlier for earlier, later in pairwise(layers)):
        return "give their numbers from 1 on, each larger than the one before"
    if depth and layers[-1] > depth:
        return f"the backbone has {depth} layers"
    least = family.minimum_layers if family else 1
    if family and least > 1 and list(layers[:least]) != list(range(1, least + 1)):
        return f"{family.model_type} adds what it sees to its first {least} layers, so they must stay"
    return ""


def family_of(model_type: str) -> Family:
    """The family of a checkpoint's `model_type`.

    Raises:
        ValueError: it is not supported; the message names those that are.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"model type {model_type!r} is not supported; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
