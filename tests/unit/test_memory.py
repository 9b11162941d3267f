"""What the models of a stage take is counted from the sizes of a checkpoint, and compared with the room for them."""

from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.artifacts.store import open_store
from pipeline.config.load import read_config
from pipeline.config.sections import Config
from pipeline.execution.memory import Held, Room, Sizes, check_room, held_by, sizes_of
from stages.contract.context import InputError

SHAPES = {
    "model.embed_tokens.weight": (50, 10),
    "model.layers.0.mlp.weight": (100, 10),
    "model.language_model.layers.1.mlp.weight": (200, 10),
    "visual.blocks.0.weight": (30, 10),
    "model.visual.layers.0.weight": (10, 10),
    "lm_head.weight": (50, 10),
    "mtp.layers.0.weight": (50, 10),
}
SIZES = Sizes({0: 1000, 1: 2000}, vision=400, rest=500)


def config(**sections: dict) -> Config:
    return Config.model_validate(sections)


def held(made: Config, *stages: str) -> dict[str, tuple[int, int]]:
    return {one.stage: (one.processes, one.bytes) for one in held_by(made, stages, SIZES)}


def test_parameters_are_those_that_are_loaded_by_layer():
    assert Sizes.of(SHAPES) == SIZES
    assert [SIZES.kept(layers) for layers in ("full", "auto", 1, (2,))] == [3900, 0, 1900, 2900]


def test_sizes_are_read_from_heads_of_files_of_an_artifact_or_a_directory(tmp_path):
    save_file({name: np.zeros(shape, np.float16) for name, shape in SHAPES.items()}, tmp_path / "one.safetensors")
    local = config(backbone={"source": "local", "model": str(tmp_path)}).backbone
    assert sizes_of(local) == SIZES
    store = open_store(str(tmp_path / "store"))
    attempt = store.begin("backbone", "0" * 16)
    attempt.write_bytes("model/one.safetensors", (tmp_path / "one.safetensors").read_bytes())
    assert sizes_of(config().backbone, store.commit(attempt, {"metrics": {}})) == SIZES
    (tmp_path / "one.safetensors").write_bytes(b"no weights at all")
    assert sizes_of(local) is sizes_of(config().backbone) is None
    (tmp_path / "one.safetensors").write_bytes(b"\2" + bytes(7) + b"[]")
    (tmp_path / "two.safetensors").symlink_to("gone")
    (tmp_path / "three.safetensors").mkdir()
    assert sizes_of(local) is None


def test_a_hub_tells_sizes_without_files_and_one_out_of_reach_tells_nothing(monkeypatch):
    tensors = {name: SimpleNamespace(shape=list(shape)) for name, shape in SHAPES.items()}
    found = SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)})
    hub = config(backbone={"source": "hub", "model": "puma/none", "revision": "0" * 40}).backbone
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda *given, **more: found)
    assert sizes_of(hub) is None and sizes_of(hub, ask_hub=True) == SIZES

    def away(*given, **more):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", away)
    assert sizes_of(hub, ask_hub=True) is None


def test_embedding_holds_weights_and_training_what_the_optimizer_needs_by_its_share():
    two = config(student={"layers": 1}, cluster={"workers": 2, "actors": 3, "zero_stage": 0})
    assert held(two, "features", "index", "evaluate", "train") == {
        "features": (3, 4 * 3900), "index": (3, 4 * 1900), "evaluate": (3, 4 * 3900),
        "train": (2, 4 * 1900 + (4 + 8) * 1500),  # what sees stays as it is
    }  # fmt: skip
    shares = {1: 4 * 1900 + 4 * 1500 + 4 * 1500, 2: 4 * 1900 + 2 * 1500 + 4 * 1500, 3: 2 * 1900 + 2 * 1500 + 4 * 1500}
    for stage, taken in shares.items():
        assert held(config(student={"layers": 1}, cluster={"workers": 2, "zero_stage": stage}), "train") == {
            "train": (2, taken)
        }
    half = config(student={"layers": 1}, cluster={"precision": "bf16", "workers": 2, "zero_stage": 0})
    assert held(half, "distill", "ingest") == {"distill": (2, 2 * 1900 + 2 * 1500 + (4 + 8) * 1500 // 2)}


def test_a_teacher_that_runs_in_every_step_is_held_beside_the_student():
    alone = held(config(student={"layers": 1}), "distill")["distill"][1]
    for layer, more in ((-1, 3900), (1, 1900), ("auto", 0)):
        live = config(student={"layers": 1}, distill={"teacher": "live"}, features={"layer": layer})
        assert held(live, "distill") == {"distill": (1, alone + 4 * more)}


def test_adapters_leave_the_weights_alone_and_nothing_is_told_of_what_is_not_known():
    adapters = config(student={"layers": 1}, train={"lora": {"rank": 4}}, distill={"steps": 0})
    assert held(adapters, "distill", "train") == {"train": (1, 4 * 1900)}
    assert held(config(student={"layers": "auto"}, evaluate={"teacher": False}), "train", "index", "evaluate") == {}
    outside = config(features={"teacher": "some/model"}, student={"layers": 1})
    assert held(outside, "features", "backbone") == {}


def test_the_papers_student_fits_the_papers_gpus_and_not_small_ones():
    """Qwen2-VL-7B by its published shapes: 28 layers of 233 M, a tower of 675 M, 545 M of words."""
    sizes = Sizes(dict.fromkeys(range(28), 233_057_792), vision=675_759_104, rest=545_000_960)
    made, _ = read_config("puma_qwen2vl_7b", ["data.path=s3://bucket/data", f"backbone.revision={'0' * 40}"])
    asked = list(held_by(made, ("features", "distill", "train", "index", "evaluate"), sizes))
    check_room(made, asked, Room([80 * 10**9] * 4, "the largest GPU", "all GPUs"))
    with pytest.raises(InputError, match=r"^features: 1 × 7\.75 billion .* in bf16 are 15\.5 GB, the largest"):
        check_room(made, asked, Room([12 * 10**9] * 4, "the largest GPU", "all GPUs"))


def test_one_has_to_fit_somewhere_and_all_together_and_on_a_gpu_those_that_share_it():
    one = [Held("train", 3, 10**9, 10 * 10**9, trained=True)]
    nodes = Room([8 * 10**9, 16 * 10**9], "the largest node", "the cluster of 2 nodes")
    with pytest.raises(InputError, match=r"^train: 3 × 1\.00 .*, with gradients and optimizer, are 30\.0 GB, the"):
        check_room(config(), one, nodes)
    check_room(config(), one, Room([], "the largest node", "the cluster of 0 nodes"))  # nobody told
    with pytest.raises(InputError, match=r"^train: 1 × .* are 10\.0 GB, the largest node has 8\.0 GB"):
        check_room(config(), one, Room([8 * 10**9] * 9, "the largest node", "the cluster of 9 nodes"))
    shared = config(cluster={"gpus_per_worker": 0.5})
    with pytest.raises(InputError, match=r"^train: 2 × .* are 20\.0 GB, a GPU has 16\.0 GB"):
        check_room(shared, one, Room([16 * 10**9], "a GPU", "a GPU"))
    check_room(config(cluster={"gpus_per_worker": 1}), one, Room([16 * 10**9], "a GPU", "a GPU"))
