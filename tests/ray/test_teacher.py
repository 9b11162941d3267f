"""The teacher on a real cluster: a public embedder is tuned on the data, read with its own prompt, and learnt from.

The embedder is a small Qwen3-VL-Embedding of random weights: its template and last token, and none of ours.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.artifacts.store import Artifact, Store
from stages import backbone, distill, features, train
from stages.contract.params import Cluster
from stages.distributed import student
from stages.distributed.rotation import read_rotation
from stages.export.parity import MINIMUM_COSINE
from stages.model import checkpoint
from stages.model.encoder import Encoder
from tests.support import begin, rows
from tests.tiny_models import EMBEDDER, depths, embedder_state, write_embedder
from tests.training_world import write_ingest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("shared_cluster")]
SIDES = ("query", "candidate")
DEPTH, KEPT = depths("qwen3_vl")
SHORT = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def home(shared_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the embedder, `model`, and a store."""
    directory = tmp_path_factory.mktemp("teacher")
    write_embedder(directory / "model")
    return directory


@pytest.fixture(scope="module")
def inputs(home: Path) -> dict[str, Artifact]:
    """The ingested pairs."""
    return {"ingest": write_ingest(home / "store", validation=6)}


def run(home: Path, stage, inputs: dict[str, Artifact], **sections) -> tuple[Artifact, dict]:
    """Runs a stage and commits what it wrote."""
    name = stage.__name__.rpartition(".")[2]
    context = replace(begin(home / "store", name, inputs, seed=0, **sections), cluster=Cluster(threads=1, log_every=1))
    metrics = stage.run(context)
    return Store(home / "store").commit(context.output, {"metrics": metrics}, replace=True), metrics


def from_outside(home: Path, **given) -> backbone.Params:
    limits = {"min_pixels": 32 * 32, "max_pixels": 64 * 64, "max_text_characters": 160}
    return backbone.Params(source="local", model=str(home / "model"), readout=EMBEDDER, **limits, **given)


@pytest.fixture(scope="module")
def tuned(home: Path, inputs: dict[str, Artifact]) -> SimpleNamespace:
    """The backbone, tuned with adapters."""
    artifact, metrics = run(home, backbone, inputs, backbone=from_outside(home, tune={**SHORT, "lora": {"rank": 4}}))
    return SimpleNamespace(artifact=artifact, metrics=metrics, directory=checkpoint.directory(artifact))


def test_a_tuned_backbone_is_a_stock_checkpoint_of_full_depth_with_its_own_limits(home, tuned):
    before, after = (load_file(place / "model.safetensors") for place in (home / "model", tuned.directory))
    changed = {name for name, weight in after.items() if not np.array_equal(weight, before.get(name, weight))}
    assert len(changed) == DEPTH * 7 and all(".language_model.layers." in name for name in changed)
    assert before.keys() - after.keys() <= {"lm_head.weight"}
    assert (tuned.metrics["source"], tuned.metrics["layers"], tuned.metrics["step"]) == ("local", DEPTH, 2)
    assert Encoder.load(tuned.directory).collator.max_text_characters == 160


@pytest.fixture(scope="module")
def read(home: Path, inputs: dict[str, Artifact], tuned: SimpleNamespace) -> dict[bool, Artifact]:
    """The tuned teacher's states: as they are, and of the best layer, to be compared without their mean."""
    given = {**inputs, "backbone": tuned.artifact}
    asked = {False: features.Params(centre=False), True: features.Params(layer="auto", centre=True)}
    reads = {"distill": SimpleNamespace(draws=8, smallest_task=0), "train": SimpleNamespace(taught=True)}
    return {
        centre: run(home / f"{centre}", features, given, features=params, **reads)[0]
        for centre, params in asked.items()
    }


@pytest.mark.parametrize(
    ("side", "identity", "text", "told"),
    [("query", "9:0", "Find number 0.", "Find it."), ("candidate", "9:1", "Thing number 1.", None)],
)
def test_states_are_those_that_the_embedders_own_code_reads(home, tuned, read, side, identity, text, told):
    (state,) = (row["vector"] for row in rows(read[False], "features") if (row["side"], row["id"]) == (side, identity))
    assert state == pytest.approx(embedder_state(home / "model", text, told, tuned.directory), abs=5e-3)


def test_the_mean_of_the_states_is_kept_beside_them_and_both_sides_weigh_the_same_in_it(read):
    states = {side: [row["vector"] for row in rows(read[True], "features") if row["side"] == side] for side in SIDES}
    means = [np.mean(np.array(states[side], np.float64), axis=0) for side in SIDES]
    assert read[True].read_json("features.json")["mean"] == pytest.approx(np.mean(means, axis=0), abs=1e-9)
    assert "mean" not in read[False].read_json("features.json")


