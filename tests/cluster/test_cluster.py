"""The cluster that a run starts for itself, and the one line that is left of an error in it.

Apart from `tests/ray`, whose files share a cluster: a process has one at a time.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest
import ray
import ray.data

from pipeline.execution.cluster import connected, logical_cpus
from pipeline.execution.errors import explain
from pipeline.execution.joining import ask
from stages.contract.context import StageError
from stages.contract.params import Cluster
from stages.distributed.training import interrupts_kept

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.pop("OMP_NUM_THREADS", None)
    with connected(Cluster(threads=3)):
        yield
    os.environ.clear()
    os.environ.update(before)


def fail(*_: object) -> None:
    raise StageError("the advice\nis this")


class FailingActor:
    def __call__(self, batch: dict) -> dict:
        raise ValueError("row 3 is bad\nand more")


def test_workers_know_the_code_and_that_there_is_no_gpu(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @ray.remote
    def look() -> tuple:
        import pipeline.planning.dag

        return os.environ["DS_ACCELERATOR"], os.environ["OMP_NUM_THREADS"], len(pipeline.planning.dag.STAGES)

    assert ray.get(look.remote()) == ("cpu", "3", 7)


def test_each_node_answers_for_itself(cluster, tmp_path):
    (tmp_path / "there").touch()
    for name, seen in (("there", True), ("nowhere", False)):
        assert list(ask(ray.nodes(), partial(os.path.exists, str(tmp_path / name))).values()) == [seen]


def test_what_a_stage_prints_in_a_worker_is_shown_and_bookkeeping_is_not(cluster, capfd):
    def speak() -> None:
        print("Checkpoint successfully created at: somewhere", file=sys.stderr)
        print("train 1/2 loss 0.5", file=sys.stderr, flush=True)

    ray.get(ray.remote(speak).remote())
    told, deadline = "", time.monotonic() + 20
    while "train 1/2" not in told and time.monotonic() < deadline:
        time.sleep(0.2)
        told += capfd.readouterr().err
    assert "train 1/2 loss 0.5" in told
    assert "Checkpoint" not in told


def test_there_are_cpus_enough_for_actors_beside_readers_and_writers(cluster):
    assert ray.cluster_resources()["CPU"] >= 4
    assert logical_cpus(Cluster(actors=6)) >= 9
    assert logical_cpus(Cluster(workers=4, cpus_per_worker=2)) >= 9


def test_an_error_of_a_task_is_one_line(cluster):
    with pytest.raises(Exception) as caught:
        ray.get(ray.remote(max_retries=0)(fail).remote())
    assert explain(caught.value) == "the advice is this"


FIRST_POOL = """
import ray.data
from pipeline.execution.cluster import connected
from stages.contract.params import Cluster

class Passing:
    def __call__(self, batch):
        return batch

with connected(Cluster()):
    ray.data.range(2).map_batches(Passing, compute=ray.data.ActorPoolStrategy(size=1)).materialize()
print("done")
"""


def test_a_pool_of_actors_prints_nothing_that_looks_like_an_error():
    """Ray prints its line at the first pool of a process, hence a process of its own."""
    done = subprocess.run([sys.executable, "-c", FIRST_POOL], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("done\n"), done.stderr
    assert "core_worker.cc" not in done.stderr


def test_an_error_inside_ray_data_is_one_line(cluster):
    with pytest.raises(Exception) as caught:
        ray.data.range(4).map_batches(FailingActor, compute=ray.data.ActorPoolStrategy(size=1)).materialize()
    assert explain(caught.value) == "ValueError: row 3 is bad"


def test_an_error_of_a_training_worker_is_one_line_and_ctrl_c_stays_what_it_was(cluster, tmp_path):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        fail,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="failing", storage_path=str(tmp_path)),
    )
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Exception) as caught, interrupts_kept():
        trainer.fit()
    assert explain(caught.value) == "the advice is this"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(StageError, match=r"Ray could not be started at 127\.0\.0\.1:1: "), connected(Cluster()):
        raise AssertionError("connected to nothing")
