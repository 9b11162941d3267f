"""Where the Qwen-VL families differ, as data: one entry for each, looked up by the checkpoint's `model_type`.

All of them read `hidden_states` and images through the same stock forward; what differs is the class names and which
layers a student can keep. Qwen3-VL adds vision features after its first three decoder layers (DeepStack), so fewer
layers would run and silently lose them. Qwen3.5's layers come in groups of four, three of linear attention and one of
full: some loaders count on it, so a student keeps the order of their kinds.
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
    must_stay: int = 0
    """Its first so many layers, without which a student would not see."""
    group: int = 1
    """Layers after which their kinds repeat; a student keeps whole groups."""
    interleaved: bool = False
    """Whether the rotary pairs for time, height and width take turns; transformers knows it, vLLM reads it."""
    hub_name: str = ""
    """Part of its models' names on the hub, for what must be refused before a download."""

    @property
    def least(self) -> int:
        """The fewest layers of a student."""
        return max(self.must_stay, self.group)

    def depths(self, depth: int) -> Sequence[int]:
        """How many of a backbone's `depth` layers a student can keep from the first one on."""
        return [*range(self.least, depth, self.group), depth]

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
        Family(
            "qwen3_vl",
            "Qwen3VLModel",
            "Qwen3VLForConditionalGeneration",
            "Qwen3VLProcessor",
            must_stay=3,
            interleaved=True,
            hub_name="qwen3-vl",
        ),
        Family(
            "qwen3_5",
            "Qwen3_5Model",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3VLProcessor",
            group=4,
            interleaved=True,
            hub_name="qwen3.5",
        ),
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
    if family and list(layers[: family.must_stay]) != list(range(1, family.must_stay + 1)):
        return f"{family.model_type} adds what it sees to its first {family.must_stay} layers, so they must stay"
    if family and _breaks_groups(layers, family.group):
        return (
            f"the kinds of {family.model_type}'s layers repeat after {family.group}, so keep whole groups of"
            f" {family.group} in which they come in the same order"
        )
    return ""


def _breaks_groups(layers: Sequence[int], group: int) -> bool:
    """Whether a layer would stand where the pattern has one of another kind, or the last group is not whole."""
    return len(layers) % group > 0 or any((number - 1 - place) % group for place, number in enumerate(layers))


def family_of(model_type: str) -> Family:
    """The family of a checkpoint's `model_type`.

    Raises:
        ValueError: it is not supported; the message names those that are.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"model type {model_type!r} is not supported; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
