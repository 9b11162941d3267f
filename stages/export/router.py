"""One directory for both models of an asymmetric index: sentence-transformers' `Router`.

    modules.json  router_config.json  config_sentence_transformers.json
    query/       the student, as it was exported: what `encode_query` reads
    document/    the teacher, cut to the layer that taught, its mean taken off where students were compared so:
                 what `encode_document` reads

MongoDB/mdbr-leaf-mt-asym is published like that. A Router names its models by paths inside its own directory, so the
weights are copied; that is why nobody writes it unasked, and why it is no part of the student.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from stages.contract.context import InputError, StageError
from stages.export.checkpoint import SENTENCE_TRANSFORMERS_MODULES, export_student, save_backbone
from stages.export.loaders import Sample, run_stock_loaders
from stages.export.parity import MINIMUM_COSINE, samples
from stages.model.encoder import Encoder
from stages.model.prune import load_backbone, pruned_config
from stages.model.taught import Taught

IN_NO_KEY = True  # an export

ROUTER = "sentence_transformers.base.modules.router.Router"
LOADER = "sentence-transformers"
ROUTES = ("query", "document")
MOTION = ("2_Motion", "sentence_transformers.base.modules.dense.Dense")


def write_router(
    directory: Path,
    student: Path,
    teacher: Path,
    layer: int,
    mean: Sequence[float] = (),
    rotation: np.ndarray | None = None,
) -> dict[str, Any]:
    """Writes the directory and compares what sentence-transformers reads from it with what the pipeline embeds.

    Args:
        directory: a new or empty one.
        student: an exported student.
        teacher: the model directory of the teacher.
        layer: the teacher's layer that candidates are read at, counted from 1.
        mean: what is taken off its states.
        rotation: what they are multiplied with then, [D, D].

    Returns:
        The least cosine of each route, or why it was not compared.

    Raises:
        InputError: the directory holds something.
        StageError: the vectors differ.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise InputError(f"{directory} is not empty; give a new directory")
    shutil.copytree(student, directory / ROUTES[0], dirs_exist_ok=True)
    _write_document(teacher, layer, directory / ROUTES[1])
    shutil.copy(student / "config_sentence_transformers.json", directory)
    _write_json(directory / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": ROUTER}])
    moved = bool(mean) or rotation is not None
    encoder = Taught(Encoder.load(teacher, layer), mean, rotation)
    if moved:
        _write_motion(directory / "document" / MOTION[0], encoder)
    _write_json(directory / "router_config.json", router_config(moved))
    return check_router(directory, student, encoder)


def router_config(moved: bool) -> dict[str, Any]:
    """Which modules a route goes through, by their paths in the directory; documents are the default."""
    *read, normalise = SENTENCE_TRANSFORMERS_MODULES
    modules = {"query": [*read, normalise], "document": [*read, *([MOTION] if moved else []), normalise]}
    named = {route: {f"{route}/{path}".rstrip("/"): kind for path, kind in of} for route, of in modules.items()}
    return {
        "types": named["query"] | named["document"],
        "structure": {route: list(of) for route, of in named.items()},
        "parameters": {"default_route": "document", "allow_empty_key": True, "route_mappings": {}},
    }


def _write_motion(directory: Path, teacher: Taught) -> None:
    """The linear layer that takes the mean off and turns what is left: (x - mean) R = x R - mean R."""
    size = teacher.dim
    directory.mkdir()
    settings = {"in_features": size, "out_features": size, "bias": True}
    activation = {"activation_function": "torch.nn.modules.linear.Identity"}
    _write_json(directory / "config.json", settings | activation)
    rotation_DD = torch.eye(size) if teacher.rotation_DD is None else teacher.rotation_DD
    bias_D = -teacher.mean_D.expand(size) @ rotation_DD
    save_file({"linear.weight": rotation_DD.T.contiguous(), "linear.bias": bias_D}, directory / "model.safetensors")


def _write_document(teacher: Path, layer: int, directory: Path) -> None:
    """The teacher's first layers as a directory like a student's, in the precision that it is stored in."""
    backbone = load_backbone(teacher, layer, pruned_config(teacher, None).dtype)
    with tempfile.TemporaryDirectory(dir=directory.parent) as weights:
        save_backbone(backbone.config, backbone.state_dict(), Path(weights))
        del backbone
        export_student(Path(weights), teacher, directory, {})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def check_router(directory: Path, student: Path, teacher: Encoder) -> dict[str, Any]:
    """See `write_router`."""
    encoders = {"query": Encoder.load(student), "document": teacher}
    inputs = samples()
    found, not_run = run_stock_loaders(directory, inputs, [LOADER])
    if LOADER not in found:
        return {"not compared": not_run[LOADER]}
    report = {}
    for route, encoder in encoders.items():
        places = [place for place, one in enumerate(inputs) if bool(one.instruction) == (route == "query")]
        report[route] = _least_cosine(found[LOADER][places], encoder, [inputs[place] for place in places])
        if not report[route] >= MINIMUM_COSINE:
            raise StageError(
                f"{LOADER} reads the route {route} of {directory} with cosine {report[route]:.5f} to the pipeline's"
                f" vectors, below {MINIMUM_COSINE}; install the versions that pyproject.toml names"
            )
    return report


def _least_cosine(vectors_ND: np.ndarray, encoder: Encoder, inputs: list[Sample]) -> float:
    return float((vectors_ND * encoder.encode([one.row for one in inputs])).sum(1).min())
