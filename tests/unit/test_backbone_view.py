"""A checkpoint that is not ours: read with the pipeline's own limits, and never changed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.model import checkpoint
from stages.model.encoder import Encoder
from tests.tiny_models import write_checkpoint


def test_a_backbone_that_lies_in_its_artifact_is_read_from_there(tmp_path: Path) -> None:
    files = [{"path": "model/config.json"}, {"path": "pointer.json"}]
    artifact = SimpleNamespace(manifest={"files": files}, local=lambda name: tmp_path / name)
    assert checkpoint.directory(artifact) == tmp_path / "model"


@pytest.mark.parametrize("known", [{"source": "tiny"}, {}, {"source": "local", "trained": True}])
def test_a_backbone_that_was_trained_here_is_known_as_such(known) -> None:
    assert checkpoint.trained(SimpleNamespace(manifest={"metrics": known}))


def test_a_local_checkpoint_is_read_with_our_limits_and_stays_as_it_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PUMA_CACHE", str(tmp_path / "shared"))
    source = tmp_path / "teacher"
    write_checkpoint(source, "qwen2_vl")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    limits = {"min_pixels": 3136, "max_pixels": 6272, "max_text_characters": 32}
    pointer = {"source": "local", "model": str(source), "revision": "", **limits}
    manifest = {"metrics": {"source": "local"}, "files": [{"path": "pointer.json"}]}
    artifact = SimpleNamespace(manifest=manifest, read_json=lambda name: pointer)
    assert not checkpoint.trained(artifact)
    for _ in range(2):
        view = checkpoint.directory(artifact)
    assert view.parent == tmp_path / "shared" / "views"
    assert json.loads((view / "puma.json").read_text())["max_text_characters"] == 32
    assert Encoder.load(view).collator.max_text_characters == 32
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()} == before
