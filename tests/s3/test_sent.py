"""What a driver hands to workers on nodes that share nothing with it but the bucket."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.artifacts.s3 import S3Objects
from pipeline.artifacts.store import Store, open_store
from stages import backbone
from stages.contract.context import Where
from stages.model import checkpoint
from tests.support import begin
from tests.tiny_models import write_checkpoint

pytestmark = pytest.mark.s3


@pytest.fixture
def on_another_node(monkeypatch, tmp_path):
    """Asks a place as a process of another node does: unpickled there, with a cache of its own."""

    def ask(where: Where) -> Path:
        with monkeypatch.context() as patch:
            patch.setenv("PUMA_CACHE", str(tmp_path / "other node"))
            return pickle.loads(pickle.dumps(where))()

    return ask


@pytest.fixture
def model(tmp_path) -> Path:
    directory = tmp_path / "only here" / "model"
    (directory / "1_Pooling").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "1_Pooling" / "config.json").write_text("[]")
    return directory


def test_a_directory_that_was_sent_is_read_where_its_origin_is_not_seen(bucket, model, on_another_node):
    where = bucket.begin("backbone", "key").send(model)
    shutil.rmtree(model.parent)
    found = on_another_node(where)
    assert "other node" in str(found)
    assert (found / "config.json").read_text() == "{}" and (found / "1_Pooling" / "config.json").read_text() == "[]"


def test_a_file_is_sent_like_a_directory(bucket, model, on_another_node):
    assert on_another_node(bucket.begin("backbone", "key").send(model / "config.json")).read_text() == "{}"


def test_what_an_earlier_attempt_has_sent_is_not_sent_again(bucket, model, on_another_node, monkeypatch):
    bucket.begin("backbone", "key").send(model)
    (model / "config.json").write_text("[]")  # as long as before
    sent, upload = [], S3Objects.upload

    def watched(self, source: Path, path: str) -> None:
        sent.append(source.name)
        upload(self, source, path)

    monkeypatch.setattr(S3Objects, "upload", watched)
    where = bucket.begin("backbone", "key").send(model)
    assert sent == ["config.json"] and (on_another_node(where) / "config.json").read_text() == "[]"


def test_what_was_sent_goes_when_the_artifact_is_there(bucket, model):
    attempt = bucket.begin("backbone", "key")
    attempt.send(model)
    bucket.commit(attempt, {"metrics": {}})
    assert [entry.path for entry in bucket.objects.files("")] == ["backbone/key/manifest.json"]


def test_a_copy_of_an_artifact_is_sent_as_that_artifact(bucket, model, on_another_node):
    attempt = bucket.begin("train", "key")
    attempt.upload(model, "model")
    copy = bucket.commit(attempt, {"metrics": {}}).local("model")
    before = bucket.objects.files("")
    where = bucket.begin("index", "other").send(copy)
    assert len(bucket.objects.files("")) == len(before)
    assert (on_another_node(where) / "config.json").read_text() == "{}"


def test_a_store_in_a_directory_is_where_nodes_share_files_and_gets_no_copy(tmp_path, model):
    store = open_store(str(tmp_path / "store"))
    assert store.begin("backbone", "key").send(model)() == model
    assert not [entry for entry in store.objects.files("") if entry.path.endswith("config.json")]


@pytest.mark.parametrize("place", ["bucket", "directory"])
def test_a_checkpoint_that_only_the_driver_has_is_in_the_backbone_of_a_bucket(
    bucket, place, tmp_path, on_another_node, monkeypatch
):
    store = bucket if place == "bucket" else Store(tmp_path / "store")
    source = tmp_path / "only here"
    write_checkpoint(source, "qwen2_vl")
    params = backbone.Params(source="local", model=str(source), max_pixels=56 * 56, max_text_characters=32)
    context = replace(begin(tmp_path / "x", "backbone", backbone=params), output=store.begin("backbone", "key"))
    artifact = store.commit(context.output, {"metrics": backbone.run(context)})
    if place == "directory":
        assert not [entry for entry in artifact.manifest["files"] if entry["path"].startswith("model/")]
        return
    weights = (source / "model.safetensors").read_bytes()
    shutil.rmtree(source)
    found = on_another_node(checkpoint.place(artifact))
    assert (found / "model.safetensors").read_bytes() == weights
    assert '"max_text_characters": 32' in (found / "puma.json").read_text()
    monkeypatch.setenv("PUMA_CACHE", str(tmp_path / "head"))
    assert not list(checkpoint.settings(artifact).glob("*.safetensors"))
    assert (checkpoint.settings(artifact) / "config.json").is_file()
