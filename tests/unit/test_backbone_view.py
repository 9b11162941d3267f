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


def test_a_view_follows_weights_that_are_links_and_drops_what_is_gone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PUMA_CACHE", str(tmp_path / "shared"))
    source, blobs = tmp_path / "teacher", tmp_path / "blobs"
    source.mkdir()
    blobs.mkdir()
    (source / "preprocessor_config.json").write_text('{"size": {}}')
    for name in ("first", "second"):
        (blobs / name).write_text(name)
    pointer = {"source": "local", "model": str(source), "revision": "", "min_pixels": 1, "max_pixels": 2}
    pointer["max_text_characters"] = 32
    weights, extra = source / "model.safetensors", source / "adapter.safetensors"
    for name in ("first", "second"):
        weights.unlink(missing_ok=True)
        weights.symlink_to(blobs / name)
        extra.write_text("left") if name == "first" else extra.unlink()
        view = checkpoint.pointed(pointer)
        assert (view / "model.safetensors").read_text() == name
    (blobs / "first").unlink()
    assert checkpoint.pointed(pointer) == view
    assert {path.name for path in view.glob("*.safetensors")} == {"model.safetensors"}
