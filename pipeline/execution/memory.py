"""The memory that models take in each stage, as far as their sizes are known before anything is loaded.

    embedding   weights in `cluster.precision`, as often as there are actors
    training    weights, and of what is trained gradients and the optimizer's numbers, for each worker its ZeRO share

It is the least that a stage holds: rows, activations and adapters come on top. Where the number of parameters is not
known (no files here, and no hub in reach; a student whose depth is still to be found) nothing is told.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.store import Artifact
from pipeline.config.checkpoint import file_shapes, read_shapes, weights_of
from pipeline.planning.dag import trains_backbone
from stages.contract.context import InputError

if TYPE_CHECKING:
    from pipeline.config.sections import Config

TRAINING, EMBEDDING = ("backbone", "distill", "train"), ("features", "index", "evaluate")
BYTES = {"fp32": 4, "bf16": 2}
NOT_LOADED = ("lm_head.", "mtp.")
DECODER, VISION = re.compile(r"(?:^|\.)layers\.(\d+)\."), re.compile(r"(?:^|\.)vis(?:ual|ion)")

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters of a checkpoint, without its head: of each decoder layer, what sees, and all others."""

    layers: Mapping[int, int]
    vision: int
    rest: int

    @classmethod
    def of(cls, shapes: Shapes) -> "Sizes":
        """By the names and shapes of its tensors."""
        layers: dict[int, int] = {}
        vision = rest = 0
        for name, shape in shapes.items():
            if name.startswith(NOT_LOADED):
                continue
            if VISION.search(name):
                vision += prod(shape)
            elif found := DECODER.search(name):
                layers[int(found[1])] = layers.get(int(found[1]), 0) + prod(shape)
            else:
                rest += prod(shape)
        return cls(layers, vision, rest)

    def kept(self, layers: Any = "full") -> int:
        """With the decoder layers that `student.layers` names; 0 where that is not known yet."""
        if layers == "auto":
            return 0
        if isinstance(layers, int):
            layers = range(1, layers + 1)
        numbers = [number - 1 for number in layers] if layers != "full" else self.layers
        return self.vision + self.rest + sum(self.layers.get(number, 0) for number in numbers)


@dataclass(frozen=True)
class Held:
    """What the processes of a stage hold: how many they are, the parameters of each, and bytes with all of them."""

    stage: str
    processes: int
    parameters: int
    bytes: int
    trained: bool = False


@dataclass(frozen=True)
class Room:
    """Bytes at each place that has processes, a machine or a GPU, and what one place and all together are called."""

    places: Sequence[int]
    one: str
    all: str


def check_room(config: "Config", held: Sequence[Held], room: Room) -> None:
    """Raises InputError, in one line with the numbers, where a stage's models don't fit.

    One has to fit somewhere, and all of them together; on GPUs those that share one.
    """
    share = config.cluster.gpus_per_worker
    for one in held if room.places else ():
        alone = min(one.processes, max(1, int(1 / share))) if share else 1
        together = () if share else ((one.processes, sum(room.places), room.all),)
        for count, there, where in ((alone, max(room.places), room.one), *together):
            if count * one.bytes > there:
                model = config.backbone.model or "the backbone"
                more = ", with gradients and optimizer," if one.trained else ""
                raise InputError(
                    f"{one.stage}: {count} × {one.parameters / 1e9:.2f} billion parameters of {model} in"
                    f" {config.cluster.chosen_precision()}{more} are {count * one.bytes / 1e9:.1f} GB, {where} has"
                    f" {there / 1e9:.1f} GB; choose fewer cluster.actors or workers, a smaller backbone.model, or"
                    " machines with more"
                )


def held_by(config: "Config", running: Collection[str], sizes: Sizes) -> Iterator[Held]:
    """What those of the stages hold of which it is known."""
    width = BYTES[config.cluster.chosen_precision()]
    student, teacher = sizes.kept(config.student.layers), sizes.kept()
    embedded = {"features": 0 if config.features.teacher else teacher, "index": student}
    embedded["evaluate"] = teacher if config.evaluate.teacher else student
    trained: dict[str, tuple[Any, int]] = {
        "distill": (config.distill, student),
        "train": (config.train, student),
        "backbone": (config.backbone.tune, teacher if trains_backbone(config) else 0),
    }
    for stage in (*TRAINING, *EMBEDDING):
        if stage in running and embedded.get(stage):
            yield Held(stage, config.cluster.actors, embedded[stage], embedded[stage] * width)
        if stage in running and stage in trained and trained[stage][1] and trained[stage][0].steps:
            section, parameters = trained[stage]
            changed = 0 if section.lora.rank else parameters - sizes.vision
            taken = training_bytes(config, parameters, changed, 4 if section.muon_rate else 8)
            beside = live_teacher(config, sizes) if stage == "distill" else 0
            yield Held(stage, config.cluster.workers, parameters + beside, taken + beside * width, trained=True)


def live_teacher(config: "Config", sizes: Sizes) -> int:
    """Parameters of the teacher that each process of distillation runs; 0 without one, or of unknown depth."""
    if config.distill.teacher == "cached" or not config.distill.feature_weight:
        return 0
    layer = config.features.layer
    return sizes.kept("full" if layer == -1 else layer if isinstance(layer, int) and layer > 0 else "auto")


def training_bytes(config: "Config", parameters: int, trained: int, moments: int) -> int:
    """Bytes of one rank: weights, gradients from ZeRO 2 on and weights from ZeRO 3 on only its share of them.

    In bf16 the optimizer has the trained weights in full precision besides, and DeepSpeed shares it at every stage;
    `moments` are its other bytes for each.
    """
    cluster = config.cluster
    width = BYTES[cluster.chosen_precision()]
    half = width < 4
    stage = max(cluster.zero_stage, half)
    parts = [(moments + 4 * half) * trained, width * trained, width * parameters]
    return sum(part // (cluster.workers if stage > least else 1) for least, part in enumerate(parts))


def sizes_of(backbone: Any, artifact: Artifact | None = None, ask_hub: bool = False) -> Sizes | None:
    """Of a backbone from outside: by its artifact, its files on this machine, or the hub; None where nothing tells."""
    found = made_shapes(artifact) if artifact else {}
    found = found or stored_shapes(weights_of(backbone))
    if not found and ask_hub and backbone.source == "hub":
        found = hub_shapes(backbone)
    return Sizes.of(found) if found else None


def made_shapes(artifact: Artifact) -> Shapes:
    """Of the weights that the artifact of a backbone holds; empty where it points to some."""
    paths = [path for path in artifact.files("model") if path.endswith(".safetensors")]
    opened = [partial(artifact.filesystem.open_input_file, path) for path in paths]
    return {name: shape for one in opened for name, shape in read_shapes(one)}


def stored_shapes(directory: Path | None) -> Shapes:
    """Of the weights in a directory."""
    paths = sorted(directory.glob("*.safetensors")) if directory else []
    return {name: shape for path in paths for name, shape in file_shapes(path)}


def hub_shapes(backbone: Any) -> Shapes:
    """As the hub tells them without the files; empty where it does not answer."""
    from huggingface_hub import get_safetensors_metadata

    try:
        files = get_safetensors_metadata(backbone.model, revision=backbone.revision, timeout=3).files_metadata
    except Exception:  # whatever a hub or the way to it brings up: the stage itself says what is wrong there
        return {}
    return {name: tensor.shape for file in files.values() for name, tensor in file.tensors.items()}
