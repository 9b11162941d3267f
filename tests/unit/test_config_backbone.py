"""Backbones in a configuration: what a checkpoint that is here tells a plan, and what is refused of it."""

import os

import pytest

from pipeline.config.checks import check_made, self_taught
from pipeline.config.load import load_config
from stages.contract.context import InputError
from tests.configured import COMMIT, checkpoint, refusal


@pytest.mark.parametrize("config", [{"num_hidden_layers": 4}, {"text_config": {"num_hidden_layers": 4}}])
def test_a_local_backbone_limits_the_student(tmp_path, config):
    given = checkpoint(tmp_path / "m", model_type="qwen2_vl", **config)
    assert load_config("demo", [*given, "student.layers=4"]).student.layers == 4
    assert "the backbone has 4 layers" in refusal(*given, "student.layers=5")


def test_a_hub_model_whose_files_are_here_limits_the_student_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    hub = ["backbone.source=hub", "backbone.model=some/model", f"backbone.revision={COMMIT}"]
    assert load_config("demo", [*hub, "student.layers=40"]).student.layers == 40  # nothing tells
    place = tmp_path / "models--some--model" / "snapshots" / COMMIT
    place.parent.mkdir(parents=True)
    checkpoint(place, model_type="qwen2_vl", num_hidden_layers=28)
    assert "student.layers=40 is too many in override" in refusal(*hub, "student.layers=40")
    assert "the backbone has 28 layers" in refusal(*hub, "student.layers=40")
    assert "choose -1 for the last, or 1 to 28" in refusal(*hub, "features.layer=99")
    (place / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 28}')
    assert "is of the family llama, which can't be a backbone" in refusal(*hub)


def test_weights_of_a_local_backbone_are_files_that_can_be_read(tmp_path):
    given = checkpoint(tmp_path / "m", model_type="qwen2_vl", num_hidden_layers=4)
    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    assert "has no *.safetensors, and other formats" in refusal(*given)
    weights.symlink_to("gone")
    assert f"{weights} is no file of weights" in refusal(*given)
    weights.unlink()
    os.mkfifo(weights)  # waits for a writer, were it opened
    assert f"{weights} is no file of weights" in refusal(*given)
    weights.unlink()
    weights.mkdir()
    assert f"{weights} is no file of weights" in refusal(*given)
    weights.rmdir()
    for head in (b"[1, 2]", b'{"a": [1]}', b"\xff\xfe", b"{}"):
        weights.write_bytes(len(head).to_bytes(8, "little") + head)
        assert f"{weights} is no file of weights" in refusal(*given)
    weights.write_bytes(whole[:-1])
    assert f"{weights} is no file of weights in safetensors' format, or not the whole of it" in refusal(*given)
    weights.write_bytes(whole)
    assert load_config("demo", given).backbone.source == "local"


def test_a_qwen3_student_keeps_at_least_three_layers(tmp_path):
    given = checkpoint(tmp_path / "m", model_type="qwen3_vl", text_config={"num_hidden_layers": 8})
    assert "qwen3_vl needs at least 3" in refusal(*given, "student.layers=2")
    assert load_config("demo", [*given, "student.layers=[1, 2, 3, 8]"]).student.layers == (1, 2, 3, 8)
    assert "qwen3_vl adds what it sees to its first 3 layers" in refusal(*given, "student.layers=[1, 2, 8]")
    hub = ["backbone.source=hub", "backbone.model=Qwen/Qwen3-VL-2B-Instruct", f"backbone.revision={COMMIT}"]
    assert "qwen3_vl needs at least 3" in refusal(*hub, "student.layers=2")


def test_a_qwen3_5_student_keeps_whole_groups_of_layers(tmp_path):
    given = checkpoint(tmp_path / "m", model_type="qwen3_5", text_config={"num_hidden_layers": 12})
    assert load_config("demo", [*given, "student.layers=8"]).student.layers == 8
    assert load_config("demo", [*given, "student.layers=[1, 6, 11, 12]"]).student.layers == (1, 6, 11, 12)
    assert "student.layers=6 splits a group" in refusal(*given, "student.layers=6")
    assert "repeat after 4; set it to 4 or 8" in refusal(*given, "student.layers=6")
    assert "so keep whole groups of 4" in refusal(*given, "student.layers=[1, 2, 3]")
    hub = ["backbone.source=hub", "backbone.model=Qwen/Qwen3.5-2B", f"backbone.revision={COMMIT}"]
    assert "qwen3_5 needs at least 4" in refusal(*hub, "student.layers=3")


def test_a_local_checkpoint_of_an_unknown_family_is_refused(tmp_path):
    given = checkpoint(tmp_path / "m", model_type="llama", num_hidden_layers=8)
    assert "is of the family llama, which can't be a backbone; choose one of qwen2_vl" in refusal(*given)


def test_a_local_backbone_may_lie_below_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoint(tmp_path / "m", model_type="qwen2_vl", num_hidden_layers=4)
    given = ["backbone.source=local", "backbone.model=~/m"]
    assert load_config("demo", given).backbone.model == "~/m"
    assert "the backbone has 4 layers" in refusal(*given, "student.layers=5")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("student.layers=99", "student.layers=99 is too many: the backbone has 28 layers"),
        ("student.layers=2", "student.layers=2 is too few: qwen3_vl needs at least 3"),
        ("features.layer=99", "features.layer=99 is no layer; choose -1 for the last, or 1 to 28"),
    ],
)
def test_the_depth_of_a_hub_model_is_checked_once_its_artifact_tells_it(override, words):
    hub = ["backbone.source=hub", "backbone.model=some/model", f"backbone.revision={COMMIT}", "student.layers=4"]
    manifest = {"metrics": {"source": "hub", "model_type": "qwen3_vl", "layers": 28}}
    check_made(load_config("demo", hub), "backbone", manifest)
    with pytest.raises(InputError, match=words):
        check_made(load_config("demo", [*hub, override]), "backbone", manifest)


def test_a_tuned_backbone_s_batch_is_shared_evenly_and_that_of_one_that_is_not_tuned_does_not_matter(tmp_path):
    given = checkpoint(tmp_path / "m", model_type="qwen2_vl", num_hidden_layers=4)
    batches = ["cluster.workers=3", "distill.batch_size=63", "train.batch_size=63"]
    assert load_config("demo", [*given, *batches]).backbone.tune.batch_size == 64
    assert "backbone.tune.batch_size=64 can't be shared" in refusal(*given, *batches, "backbone.tune.steps=1")


def test_a_directory_that_is_no_model_is_reported(tmp_path):
    assert "does not say the model's type" in refusal(*checkpoint(tmp_path / "m", hello=1))


def test_a_teacher_that_learns_from_rows_without_labels_is_told_of(tmp_path):
    """It is no error: a demonstration, or a test, has nothing else."""
    (tmp_path / "words.txt").write_text("a pear\n")
    corpus = ["data.kind=corpus", f"data.path={tmp_path / 'words.txt'}", "distill.contrastive_weight=0"]
    own = checkpoint(tmp_path / "m", model_type="qwen2_vl", num_hidden_layers=4)
    assert self_taught(load_config("demo", corpus)).startswith("backbone.source=tiny is trained to find each row")
    assert self_taught(load_config("demo", [*corpus, *own, "backbone.tune.steps=7"])).endswith("; set it to 0")
    assert not self_taught(load_config("demo", [*corpus, *own]))
    assert not self_taught(load_config("demo", []))
