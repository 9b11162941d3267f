"""A teacher from outside on a real cluster: its vectors stand in for the backbone's, and students learn them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.artifacts.store import Artifact, Store, open_store
from stages import distill, features, ingest
from stages.contract.context import StageError
from stages.contract.params import Cluster
from tests import training_world
from tests.corpus_files import write_csv
from tests.outside_world import PROMPTS, WIDTH, drawn_vectors, write_static, write_vectors
from tests.search_world import write_ingest, write_model
from tests.support import begin, rows
from tests.training_world import PAIRS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("shared_cluster")]
FLOATS = pa.list_(pa.float32())
DIM = 32
"""Values of the student's vectors."""
SHORT = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3, "contrastive_weight": 0, "feature_weight": 1}


@pytest.fixture(scope="module")
def world(shared_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A backbone, a validation split, pairs with pictures to distil on, and a corpus of texts."""
    home = tmp_path_factory.mktemp("outside")
    store = open_store(str(home / "store"))
    inputs = {"ingest": write_ingest(store, "val"), "backbone": write_model(store, "backbone", 2, 1)}
    csv = write_csv(home / "texts.csv", [["text"], *([f"Thing number {number}"] for number in range(20))])
    corpus, _ = run(home / "corpus", ingest, {}, "distill.data", data=ingest.OwnData(kind="corpus", path=str(csv)))
    unlabelled = {**inputs, "ingest": corpus}  # without the depth curve, which has nothing to do with the teacher
    inputs["distill.data"] = training_world.write_ingest(home / "pairs")
    return SimpleNamespace(inputs=inputs, unlabelled=unlabelled, ids=[f"9:{number}" for number in range(PAIRS)])


def run(home: Path, stage, inputs: dict[str, Artifact], name: str = "", **sections) -> tuple[Artifact, dict]:
    """Runs a stage and commits what it wrote."""
    name = name or stage.__name__.rpartition(".")[2]
    context = begin(home, name, inputs, seed=0, **sections)
    context = replace(context, cluster=Cluster(threads=1, log_every=1, rows_per_shard=8))
    metrics = stage.run(context)
    return Store(home).commit(context.output, {"metrics": metrics}, replace=True), metrics


def read(home: Path, inputs: dict[str, Artifact], teacher: Path, draws: int = 100, **more) -> tuple[Artifact, dict]:
    asked = features.Params(teacher=str(teacher), curve_queries=4, **more)
    others = {"distill": SimpleNamespace(draws=draws, smallest_task=0), "train": SimpleNamespace(taught=False)}
    return run(home, features, inputs, features=asked, **others)


def learn(home: Path, inputs: dict[str, Artifact], **asked) -> dict:
    """The measures of a student."""
    params = distill.Params(**{**SHORT, **asked})
    return run(home, distill, inputs, student=distill.Student(layers=1), distill=params)[1]


def stored(artifact: Artifact) -> dict[tuple[str, str], list[float]]:
    return {(row["side"], row["id"]): row["vector"] for row in rows(artifact, "features")}


@pytest.mark.parametrize(("width", "centre", "loss"), [(DIM - 12, False, "kl"), (DIM + 16, True, "cosine")])
def test_vectors_of_a_narrower_and_of_a_wider_teacher_are_read_and_learnt(world, tmp_path, width, centre, loss):
    given = {row["id"]: row["vector"] for row in drawn_vectors(world.ids, width)}
    table = [{"id": identity, "vector": vector} for identity, vector in given.items()]
    teacher = write_vectors(tmp_path / "vectors" / "a.parquet", table, FLOATS).parent
    made, metrics = read(tmp_path, world.inputs, teacher, centre=centre)
    known, found = made.read_json("features.json"), stored(made)
    assert (known["teacher"], known["dim"]) == ("outside", width) and "layer" not in known
    assert known["rows"] == metrics["rows"] == len(found) == 2 * PAIRS
    assert {side for side, _ in found} == {"query", "candidate"}
    for (_, identity), vector in found.items():
        assert vector == pytest.approx(given[identity], abs=3e-3)
    assert (len(known["mean"]) == width) if centre else "mean" not in known
    curve = made.read_json("depth_curve.json")
    assert [entry["layers"] for entry in curve["layers"]] == [1, 2]
    assert curve["teacher"] == {"teacher": "outside", "centred": centre}
    inputs = {**world.inputs, "features": made}
    measures = learn(tmp_path / loss, inputs, feature_loss=loss)
    assert measures["turned"] == (loss == "cosine") and measures["step"] == 2
    assert np.isfinite(measures[f"feature {loss}"])
    with pytest.raises(StageError, match=rf"vectors have {width} values and the student's {DIM}, which mse can't"):
        learn(tmp_path / "mse", inputs, feature_loss="mse", turn=False)


def test_a_model_teaches_on_texts_and_a_student_learns_from_it(world, tmp_path):
    from sentence_transformers import SentenceTransformer

    teacher = write_static(tmp_path / "model", PROMPTS)
    made, metrics = read(tmp_path, world.unlabelled, teacher)
    assert metrics["teacher"] == "outside" and made.read_json("features.json")["dim"] == WIDTH
    model, found = SentenceTransformer(str(teacher), device="cpu"), stored(made)
    asked = {row["qid"]: row["text"] for row in rows(world.unlabelled["ingest"], "queries")}
    assert len(asked) == 20 and len(found) == 40
    for identity, text in asked.items():
        assert found["query", identity] == pytest.approx(model.encode(f"find {text}"), abs=3e-3)
    measures = learn(tmp_path / "student", {**world.unlabelled, "features": made})
    assert measures["turned"] and np.isfinite(measures["feature cosine"])


@pytest.mark.parametrize("kind", ["model", "vectors"])
def test_where_the_teacher_weighs_nothing_none_of_its_rows_are_read(world, tmp_path, kind):
    table = write_vectors(tmp_path / "a.parquet", drawn_vectors(["not", "among", "them"], WIDTH), FLOATS)
    teacher = write_static(tmp_path / "model") if kind == "model" else table
    made, metrics = read(tmp_path / "read", world.unlabelled, teacher, draws=0)
    assert metrics["rows"] == 0 and stored(made) == {}


def test_pictures_and_missing_vectors_end_the_stage_with_one_line(world, tmp_path):
    with pytest.raises(Exception, match=r"reads texts alone, and 9:\d+ has a picture") as raised:
        read(tmp_path / "pictures", world.inputs, write_static(tmp_path / "model"))
    from pipeline.execution.errors import explain

    assert explain(raised.value).startswith("features.teacher=")
    some = write_vectors(tmp_path / "some.parquet", drawn_vectors(world.ids[:5], 4), FLOATS)
    with pytest.raises(StageError, match=r"has no vector of 19 of 24 rows on the query side, for example 9:5; add"):
        read(tmp_path / "missing", world.inputs, some)
