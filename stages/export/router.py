"""One directory for both models of an asymmetric index: sentence-transformers' `Router`.

    modules.json  router_config.json  config_sentence_transformers.json
    query/       the student, as it was exported: what `encode_query` reads
    document/    the teacher, cut to the layer that taught: what `encode_document` reads

MongoDB/mdbr-leaf-mt-asym is published like that. A Router names its models by paths inside its own directory, so the
weights are copied; that is why nobody writes it unasked, and why it is no part of the student.
"""

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.contract.context import InputError, StageError
from stages.export.checkpoint import SENTENCE_TRANSFORMERS_MODULES, export_student, save_backbone
from stages.export.loaders import Sample, run_stock_loaders
from stages.export.parity import MINIMUM_COSINE, fitted, samples
from stages.model.encoder import Encoder
from stages.model.prune import load_backbone, pruned_config
from stages.model.rows import Row

IN_NO_KEY = True  # an export

ROUTER = "sentence_transformers.base.modules.router.Router"
LOADER = "sentence-transformers"
ROUTES = ("query", "document")


def write_router(directory: Path, student: Path, teacher: Path, layer: int) -> dict[str, Any]:
    """Writes the directory and compares what sentence-transformers reads from it with what the pipeline embeds.

    Args:
        directory: a new or empty one.
        student: an exported student.
        teacher: the model directory of the teacher.
        layer: the teacher's layer that candidates are read at, counted from 1.

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
    _write_json(directory / "router_config.json", router_config())
    return check_router(directory, student, teacher, layer)


def router_config() -> dict[str, Any]:
    """Which modules a route goes through, by their paths in the directory; documents are the default."""
    structure = {
        route: ["/".join(filter(None, (route, path))) for path, _ in SENTENCE_TRANSFORMERS_MODULES] for route in ROUTES
    }
    kinds = [kind for _, kind in SENTENCE_TRANSFORMERS_MODULES]
    types = {path: kind for paths in structure.values() for path, kind in zip(paths, kinds, strict=True)}
    parameters = {"default_route": "document", "allow_empty_key": True, "route_mappings": {}}
    return {"types": types, "structure": structure, "parameters": parameters}


def _write_document(teacher: Path, layer: int, directory: Path) -> None:
    """The teacher's first layers as a directory like a student's, in the precision that it is stored in."""
    backbone = load_backbone(teacher, layer, pruned_config(teacher, None).dtype)
    with tempfile.TemporaryDirectory(dir=directory.parent) as weights:
        save_backbone(backbone.config, backbone.state_dict(), Path(weights))
        del backbone
        export_student(Path(weights), teacher, directory, {})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def check_router(directory: Path, student: Path, teacher: Path, layer: int) -> dict[str, Any]:
    """See `write_router`."""
    encoders = {"query": partial(Encoder.load, student), "document": partial(Encoder.load, teacher, layer)}
    collator = encoders["query"]().collator
    inputs = [fitted(sample, collator) for sample in samples()]
    found, not_run = run_stock_loaders(directory, inputs, [LOADER])
    if LOADER not in found:
        return {"not compared": not_run[LOADER]}
    report = {}
    for route, load in encoders.items():
        places = [place for place, one in enumerate(inputs) if bool(one.instruction) == (route == "query")]
        report[route] = _least_cosine(found[LOADER][places], load(), [inputs[place] for place in places])
        if not report[route] >= MINIMUM_COSINE:
            raise StageError(
                f"{LOADER} reads the route {route} of {directory} with cosine {report[route]:.5f} to the pipeline's"
                f" vectors, below {MINIMUM_COSINE}; install the versions that pyproject.toml names"
            )
    return report


def _least_cosine(vectors_ND: np.ndarray, encoder: Encoder, inputs: list[Sample]) -> float:
    return float((vectors_ND * encoder.encode([Row(one.joined, one.image) for one in inputs])).sum(1).min())
