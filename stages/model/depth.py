"""Which layers a student keeps of its backbone: so many, all, those of a list, or as few as the depth curve allows."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import StageError
from stages.model.families import family_of
from stages.model.prune import pruned_config

if TYPE_CHECKING:
    from stages.contract.context import Artifact


def choose_layers(source: Path, student: Any, features: "Artifact") -> tuple[int, int | tuple[int, ...]]:
    """(the backbone's depth, the layers to keep): as configured, or as the depth curve allows.

    A list that is the first k layers is that number.

    `auto` stands in the key as the word that it is: the plan is known before the curve is.

    Args:
        source: the backbone's directory.
        student: a section with `layers` and `max_loss`.
        features: holds the depth curve.

    Raises:
        StageError: the backbone can't be cut to as many layers.
    """
    try:
        config = pruned_config(source, None)
        depth = config.text_config.num_hidden_layers
        if student.layers == "auto":
            curve = features.read_json("depth_curve.json")
            return depth, shallowest(curve, student.max_loss, family_of(config.model_type).depths(depth))
        layers = depth if student.layers == "full" else student.layers
        pruned_config(source, layers)
        if isinstance(layers, tuple) and layers[-1] == len(layers):
            layers = len(layers)
    except ValueError as error:
        raise StageError(str(error)) from error
    return depth, layers


def shallowest(curve: dict[str, Any], max_loss: float, depths: Sequence[int]) -> int:
    """The fewest layers, of those in `depths`, whose hit@5 is at least (1 - max_loss) times that of the full depth.

    The curve tells of cut models that were not trained; training brings back a part of what they lose.
    """
    full = curve["layers"][-1]["hit@5"]
    enough = [entry["layers"] for entry in curve["layers"] if entry["hit@5"] >= (1 - max_loss) * full]
    return min(layers for layers in enough if layers in depths)
