"""What is known of a backbone before anything is loaded or downloaded: where its files lie, and its shape."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from stages.contract.context import InputError
from stages.model.families import FAMILIES

LONGEST_HEAD = 10**8  # of the format


def backbone_shape(backbone: Any) -> tuple[str, int]:
    """(model type, decoder layers) as far as they are known without a download; ("", 0) where they aren't.

    Raises InputError where a checkpoint is here and does not tell.
    """
    if backbone.source == "tiny":
        return "qwen2_vl", backbone.tiny.layers
    place = weights_of(backbone)
    if place is None:
        name = backbone.model.lower()
        return next((one.model_type for one in FAMILIES.values() if one.hub_name and one.hub_name in name), ""), 0
    try:
        content = json.loads((place / "config.json").read_text(encoding="utf-8"))
        layers = content.get("text_config", {}).get("num_hidden_layers") or content.get("num_hidden_layers")
        return str(content["model_type"]), int(layers)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(
            f"{place}/config.json does not say the model's type and layers; backbone.model must be a Qwen-VL"
            " checkpoint"
        ) from error


def backbone_width(backbone: Any) -> int:
    """Values of a state, known without a download; 0 where they aren't."""
    if backbone.source == "tiny":
        return int(backbone.tiny.hidden)
    place = weights_of(backbone)
    if place is None:
        return 0
    content = json.loads((place / "config.json").read_text(encoding="utf-8"))
    return int((content.get("text_config") or content).get("hidden_size") or content.get("hidden_size") or 0)


def weights_of(backbone: Any) -> Path | None:
    """Where the files of a backbone from outside lie, if they are here: its directory, or the hub's cache."""
    if backbone.source == "local":
        return Path(backbone.model).expanduser()
    if backbone.source != "hub":
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(backbone.model, "config.json", revision=backbone.revision)
    return Path(found).parent if isinstance(found, str) else None


def check_weights(directory: Path) -> None:
    """Raises InputError where a file of weights in `directory` is not whole, which its head and its size tell."""
    for path in sorted(directory.glob("*.safetensors")):
        if not is_whole(path):
            raise InputError(
                f"{path} is no file of weights in safetensors' format, or not the whole of it; copy it anew from the"
                " checkpoint"
            )


def is_whole(path: Path) -> bool:
    """Whether a file holds weights and ends where its head says; these are not read."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():  # a pipe would wait for a writer
        return False
    try:
        with safe_open(path, "np") as weights:
            return bool(weights.keys())
    except (OSError, SafetensorError):
        return False


def file_shapes(path: Path) -> list[tuple[str, list[int]]]:
    """Names and shapes of a safetensors file on this machine; none of what is no such file."""
    return read_shapes(lambda: path.open("rb")) if path.is_file() else []  # a pipe would wait for a writer


def read_shapes(open_file: Callable[[], BinaryIO]) -> list[tuple[str, list[int]]]:
    """Names and shapes from the head of a safetensors file, which is JSON after its length; none of another file."""
    try:
        with open_file() as file:
            length = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(min(length, LONGEST_HEAD)))
        return [(name, entry["shape"]) for name, entry in head.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
