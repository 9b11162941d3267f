"""A training process: the line that a person sees for each log step, its device, and what comes before what."""

import os
import pickle
import shutil
import traceback
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import ray.train.collective
import ray.train.torch
import torch

from stages.contract.context import StageError
from stages.contract.params import Cluster
from stages.distributed import training
from stages.distributed.console import progress_line, room_in, root_cause
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
    muon = {"muon_rate": 0.02, "pairs_per_second": 128.0, "loss": 1.0}
    assert (
        progress_line("train", 120, settings, muon)
        == "train 120/300 loss 1.000 muon lr 2.0e-02 128 pairs/s, 1:30 left"
    )


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
    training.train_rank(SimpleNamespace(seed=0, objective=None, settings=None, cluster=None, label="train"))
    barrier = told.index("barrier")
    slow = {"load_student", "open_sampler", "open_teacher"} | ({"checkpoint"} if resumes else set())
    assert slow <= set(told[:barrier])
    assert told[barrier + 1 :] == ["turn", f"fit from {tmp_path if resumes else None}"]


@pytest.mark.parametrize(("free", "words"), [(0, "no space is left in .* on .* for the checkpoint of step 8; free"),
                                             (2**30, "^unexpected pos 576$")])  # fmt: skip
def test_a_checkpoint_that_finds_no_room_says_so_and_leaves_no_half(monkeypatch, tmp_path, free, words):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    with (
        pytest.raises(StageError if not free else RuntimeError, match=words),
        room_in(directory, "the checkpoint of step 8"),
    ):
        (directory / "half").write_text("half")
        raise RuntimeError("unexpected pos 576")
    assert not directory.exists()


def test_what_a_rank_says_of_its_end_comes_without_the_name_of_its_class():
    try:
        raise StageError("no space is left; free some")
    except StageError:
        told = SimpleNamespace(worker_failures={0: traceback.format_exc()})
    assert root_cause(told) == "no space is left; free some"


class Result(SimpleNamespace):
    """What Ray Train gives back."""

    error, checkpoint = None, "checkpoint"


@pytest.mark.parametrize(("metrics", "words"), [({"step": 4}, "the checkpoint of step 4 is kept"),
                                                (None, "there is no checkpoint yet")])  # fmt: skip
def test_a_training_that_diverged_is_one_line_that_names_the_last_checkpoint(monkeypatch, metrics, words):
    result = Result(metrics=metrics, return_value="step 7 of 12: the loss is not finite")
    monkeypatch.setattr("ray.train.torch.TorchTrainer", lambda *_, **__: SimpleNamespace(fit=lambda: result))
    output = SimpleNamespace(stage="train", key="k", work_uri="/tmp", filesystem=None)
    context = SimpleNamespace(cluster=Cluster(), output=output)
    with pytest.raises(StageError, match=f"^step 7 of 12: the loss is not finite; {words}$"):
        training.run_training(context, None)


def test_a_checkpoint_is_reported_with_its_own_step(monkeypatch):
    reported = []
    monkeypatch.setattr("ray.train.report", lambda measures, **_: reported.append(measures))
    monkeypatch.setattr("stages.learn.engine.save_state", lambda *_: None)
    job = SimpleNamespace(settings=Training(steps=300), run=SimpleNamespace(metrics=lambda *_: None), label="train")
    progress = training.Progress(job, None)
    progress.save(100, None)
    progress.log(120, {"loss": 1.0, "pairs_per_second": 1.0})
    progress.save(200, None)
    assert [one["step"] for one in reported] == [100, 200] and reported[1]["loss"] == 1.0


@pytest.mark.parametrize("restarts", [0, 1, -1])
def test_a_training_is_begun_again_as_often_as_the_setting_says(monkeypatch, restarts):
    """Ray Train takes 0 as never and -1 as always."""
    given, result = {}, Result(metrics={"step": 4}, return_value=None)

    def trainer(
        *_: object, train_loop_config: dict[str, bytes], run_config: ray.train.RunConfig, **__: object
    ) -> SimpleNamespace:
        given["restarts"] = run_config.failure_config.max_failures
        given["job"] = pickle.loads(train_loop_config["job"])  # Ray's controller never unpickles it
        return SimpleNamespace(fit=lambda: result)

    monkeypatch.setattr("ray.train.torch.TorchTrainer", trainer)
    output = SimpleNamespace(stage="train", key="k", work_uri="/tmp", filesystem=None)
    context = SimpleNamespace(cluster=Cluster(max_failures=restarts), output=output)
    job = SimpleNamespace(label="train")
    assert training.run_training(context, job) == ("checkpoint", {"step": 4})
    assert given == {"restarts": restarts, "job": job}


def test_a_teacher_that_weighs_nothing_is_not_opened():
    job = SimpleNamespace(teacher="features without a row", objective=SimpleNamespace(feature_weight=0))
    assert training.open_teacher(job, "cpu") is None


def test_a_training_that_diverges_is_not_begun_again(monkeypatch):
    """Ray Train begins again what raises; what it comes to would be the same."""

    def diverge(*_: object, **__: object) -> None:
        raise loop.Diverged("step 7 of 12: the loss is not finite")

    for name in ("load_student", "open_sampler", "open_teacher"):
        monkeypatch.setattr(training, name, lambda *_: None)
    monkeypatch.setattr(training, "Progress", lambda *_: SimpleNamespace(log=None, save=None))
    monkeypatch.setattr(training, "choose_device", lambda cluster: "cpu")
    monkeypatch.setattr(training, "turn", lambda *_: (None, None))
    monkeypatch.setattr(training, "resumed", lambda job: nullcontext())
    monkeypatch.setattr(ray.train.collective, "barrier", lambda: None)
    monkeypatch.setattr(loop, "fit", diverge)
    job = SimpleNamespace(seed=0, cluster=Cluster(), objective=None, settings=SimpleNamespace(learning_rate=0.5))
    said = training.train_rank(job)
    assert said == "step 7 of 12: the loss is not finite; lower learning_rate, which is 0.5"
