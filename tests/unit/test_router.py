"""Both models of an asymmetric index in one directory: sentence-transformers reads each as the pipeline does."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from pipeline.retriever import export_router
from stages.contract.context import InputError
from stages.export.loaders import run_stock_loaders
from stages.export.parity import MINIMUM_COSINE, samples
from stages.export.router import LOADER, router_config, write_router
from stages.model.encoder import Encoder
from stages.model.taught import Taught
from tests.search_world import make_world, write_index
from tests.unit.test_model_loaders import student  # noqa: F401 (a fixture)

MEAN = [0.5, -1.0] * 32
"""Of the teacher's states, 64 values of length 8 each: enough to turn every vector."""
ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0].astype(np.float32)


@pytest.fixture(scope="module")
def router(student: Path, tmp_path_factory) -> tuple[Path, dict]:  # noqa: F811
    """A directory of the student for queries and of its source, cut to three of four layers, for documents."""
    directory = tmp_path_factory.mktemp("router") / "made"
    return directory, write_router(directory, student / "model", student / "source", 3, MEAN, ROTATION)


@pytest.mark.slow
def test_queries_are_the_students_and_documents_the_teachers(student: Path, router: tuple[Path, dict]) -> None:  # noqa: F811
    directory, report = router
    inputs = samples()[:3] + samples()[4:]  # all but the text that Puma cuts and stock loaders do not
    found, not_run = run_stock_loaders(directory, inputs, [LOADER])
    assert not_run == {}
    teacher = Encoder.load(student / "source", 3)
    encoders = {True: Encoder.load(student / "model"), False: Taught(teacher, MEAN, ROTATION)}
    for asked, encoder in encoders.items():
        places = [place for place, one in enumerate(inputs) if bool(one.instruction) == asked]
        ours = encoder.encode([inputs[place].row for place in places])
        assert np.abs(found[LOADER][places] - ours).max() < 3e-3
    text = [inputs[0].row]
    models = [*encoders.values(), teacher]
    assert all(float((one.encode(text) * other.encode(text)).sum()) < 0.999 for one, other in combinations(models, 2))
    assert min(report["query"], report["document"]) >= MINIMUM_COSINE


@pytest.mark.slow
def test_the_directory_holds_all_it_needs_and_each_model_loads_by_itself(router: tuple[Path, dict]) -> None:
    directory, _ = router
    assert not [path for path in directory.rglob("*") if path.is_symlink()]
    assert set(path.name for path in directory.iterdir()) == {
        "query", "document", "modules.json", "router_config.json", "config_sentence_transformers.json",
    }  # fmt: skip
    assert Encoder.load(directory / "query").layers == 2 and Encoder.load(directory / "document").layers == 3
    written = json.loads((directory / "router_config.json").read_text())
    assert written == router_config(moved=True) and set(written["structure"]) == {"query", "document"}
    assert all((directory / path).is_dir() for path in written["types"])
    assert "document/2_Motion" in written["structure"]["document"]
    assert not any("Motion" in path for path in router_config(moved=False)["types"])


def test_an_index_of_the_students_own_candidates_has_nothing_to_route(tmp_path: Path) -> None:
    store, artifacts = make_world(tmp_path / "store")
    index = write_index(store, artifacts)
    with pytest.raises(InputError, match=r"the candidates of .*/index/e+ are the student's") as caught:
        export_router(index.uri, str(tmp_path / "router"))
    assert "\n" not in str(caught.value) and not (tmp_path / "router").exists()


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty; give a new directory"):
        write_router(tmp_path, tmp_path / "student", tmp_path / "teacher", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
