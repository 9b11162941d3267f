"""What runs on which node: trained models are exported where models run, a disk is read where it is."""

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from stages import distill
from stages.contract.context import StageError
from stages.contract.params import Cluster
from stages.data.ingest.flow import beside
from stages.data.sources.remote import RemotePath
from stages.distributed import student, tasks
from stages.distributed.rotation import ROTATION
from stages.distributed.training import WEIGHTS
from stages.export import parity
from stages.learn.objective import Objective
from stages.model import checkpoint
from stages.model.encoder import Encoder
from tests.support import begin
from tests.tiny_models import write_checkpoint


class Remote:
    """Stands for Ray: remembers what a task asks for, and carries it out here, pickled as on the way to a node."""

    def __init__(self) -> None:
        self.asked: dict[str, float] = {}

    def __call__(self, **asked: float):
        self.asked = asked
        return lambda function: SimpleNamespace(remote=lambda *given: function(*pickle.loads(pickle.dumps(given))))


@pytest.fixture
def remote(monkeypatch) -> Remote:
    made = Remote()
    monkeypatch.setattr(ray, "remote", made)
    monkeypatch.setattr(ray, "get", lambda result: result)
    return made


def key_of(context, more: str) -> str:
    return f"{context.output.key} {more} {context.tracker}"


def test_a_task_has_what_a_training_process_has_and_no_tracker(remote, tmp_path):
    context = replace(begin(tmp_path / "store", "train"), cluster=Cluster(gpus_per_worker=1, cpus_per_worker=8))
    assert tasks.where_models_run(context, key_of, "more") == "0123456789ab more None"
    assert remote.asked == {"num_cpus": 8, "num_gpus": 1}


def test_the_driver_loads_no_model_to_export_or_to_check_it(monkeypatch, tmp_path):
    source = write_checkpoint(tmp_path / "model", "qwen2_vl", layers=2)
    monkeypatch.setattr(checkpoint, "settings", lambda artifact: source)
    monkeypatch.setattr(checkpoint, "place", lambda artifact: lambda: pytest.fail("the driver fetched the weights"))
    monkeypatch.setattr(Encoder, "load", lambda *_: pytest.fail("the driver loaded a model"))
    monkeypatch.setattr(parity, "check_parity", lambda *_: pytest.fail("the driver checked an export"))
    sent = []
    monkeypatch.setattr(student, "where_models_run", lambda context, *task: sent.append(task) or {"turned": False})
    params = distill.Params(steps=0)
    context = begin(tmp_path / "store", "distill", distill=params)
    assert student.student_stage(context, params, None, 1, Objective("infonce", 0.05)) == {"turned": False}
    assert sent[0][0] is student.export_stage


@pytest.mark.parametrize("rotated", [True, False])
def test_of_a_checkpoint_in_a_bucket_only_what_is_exported_is_fetched(tmp_path, rotated):
    made = tmp_path / "bucket" / "checkpoint_6"
    (made / WEIGHTS).mkdir(parents=True)
    for name in (f"{WEIGHTS}/model.safetensors", "optimizer.pt"):
        (made / name).write_text(name)
    if rotated:
        np.save(made / ROTATION, np.eye(2))
    bucket = SubTreeFileSystem(str(tmp_path / "bucket"), LocalFileSystem())
    fetched = tasks.fetch_trained(SimpleNamespace(filesystem=bucket, path="checkpoint_6"), tmp_path / "here")
    names = {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()}
    assert names == {f"{WEIGHTS}/model.safetensors"} | ({ROTATION} if rotated else set())
    lying = SimpleNamespace(filesystem=LocalFileSystem(), path=str(made))
    assert tasks.fetch_trained(lying, tmp_path / "here") == made


@pytest.fixture
def node(monkeypatch):
    """The driver's node, which gives Ray so many CPUs; another has eight."""

    def made(cpus: int) -> str:
        here = {"NodeID": "0" * 56, "Resources": {"CPU": float(cpus)} if cpus else {}}
        other = {"NodeID": "f" * 56, "Resources": {"CPU": 8.0}}
        monkeypatch.setattr(ray, "nodes", lambda: [other, here])
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: here["NodeID"]))
        return here["NodeID"]

    return made


IN_A_BUCKET, IN_A_DIRECTORY = (SimpleNamespace(filesystem=SimpleNamespace(type_name=name)) for name in ("s3", "local"))


def test_a_disk_is_read_on_the_drivers_node_where_nodes_share_a_bucket_alone(node):
    here = node(4)
    options = beside([RemotePath("bucket/a"), Path("/data/b")], IN_A_BUCKET)
    assert options == {"label_selector": {"ray.io/node-id": here}}


def test_a_bucket_is_read_anywhere_and_so_is_a_disk_that_nodes_share():
    assert beside([RemotePath("bucket/a")], IN_A_BUCKET) == beside([Path("/data/b")], IN_A_DIRECTORY) == {}


def test_a_drivers_node_without_cpus_cannot_read_its_disk_and_says_so(node):
    node(0)
    with pytest.raises(StageError, match="/data/b lies on the driver's node, which gives Ray no CPU"):
        beside([Path("/data/b")], IN_A_BUCKET)
