"""Stock loaders give an exported student's own vectors on texts, images and both: cosine at least 0.9999."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.model.encoder import Encoder
from stages.model.export import export_student, save_backbone
from tests.tiny_models import ragged_rows, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    directory = tmp_path_factory.mktemp("loaders")
    source = write_checkpoint(directory / "source", "qwen2_vl")
    student = Encoder.load(source, layers=2)
    save_backbone(student.backbone.config, student.backbone.state_dict(), directory / "weights")
    export_student(directory / "weights", source, directory / "model", {"query": "Find it.\n"})
    rows, items = ragged_rows(), []
    for index, row in enumerate(rows):
        path = directory / f"{index}.png"
        if row.image:
            path.write_bytes(row.image)
        items.append({"text": row.text, "image": str(path) if row.image else None})
    (directory / "inputs.json").write_text(json.dumps(items))
    output = directory / "vectors.npz"
    done = subprocess.run(
        [sys.executable, "-m", "tests.stock_loaders", directory / "model", directory / "inputs.json", output],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return student.encode(rows), np.load(output)


@pytest.mark.parametrize("loader", ["transformers", "sentence_transformers"])
def test_a_stock_loader_gives_the_students_vectors(vectors, loader):
    ours, stock = vectors[0], vectors[1][loader]
    assert np.allclose(np.linalg.norm(stock, axis=1), 1, atol=1e-5)
    assert (ours * stock).sum(axis=1).min() > 0.9999
