"""A training process: the line that a person sees for each log step, its device, and what comes before what."""

import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import ray.train.collective
import ray.train.torch
import torch

from stages.contract.context import StageError
from stages.contract.params import Cluster
from stages.distributed import training
from stages.distributed.console import progress_line
from stages.learn import loop
from stages.learn.settings import Training


def test_a_progress_line_tells_the_measures_and_the_time_left():
    settings = Training(steps=300, batch_size=64)
    measures = {"pairs_per_second": 128.0, "loss": 1.2345, "in_batch_hit@1": 0.5, "learning_rate": 5e-4}
    line = progress_line("train", 120, settings, measures | {"tau_hard": 0.023})
    assert line == "train 120/300 loss 1.234 hit@1 0.50 τ 0.023 lr 5.0e-04 128 pairs/s, 1:30 left"
    both = progress_line("train", 120, settings, measures | {"tau_hard": 0.02, "tau_norm": 0.05})
    assert " τ 0.020 τ 0.050 " in both
    assert "feature mse 0.100" in progress_line("distill", 120, settings, measures | {"feature mse": 0.1})


@pytest.fixture
def seen(monkeypatch):
    """Makes this process see `count` GPUs, of which Ray gave it number `given`."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("LOCAL_RANK", "3")

    def see(count: int, given: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device(f"cuda:{given}"))

    yield see
    torch.set_num_threads(threads)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_process_without_a_gpu_of_its_own_stays_on_the_cpu_whatever_it_sees(seen, count):
    seen(count)
    assert training.choose_device(Cluster(gpus_per_worker=0, threads=2)) == "cpu"
    assert torch.get_num_threads() == 2


def test_each_of_four_processes_that_see_one_gpu_takes_it(seen):
    seen(1)
    assert training.choose_device(Cluster(gpus_per_worker=1, workers=4)) == "cuda:0"
    assert os.environ["LOCAL_RANK"] == "0"


def test_of_four_gpus_that_are_seen_a_process_takes_the_one_that_it_was_given(seen):
    seen(4, given=2)
    assert training.choose_device(Cluster(gpus_per_worker=1, workers=4)) == "cuda:2"
    assert os.environ["LOCAL_RANK"] == "2"


def test_a_gpu_that_torch_cannot_use_is_an_error_and_not_a_training_on_the_cpu(seen):
    seen(0)
    with pytest.raises(StageError, match=r"cluster\.gpus_per_worker=1, and torch .* can use no GPU"):
        training.choose_device(Cluster(gpus_per_worker=1))


@pytest.mark.parametrize("resumes", [False, True])
def test_nothing_slow_comes_after_the_ranks_have_met(monkeypatch, tmp_path, resumes):
    """Models, tables and a checkpoint are there before the barrier; behind it ranks wait for each other by NCCL."""
    told: list[str] = []

    def tells(name: str, result: object = None):
        def call(*_: object, **__: object) -> object:
            told.append(name)
            return result

        return call

    @contextmanager
    def fetched():
        told.append("checkpoint")
        yield str(tmp_path)

    found = SimpleNamespace(path="checkpoint_1", as_directory=fetched) if resumes else None
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: found)
    monkeypatch.setattr(ray.train.collective, "barrier", tells("barrier"))
    monkeypatch.setattr(training, "choose_device", tells("device", "cpu"))
    monkeypatch.setattr(training, "turn", tells("turn", (None, None)))
    for name in ("load_student", "open_sampler", "open_teacher"):
        monkeypatch.setattr(training, name, tells(name))
    monkeypatch.setattr(loop, "fit", lambda *_, **given: told.append(f"fit from {given['resume']}"))
    training.train_worker({"job": SimpleNamespace(seed=0, objective=None, settings=None, cluster=None, label="train")})
    barrier = told.index("barrier")
    slow = {"load_student", "open_sampler", "open_teacher"} | ({"checkpoint"} if resumes else set())
    assert slow <= set(told[:barrier])
    assert told[barrier + 1 :] == ["turn", f"fit from {tmp_path if resumes else None}"]
