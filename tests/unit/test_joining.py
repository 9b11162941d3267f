"""What a run needs is compared with the cluster that it joins before anything is computed, in one line."""

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from pipeline.artifacts.store import open_store
from pipeline.config.sections import Config
from pipeline.execution import joining
from pipeline.execution.memory import Sizes
from stages.contract.context import InputError
from tests.unit.test_needs import decided

GIB = 2**30


def node(name: str, **resources: float) -> dict:
    return {"NodeID": name, "Alive": True, "NodeManagerAddress": f"10.0.0.{name}", "Resources": resources}


class Joined:
    """A run in a made-up cluster: what it says, and which nodes would see its store."""

    def __init__(self, tmp_path: Path) -> None:
        self.nodes, self.blind, self.lines, self.asked = [node("1", CPU=4)], set(), [], 0
        self.run = SimpleNamespace(id="run", store=open_store(str(tmp_path / "store")), say=self.lines.append)

    def ask(self, nodes, question):
        self.asked += 1
        return {one["NodeManagerAddress"]: question() and one["NodeID"] not in self.blind for one in nodes}

    def check(self, running=("ingest", "train"), **sections) -> None:
        config = Config.model_validate({"store": self.run.store.uri} | sections)
        joining.check_cluster(config, decided(backbone="skipped", **dict.fromkeys(running, "run")), self.run)


@pytest.fixture
def joined(tmp_path, monkeypatch) -> Joined:
    made = Joined(tmp_path)
    made.run.store.write_run({"id": "run"})
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "nodes", lambda: [*made.nodes, {"Alive": False}])
    monkeypatch.setattr(joining, "driver_node", lambda: "1")
    monkeypatch.setattr(joining, "ask", made.ask)
    return made


def test_a_store_in_a_directory_is_refused_unless_every_node_sees_what_the_driver_wrote_there(joined):
    joined.blind = {"2"}
    joined.check()
    assert joined.asked == 0  # one node
    joined.nodes.append(node("2", CPU=4))
    with pytest.raises(InputError, match=r"^store=/\S+ is not the same .* 1 of 2 don't see it, first 10\.0\.0\.2"):
        joined.check()
    joined.check(store="s3://bucket/store")
    joined.blind = set()
    joined.check()
    assert joined.asked == 2