def test_the_layer_that_finds_best_without_its_mean_teaches_and_the_curve_says_so(read):
    curve, layer = read[True].read_json("depth_curve.json"), read[True].read_json("features.json")["layer"]
    assert curve["teacher"] == {"layer": layer, "centred": True}
    assert curve["layers"][layer - 1]["hit@5 centred"] == max(entry["hit@5 centred"] for entry in curve["layers"])
    assert read[False].read_json("depth_curve.json")["teacher"] == {"layer": DEPTH, "centred": False}


@pytest.fixture(scope="module")
def distilled(home: Path, inputs: dict[str, Artifact], tuned: SimpleNamespace, read: dict) -> dict[str, tuple]:
    """Students after one step towards the teacher alone."""

    def towards(name: str, centre: bool, teacher: str, turn: bool = False) -> tuple[Artifact, dict]:
        given = {**inputs, "backbone": tuned.artifact, "features": read[centre]}
        asked = {**SHORT, "steps": 1, "contrastive_weight": 0, "feature_weight": 1, "teacher": teacher, "turn": turn}
        return run(home / name, distill, given, student=distill.Student(layers=KEPT), distill=distill.Params(**asked))

    return {
        "as it is": towards("as it is", False, "cached"),
        "cached": towards("cached", True, "cached"),
        "live": towards("live", True, "live"),
        "turned": towards("turned", True, "cached", turn=True),
    }


def test_a_student_is_compared_with_the_states_without_their_mean_be_they_cached_or_live(distilled):
    distances = {name: metrics["feature cosine"] for name, (_, metrics) in distilled.items()}
    assert distances["live"] == pytest.approx(distances["cached"], rel=5e-3)
    assert abs(distances["as it is"] - distances["cached"]) > 0.05


def test_a_student_keeps_the_embedders_prompt_and_stock_loaders_agree(distilled):
    artifact, _ = distilled["cached"]
    model, found = checkpoint.directory(artifact), artifact.read_json("parity.json")["loaders"]
    assert checkpoint.kept_read_out(model) == EMBEDDER and Encoder.load(model).layers == KEPT
    template = (model / "chat_template.jinja").read_text()
    assert "Represent the user's input." in template and '<|endoftext|>" -}}' in template
    assert min(found[name]["cosine"] for name in ("puma", "transformers AutoModel")) >= MINIMUM_COSINE


def test_a_teacher_is_turned_once_and_its_student_is_taught_on_in_the_same_directions(home, inputs, read, distilled):
    artifact, metrics = distilled["turned"]
    turn = read_rotation(artifact)
    assert metrics["turned"] and np.abs(turn @ turn.T - np.eye(len(turn))).max() < 1e-5
    assert metrics["feature cosine"] < distilled["cached"][1]["feature cosine"] - 0.02  # without a turn they are equal
    assert not distilled["cached"][1]["turned"] and read_rotation(distilled["cached"][0]) is None
    given = {**inputs, "distill": artifact, "features": read[True]}
    asked = {**SHORT, "feature_weight": 0.5, "check_loaders": False, "turn": False}  # it is turned already
    trained, told = run(home / "on", train, given, train=train.Params(**asked))
    assert np.array_equal(read_rotation(trained), turn)
    assert told["feature cosine"] < metrics["feature cosine"] + 0.05
    assert told["loss"] == pytest.approx(told["contrastive"] + 0.5 * told["feature cosine"], rel=1e-4)


def test_a_killed_training_goes_on_with_the_rotation_that_it_began_with(home, inputs, tuned, read, monkeypatch):
    given = {**inputs, "backbone": tuned.artifact, "features": read[True]}

    def trained(name: str, steps: int) -> Artifact:
        asked = {**SHORT, "steps": steps, "contrastive_weight": 0, "feature_weight": 1}
        sections = {"student": distill.Student(layers=KEPT), "distill": distill.Params(**asked)}
        return run(home / name, distill, given, **sections)[0]

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # the student has moved by two steps, and is not exported
        patch.setattr(student, "where_models_run", kill)
        with pytest.raises(KeyboardInterrupt):
            trained("killed", 2)
    assert len(list((home / "killed").rglob("checkpoint_*/weights"))) == 1
    kept = [np.load(path) for path in (home / "killed").rglob("checkpoint_*/rotation.npy")]
    assert kept and np.array_equal(read_rotation(trained("killed", 4)), kept[-1])


def test_a_teacher_whose_directions_do_not_matter_is_not_turned():
    assert all(not distill.Params(feature_loss=loss).turns for loss in ("kl", "relational"))
    assert all(distill.Params(feature_loss=loss).turns for loss in ("cosine", "mse"))
    assert not distill.Params(feature_weight=0).turns
