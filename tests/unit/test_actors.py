"""What an actor of the pool does with its work, without Ray around it."""

import pickle
from functools import partial
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray
import torch

from stages.contract import params
from stages.contract.params import Cluster
from stages.distributed.actors import Finished, Models, Work, _Worker, packed
from stages.distributed.embedding import pool_of
from stages.model.encoder import Encoder


def threads(models) -> int:
    return torch.get_num_threads()


def worker_of(work: list[Work], *, progress=None, alone: int, cluster: Cluster) -> tuple[_Worker, pa.Table]:
    """An actor that is there for this work, and the work in one table."""
    calls, tables = packed(work)
    return _Worker(progress, alone, calls, SimpleNamespace(uri=""), {}, cluster), pa.concat_tables(tables)


def results(done: pa.Table) -> list:
    return [pickle.loads(one) for one in done["result"].to_pylist()]


def test_a_timing_has_all_cores_of_the_machine(monkeypatch):
    monkeypatch.setattr(params, "cores", lambda: 6)
    before = torch.get_num_threads()
    worker, table = worker_of([Work(threads, {})] * 2, alone=1, cluster=Cluster(actors=3))
    try:
        torch.set_num_threads(2)  # as the encoder of one of three actors does
        assert results(worker(table)) == [2, 6]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("gpus", "precision", "device", "asked"),
    [
        (0, "auto", "cpu", "fp32"),
        (0, "bf16", "cpu", "bf16"),
        (1, "auto", "cuda", "bf16"),
        (0.5, "fp32", "cuda", "fp32"),
    ],
)
def test_an_actor_computes_where_the_settings_say_whatever_it_sees(monkeypatch, gpus, precision, device, asked):
    """A GPU is visible: without one of its own an actor leaves it alone, and has its share of the cores."""
    before = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(Encoder, "load", lambda model, layers, *chosen: (str(model), layers, *chosen))
    cluster = Cluster(actors=2, gpus_per_worker=gpus, precision=precision, threads=before + 1)
    try:
        models = Models(SimpleNamespace(uri=""), {"student": lambda: "place"}, cluster)
        assert models.encoder("student") == ("place", None, asked, device)
        assert torch.get_num_threads() == (before if gpus else before + 1)
    finally:
        torch.set_num_threads(before)


def test_what_is_left_is_known_by_place():
    progress = Finished(4)
    for place in (0, 2, 2):
        progress.note(place)
    assert [progress.before(place) for place in range(5)] == [0, 0, 1, 1, 2]


def test_work_is_noted_before_its_result_is_out(monkeypatch):
    """Ray Data ends an actor that has no more to do, and with it what it has sent but not yet handed over."""
    waited_for = []
    monkeypatch.setattr(ray, "get", waited_for.append)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(current_actor="this one"))
    progress = SimpleNamespace(
        note=SimpleNamespace(remote=lambda place: f"note of {place}"),
        enter=SimpleNamespace(remote=lambda actor: f"{actor} is there"),
    )
    worker, table = worker_of([Work(threads, {})] * 2, progress=progress, alone=2, cluster=Cluster(actors=2))
    worker(table)
    assert waited_for == ["this one is there", "note of 0", "note of 1"]


def length(models, *, common: bytes, more: int) -> int:
    return len(common) + more


def test_what_work_has_in_common_is_sent_once_and_not_with_each():
    """As a manifest of thousands of files is, in the work of thousands of shards."""
    call, other = partial(length, common=bytes(100_000)), partial(length, common=b"")
    work = [*(Work(call, {"more": more}) for more in range(3)), Work(other, {"more": 7})]
    worker, table = worker_of(work, alone=4, cluster=Cluster())
    assert table.nbytes < 1000 and list(worker.calls.values()) == [call, other]
    assert results(worker(table)) == [100_000, 100_001, 100_002, 7]


def test_an_actor_is_sent_one_thing_at_a_time(monkeypatch):
    """Else a timing can wait in it for work that it was sent too and has not begun."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4})
    strategy = pool_of(Cluster(actors=2))["compute"]
    assert (strategy.max_size, strategy.max_tasks_in_flight_per_actor) == (2, 1)