def test_outside_a_cluster_nothing_is_asked(joined, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(ray, "nodes", lambda: pytest.fail("asked"))
    joined.check()


@pytest.mark.parametrize(
    ("running", "sections", "what"),
    [
        ("ingest", {"data": {"kind": "mbeir", "path": "/data"}}, "data.path=/data"),
        ("ingest", {}, "data.kind=scenes"),
        ("distill.data", {"distill": {"data": {"kind": "corpus", "path": "texts"}}}, "distill.data.path=texts"),
        ("index", {"index": {"corpus": "/shop"}, "student": {"model": "m"}}, "index.corpus=/shop"),
    ],
)
def test_a_disk_is_read_by_a_cpu_of_the_drivers_node(joined, running, sections, what):
    joined.nodes = [node("1", memory=1), node("2", CPU=8)]
    bucket = {"store": "s3://bucket/store"}
    with pytest.raises(InputError, match=f"^{what} lies on the driver's node, which gives Ray no CPU"):
        joined.check([running], **sections, **bucket)
    joined.check(["train"], **bucket)
    joined.check(["ingest"], data={"kind": "mbeir", "path": "s3://bucket/data"}, **bucket)
    joined.nodes[0] = node("1", CPU=1)
    joined.check([running], **sections, **bucket)


def test_fewer_gpus_are_told_in_one_line_of_the_stages_that_run(joined):
    asked = {"workers": 4, "actors": 2, "gpus_per_worker": 1}
    joined.nodes = [node("1", CPU=4), node("2", CPU=4, GPU=1)]
    joined.check(["ingest"], cluster=asked)
    joined.check(["ingest", "train"], cluster=asked)
    (line,) = joined.lines
    assert line.startswith("warning: cluster.workers=4 with cluster.gpus_per_worker=1 ask for 4 GPUs, the cluster")
    joined.nodes.append(node("3", GPU=3))
    joined.check(["ingest", "train"], cluster=asked)
    assert len(joined.lines) == 1


@pytest.mark.parametrize(
    ("asked", "nodes", "said"),
    [
        (
            {"cpus_per_worker": 64},
            [{"CPU": 12}] * 2,
            "cluster.cpus_per_worker=64 is one process, and no node has that (at most 12 CPUs)",
        ),
        (
            {"gpus_per_worker": 2},
            [{"CPU": 12, "GPU": 1}] * 8,
            "cluster.gpus_per_worker=2 with cluster.cpus_per_worker=1 is one process, and no node has that (at most 1",
        ),
        ({"gpus_per_worker": 1, "cpus_per_worker": 8}, [{"CPU": 4, "GPU": 4}, {"CPU": 16}], "no node has that"),
        (
            {"workers": 3, "cpus_per_worker": 8},
            [{"CPU": 12}, {"CPU": 8}],
            "cluster.workers=3 with cluster.cpus_per_worker=8 ask for 24 CPUs, the cluster has 20 now",
        ),
        ({"workers": 2, "cpus_per_worker": 8}, [{"CPU": 16}], ""),
        ({"gpus_per_worker": 2, "workers": 2}, [{"CPU": 12, "GPU": 2}] * 2, ""),
    ],
)
def test_a_process_that_fits_on_no_node_and_too_few_cpus_are_told_of_a_training(joined, asked, nodes, said):
    joined.nodes = [node("1", CPU=0), *(node(str(number), **one) for number, one in enumerate(nodes, 2))]
    joined.check(["ingest"], cluster=asked)
    assert joined.lines == []
    joined.check(["train"], cluster=asked)
    assert len(joined.lines) == bool(said) and said in "".join(joined.lines)


def test_memory_is_compared_with_what_the_nodes_have(joined, monkeypatch):
    monkeypatch.setattr(joining, "sizes_of", lambda *given, **more: Sizes({0: 10**9}, 0, 0))
    joined.nodes = [node("1", memory=64 * GIB), node("2", CPU=4, memory=10 * GIB, object_store_memory=4 * GIB)]
    asked = {"student": {"layers": 1}, "store": "s3://bucket/store"}
    with pytest.raises(
        InputError, match=r"^train: 1 × 1\.00 billion .* are 16\.0 GB, the cluster's node has 15\.0 GB"
    ):
        joined.check(["train"], **asked)
    joined.nodes.append(node("3", CPU=4, memory=15 * GIB))
    joined.check(["train"], **asked)
    joined.nodes.pop()
    with pytest.raises(InputError, match=r"^train: 2 × .* are 24\.0 GB, the cluster's node has 15\.0 GB"):
        joined.check(["train"], **asked, cluster={"workers": 2})


def test_sizes_are_those_of_the_backbone_that_the_run_takes_from_the_store_and_of_none_where_no_model_runs(
    joined, monkeypatch
):
    asked = []
    monkeypatch.setattr(joining, "sizes_of", lambda backbone, artifact, ask_hub: asked.append(artifact))
    attempt = joined.run.store.begin("backbone", "0" * 16)
    kept = joined.run.store.commit(attempt, {"metrics": {}})
    config = Config.model_validate({"store": joined.run.store.uri})
    joining.check_cluster(config, decided(ingest="run", backbone="cached", train="skipped"), joined.run)
    assert asked == []
    joining.check_cluster(config, decided(backbone="cached", train="run"), joined.run)
    joining.check_cluster(config, decided(backbone="run", train="run"), joined.run)
    joining.check_cluster(config, decided(index="run"), joined.run)  # of a corpus
    assert [artifact and artifact.uri for artifact in asked] == [kept.uri, None]


def test_gpus_are_asked_for_their_memory_where_all_are_there(joined, monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 1024\necho 2048\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert joining.gpu_memory() == [GIB, 2 * GIB]
    monkeypatch.setattr(joining, "ask", lambda nodes, question: {one["NodeID"]: question() for one in nodes})
    joined.nodes = [node("1", CPU=4), node("2", CPU=4, GPU=2)]
    room = joining.room_of(Config.model_validate({"cluster": {"gpus_per_worker": 1}}), joined.nodes)
    assert room.places == [GIB, 2 * GIB] and room.one == "the largest GPU"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert joining.gpu_memory() == []
