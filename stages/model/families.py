"""Where the Qwen-VL families differ, as data: one entry for each, looked up by the checkpoint's `model_type`.

All three read `hidden_states` and images through the same stock forward; what differs is the class names and how deep
a student must be. Qwen3-VL adds vision features after its first three decoder layers (DeepStack), so fewer layers
would run and silently lose them.
"""

from dataclasses import dataclass
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


def family_of(model_type: str) -> Family:
    """The family of a checkpoint's `model_type`.

    Raises:
        ValueError: it is not supported; the message names those that are.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"model type {model_type!r} is not supported; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
