"""The teacher on a real cluster, with an untrained checkpoint from outside: tuned on the data, read, and learnt from."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.artifacts.store import Artifact, Store
from stages import backbone
from stages.contract.params import Cluster
from stages.model import checkpoint
from stages.model.encoder import Encoder
from tests.support import begin
from tests.tiny_models import write_checkpoint
from tests.training_world import write_ingest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("shared_cluster")]
SHORT = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def home(shared_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint, `model`, and a store."""
    directory = tmp_path_factory.mktemp("teacher")
    write_checkpoint(directory / "model", "qwen2_vl", layers=3)
    return directory


@pytest.fixture(scope="module")
def inputs(home: Path) -> dict[str, Artifact]:
    """The ingested pairs."""
    return {"ingest": write_ingest(home / "store")}


def run(home: Path, stage, inputs: dict[str, Artifact], **sections) -> tuple[Artifact, dict]:
    """Runs a stage and commits what it wrote."""
    name = stage.__name__.rpartition(".")[2]
    context = replace(begin(home / "store", name, inputs, seed=0, **sections), cluster=Cluster(threads=1, log_every=1))
    metrics = stage.run(context)
    return Store(home / "store").commit(context.output, {"metrics": metrics}, replace=True), metrics


def from_outside(home: Path, **given) -> backbone.Params:
    limits = {"min_pixels": 28 * 28, "max_pixels": 56 * 56, "max_text_tokens": 40}
    return backbone.Params(source="local", model=str(home / "model"), **limits, **given)


@pytest.fixture(scope="module")
def tuned(home: Path, inputs: dict[str, Artifact]) -> SimpleNamespace:
    """The backbone, tuned with adapters."""
    artifact, metrics = run(home, backbone, inputs, backbone=from_outside(home, tune={**SHORT, "lora": {"rank": 4}}))
    return SimpleNamespace(artifact=artifact, metrics=metrics, directory=checkpoint.directory(artifact))


def test_a_tuned_backbone_is_a_stock_checkpoint_of_full_depth_with_its_own_limits(home, tuned):
    before, after = (load_file(place / "model.safetensors") for place in (home / "model", tuned.directory))
    changed = {name for name, weight in after.items() if not np.array_equal(weight, before.get(name, weight))}
    assert len(changed) == 3 * 7 and all(name.startswith("model.layers.") for name in changed)
    assert before.keys() - after.keys() <= {"lm_head.weight"}
    assert (tuned.metrics["source"], tuned.metrics["layers"], tuned.metrics["step"]) == ("local", 3, 2)
    assert Encoder.load(tuned.directory).collator.max_text_tokens == 40
