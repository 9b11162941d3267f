"""Nodes that share nothing but a bucket, two and then three: `python -m pytest tests/nodes -m nodes`, as root.

A worker that was handed a path of the driver's finds nothing there. The driver's own data, a checkpoint from outside
and a corpus lie in the head's home directory, which no other node sees.
"""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import stages
from tests.corpus_files import write_pictures
from tests.nodes.world import CREDENTIALS, HOME, Nodes, nodes
from tests.support import ROOT
from tests.tiny_models import write_checkpoint

TOOLS = ("ip", "unshare", "nsenter")
pytestmark = [
    pytest.mark.nodes,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, TOOLS)), reason="needs root, and iproute2"),
]
SPREAD = ["cluster.workers=2", "cluster.cpus_per_worker=2", "cluster.actors=2", "cluster.checkpoint_every=3"]
"""A rank takes more than half of a node's CPUs, so that each lands on another node."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    directory = tmp_path_factory.mktemp("nodes")
    teacher, pictures = write_checkpoint(directory / "teacher", "qwen2_vl"), write_pictures(directory / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with nodes(2, directory, {"teacher": teacher, "pictures": pictures}) as started:
            yield started


def nodes_with_ranks(cluster: Nodes) -> set[int]:
    """The nodes on which processes of trainings ran, by the names of their actors in Ray's logs."""
    found = "grep -rls 'actor_name:RayTrainWorker' /tmp/ray/session_latest/logs || true"
    return {node for node in range(len(cluster.processes)) if cluster.inside(node, found).strip()}


def test_a_node_sees_nothing_of_another_or_of_this_machine(cluster: Nodes, tmp_path: Path) -> None:
    assert {"pictures", "teacher"} <= set(cluster.inside(0, f"ls {HOME}").split())
    assert "teacher" not in cluster.inside(1, f"ls {HOME}")
    hidden = (tmp_path, ROOT / "stages" / "train.py", Path(stages.__file__))
    assert not any(cluster.inside(node, f"ls {place} 2> /dev/null || true") for node in range(2) for place in hidden)


def test_a_run_from_made_pictures_to_a_report(cluster: Nodes) -> None:
    method = ["distill.lora.rank=8", "train.mine.per_query=2", "train.mine.margin=1", "features.layer=auto"]
    said = cluster.run("--recipe", "smoke", *SPREAD, "cluster.zero_stage=2", *method)
    assert "evaluate: done" in said
    assert nodes_with_ranks(cluster) == {0, 1}
    report = cluster.store.objects.files("evaluate")
    assert any(entry.path.endswith("report.html") for entry in report)


def test_a_checkpoint_that_only_the_driver_has_teaches(cluster: Nodes) -> None:
    local = ["backbone.source=local", f"backbone.model={HOME}/teacher", "backbone.max_pixels=3136"]
    asked = ["student.layers=auto", "distill.teacher=live", "train.lora.rank=4", "train.feature_weight=0.1"]
    assert "evaluate: done" in cluster.run("--recipe", "smoke", *SPREAD, *local, *asked)


def test_pictures_that_only_the_driver_has_are_indexed_by_a_student_of_the_store(cluster: Nodes) -> None:
    key = next(iter(cluster.store.manifests()["train"]))
    copied = cluster.submit("python", "-c", copy_of_student(cluster, key))
    student = copied.split("student lies at ")[1].split()[0]
    indexed = cluster.run(f"index.corpus={HOME}/pictures", f"student.model={student}", "cluster.actors=2")
    assert "index: done" in indexed


def test_a_third_node_that_joins_in_the_middle_takes_a_third_of_the_work(cluster: Nodes) -> None:
    """On two nodes there is no room for three ranks: the training waits for the third one."""
    before = set(cluster.store.manifests()["ingest"])
    three = [*SPREAD, "cluster.workers=3", "cluster.actors=3", "seed=3"]
    three += [f"{section}.batch_size=6" for section in ("backbone.tiny", "distill", "train")]
    with ThreadPoolExecutor() as pool:
        run = pool.submit(cluster.run, "--recipe", "smoke", "--until", "features", *three)
        while not run.done() and set(cluster.store.manifests()["ingest"]) == before:
            time.sleep(1)
        cluster.add({})
        assert "features: done" in run.result()
    assert nodes_with_ranks(cluster) == {0, 1, 2}


def copy_of_student(cluster: Nodes, key: str) -> str:
    """Python that has the head fetch a student, as `student.model=models:/NAME@ALIAS` does from a registry."""
    opened = f"open_store('s3://bucket/store', '{cluster.bucket}').artifact('train', '{key}')"
    return f"from pipeline.artifacts.store import open_store; print('student lies at', {opened}.local('model'))"
