"""Nodes that share nothing but a bucket, two and then three: `python -m pytest tests/nodes -m nodes`, as root.

A worker that was handed a path of the driver's finds nothing there. The driver's own data, a checkpoint and vectors
from outside lie in the head's home directory, which no other node sees. What runs is in `tests.nodes.runs`; a student
is indexed with that the first run has registered.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import stages
from pipeline.tracking.link import REFUSED, UNREACHABLE
from stages.data.sources import pairs, records, unlabelled
from stages.data.sources.chunks import file_chunks
from tests.corpus_files import write_pictures
from tests.mbeir_made import unpack, write_mbeir
from tests.nodes.outcomes import Outcome, keep
from tests.nodes.runs import CHECKPOINT, CORPUS, DEMO, HOME, JOINED, SOURCES, STEPS, Run
from tests.nodes.world import Nodes, Ran, nodes
from tests.outside_world import drawn_vectors, write_vectors
from tests.s3.servers import CREDENTIALS, upload
from tests.support import ROOT
from tests.tiny_models import write_checkpoint
from tests.tracking_server import curves

TOOLS = ("ip", "unshare", "nsenter")
pytestmark = [
    pytest.mark.nodes,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, TOOLS)), reason="needs root, and iproute2"),
]
GIVEN = {"teacher", "pictures", "vectors"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    directory = tmp_path_factory.mktemp("nodes")
    teacher, pictures = write_checkpoint(directory / "teacher", "qwen2_vl"), write_pictures(directory / "pictures")
    vectors = drawn_vectors(ids_of(pictures, directory / "work"), width=48)
    write_vectors(directory / "vectors" / "some.parquet", vectors, pa.list_(pa.float32()))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        given = {"teacher": teacher, "pictures": pictures, "vectors": directory / "vectors"}
        with nodes(2, directory, given) as started:
            yield started


def ids_of(corpus: Path, work: Path) -> list[str]:
    """The ids that ingest gives the rows of a corpus without labels, as queries and as candidates."""
    laid = records.lay_out(corpus, records.find(corpus, "", bare=True), work)
    chunks = enumerate(chunk for source in laid.sources for chunk in file_chunks(laid.root, source))
    found: list[str] = []
    for number, chunk in chunks:
        found += pairs.read_queries(laid, number, chunk, unlabelled.as_pair)["qid"].to_pylist()
        found += pairs.read_candidates(laid, number, chunk, unlabelled.as_pair)["did"].to_pylist()
    return found


def done(cluster: Nodes, run: Run, stage: str) -> Ran:
    """What came of a run that ended with `stage`; its row of the table."""
    ran = cluster.run(run)
    assert f"{stage}: done" in ran.said
    assert UNREACHABLE not in ran.said and REFUSED not in ran.said  # by the tracking server
    keep(Outcome(run.name, sorted(ran.trained), sorted(ran.embedded), ran.seconds))
    return ran


def metrics(cluster: Nodes, stage: str) -> list[dict[str, Any]]:
    """The headline numbers of a stage's artifacts."""
    return [manifest["metrics"] for manifest in cluster.store.manifests()[stage].values()]


def test_a_node_sees_nothing_of_another_or_of_this_machine(cluster: Nodes, tmp_path: Path) -> None:
    assert set(cluster.inside(0, f"ls {HOME}").split()) >= GIVEN
    assert not GIVEN & set(cluster.inside(1, f"ls {HOME}").split())
    python = Path(sys.prefix)
    own = [place for place in ROOT.iterdir() if not python.is_relative_to(place)]  # a driver's store among them
    hidden = " ".join(map(str, (tmp_path, stages.__file__, *own)))
    assert ROOT / "stages" in own
    assert [cluster.inside(node, f"ls -d {hidden} 2> /dev/null || true") for node in range(2)] == ["", ""]


def test_the_demo_with_all_of_the_method_trains_and_embeds_on_both_nodes_and_is_tracked(cluster: Nodes) -> None:
    ran = done(cluster, DEMO, "evaluate")
    assert ran.trained == ran.embedded == {0, 1}
    assert any(entry.path.endswith("report.html") for entry in cluster.store.objects.files("evaluate"))
    assert "registered: models:/puma@champion is version 1" in ran.said
    for stage in ("backbone", "distill", "train"):
        (told,) = curves(cluster.tracking, stage)
        assert set(told) == set(range(1, STEPS + 1))


def test_pictures_that_only_the_driver_has_are_indexed_by_the_registered_student(cluster: Nodes) -> None:
    done(cluster, CORPUS, "index")


def test_a_checkpoint_that_only_the_driver_has_teaches(cluster: Nodes) -> None:
    assert done(cluster, CHECKPOINT, "evaluate").trained == {0, 1}


def test_sources_in_the_bucket_and_a_corpus_and_a_teacher_that_only_the_driver_has(
    cluster: Nodes, tmp_path: Path
) -> None:
    counts = write_mbeir(tmp_path / "mbeir", 300)
    unpack(tmp_path / "mbeir")
    upload(cluster.bucket, tmp_path / "mbeir", "mbeir")
    ran = done(cluster, SOURCES, "evaluate")
    assert ran.trained == ran.embedded == {0, 1}
    asked = sum(counts[split] for split in ("train", "val", "test"))
    assert asked in [one["queries"] for one in metrics(cluster, "ingest")]
    (read,) = [one for one in metrics(cluster, "features") if one.get("teacher") == "outside"]
    (corpus,) = metrics(cluster, "distill.data")
    assert read["rows"] == corpus["queries"] + corpus["candidates"] == 10  # four pictures, and a line of text


def test_a_third_node_that_joins_in_the_middle_takes_a_third_of_the_work(cluster: Nodes) -> None:
    """On two nodes there is no room for three ranks: the training waits for the third one."""
    before = set(cluster.store.manifests()["ingest"])
    with ThreadPoolExecutor() as pool:
        run = pool.submit(done, cluster, JOINED, "features")
        while not run.done() and set(cluster.store.manifests()["ingest"]) == before:
            time.sleep(1)
        cluster.add({})
        ran = run.result()
    assert ran.trained == ran.embedded == {0, 1, 2}
