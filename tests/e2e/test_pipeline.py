"""One whole run from the command line, with two training workers, and everything that one does with it afterwards."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.corpus_files import write_catalogue

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["ingest", "backbone", "features", "distill", "train", "index", "evaluate"]
ALARMING = re.compile(r"\.cc:\d+|Traceback|Warning|WARN|Exception|has constructor arguments")
"""What a newcomer would take for an error, in the output of a command that did what it should."""
BUSY = re.compile(r".*PYTHON worker processes have been started on node.*\n")
"""Ray says so where processes start slowly, as beside another run."""
METHOD = [
    "distill.lora.rank=8", "distill.chunk=4", "distill.feature_loss=relational", "train.lora.rank=8", "train.chunk=4",
    "train.mine.per_query=2", "train.mine.margin=1", "train.sub_batch=4", "train.matryoshka=[16]",
    "features.layer=auto",
]  # fmt: skip
"""What recipes may switch on, all at once; the run that is killed (`test_kill`) trains without any of it."""


class Command:
    """The command line with a store and a tracking database of its own."""

    def __init__(self, directory: Path):
        self.settings = [f"store={directory / 'store'}", f"tracking_uri=sqlite:///{directory / 'mlflow.db'}"]
        self.directory = directory

    def __call__(self, script: str, *arguments: str, code: int = 0, **variables: str) -> dict:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        environment |= variables
        done = subprocess.run(
            [sys.executable, str(ROOT / "pipeline" / script), *arguments, "--json", *self.settings],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
        )
        assert done.returncode == code, done.stderr
        assert not ALARMING.search(BUSY.sub("", done.stderr)), done.stderr
        return json.loads(done.stdout)

    def run(self, *arguments: str, **variables: str) -> dict:
        settings = ("--recipe", "smoke", "cluster.workers=2", "cluster.zero_stage=2")
        return self("run.py", *settings, *METHOD, *arguments, **variables)


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Command:
    return Command(tmp_path_factory.mktemp("e2e"))


@pytest.fixture(scope="module")
def finished(command) -> dict:
    return command.run()


def test_every_stage_ran_and_left_an_artifact(command, finished):
    assert list(finished["stages"]) == STAGES
    for stage in finished["stages"].values():
        assert stage["action"] == "run" and stage["reasons"] == ["MISSING"] and stage["seconds"] > 0
        assert Path(stage["uri"], "manifest.json").exists()
        assert command("store.py", "show", stage["uri"])["key"] == stage["key"]
    assert finished["stages"]["ingest"]["rejects"] == {"candidates": 0, "queries": 0, "images": 0, "by_reason": {}}


def test_the_metrics_compare_the_student_with_its_teacher(finished):
    student, teacher = finished["metrics"]["student"], finished["metrics"]["teacher"]
    assert (student["layers"], teacher["layers"]) == (2, 4)
    assert student["parameters"] < teacher["parameters"] and student["dim"] == teacher["dim"] == 32
    tasks = student["local"]["tasks"]
    assert len(tasks) == 8
    assert student["local"]["hit@5"] == pytest.approx(np.mean([task["hit@5"] for task in tasks.values()]))
    for model in (student, teacher):
        for pool in ("local", "union"):
            assert 0 <= model[pool]["hit@1"] <= model[pool]["hit@5"] <= model[pool]["hit@10"] <= 1


def test_the_second_run_finds_everything_cached_and_starts_no_ray(command, finished):
    again = command.run(RAY_ADDRESS="127.0.0.1:1")  # where no cluster is: starting or joining one would fail
    assert {stage["action"] for stage in again["stages"].values()} == {"cached"}
    assert {name: stage["key"] for name, stage in again["stages"].items()} == {
        name: stage["key"] for name, stage in finished["stages"].items()
    }
    assert again["metrics"] == finished["metrics"]


def test_a_changed_loss_runs_training_and_what_reads_it(command, finished):
    plan = command.run("--plan", "train.loss=infonce")["stages"]
    assert [name for name, stage in plan.items() if stage["action"] == "run"] == ["train", "index", "evaluate"]
    assert plan["train"]["reasons"] == ["PARAMS train.loss mac → infonce"]
    assert plan["index"]["reasons"] == ["INPUT train"]


def test_a_forced_stage_takes_its_descendants_along(command, finished):
    plan = command.run("--plan", "--force", "train")["stages"]
    assert [name for name, stage in plan.items() if stage["action"] == "run"] == ["train", "index", "evaluate"]
    assert plan["train"]["reasons"] == ["FORCED"]


def test_a_changed_number_of_workers_changes_nothing(command, finished):
    plan = command.run("--plan", "cluster.workers=1")["stages"]
    assert {stage["action"] for stage in plan.values()} == {"cached"}


def test_every_part_of_the_method_left_its_trace(finished):
    distill, train = (
        json.loads(Path(finished["stages"][name]["uri"], "manifest.json").read_text()) for name in ("distill", "train")
    )
    assert distill["metrics"]["feature relational"] > 0
    assert train["metrics"]["contrastive 16d"] > 0
    assert any(entry["path"].startswith("negatives/") for entry in train["files"])
    assert [one["dim"] for one in finished["metrics"]["student"]["dimensions"]] == [16]


def test_mlflow_has_the_run_its_stages_and_the_student(command, finished):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(command.settings[1].removeprefix("tracking_uri="))
    ids = finished["mlflow"]
    runs = client.search_runs([ids["experiment_id"]], f"tags.mlflow.parentRunId = '{ids['run_id']}'")
    assert sorted(run.info.run_name for run in runs) == sorted(STAGES)
    assert "hit@5" in client.get_run(ids["run_id"]).data.tags["mlflow.note.content"]
    train = next(run for run in runs if run.info.run_name == "train")
    steps = [point.step for point in client.get_metric_history(train.info.run_id, "loss")]
    assert steps and min(steps) > 0  # the last loss stands at the curve's end, not before its start
    version = client.get_model_version_by_alias("puma", "champion")
    assert version.tags["key"] == finished["stages"]["train"]["key"]


def test_the_exported_student_has_a_card_and_agrees_with_stock_transformers(finished):
    manifest = json.loads(Path(finished["stages"]["train"]["uri"], "manifest.json").read_text())
    model = Path(finished["stages"]["train"]["uri"], manifest["attempt"], "model")
    parity = json.loads((model.parent / "parity.json").read_text())
    assert parity["loaders"]["transformers AutoModel"]["cosine"] > 0.9999
    card = (model / "README.md").read_text()
    assert "| loss |" in card and "2 layers" in card


def test_the_depth_curve_has_every_layer(finished):
    manifest = json.loads(Path(finished["stages"]["features"]["uri"], "manifest.json").read_text())
    directory = Path(finished["stages"]["features"]["uri"], manifest["attempt"])
    curve = json.loads((directory / "depth_curve.json").read_text())
    assert [entry["layers"] for entry in curve["layers"]] == [1, 2, 3, 4]
    assert (directory / "depth_curve.png").stat().st_size > 1000
    best = max(entry["hit@5"] for entry in curve["layers"])
    teaching = json.loads((directory / "features.json").read_text())["layer"]
    assert curve["layers"][teaching - 1]["hit@5"] == best


def test_a_search_by_text_finds_pictures_and_by_picture_finds_texts(command, finished, tmp_path):
    results = command("search.py", "--text", "A red circle", "--want", "image", "-k", "3")["results"]
    assert len(results) == 3 and all(result["image"] for result in results)
    assert [result["score"] for result in results] == sorted((r["score"] for r in results), reverse=True)
    from tests.tiny_models import picture

    (tmp_path / "photo.png").write_bytes(picture())
    results = command("search.py", "--image", str(tmp_path / "photo.png"), "--want", "text", "-k", "2")["results"]
    assert len(results) == 2 and all(result["text"] for result in results)


def test_only_on_missing_inputs_says_which(command, finished):
    answer = command("run.py", "--recipe", "smoke", "--only", "index", "train.steps=7", code=2)
    assert "train" in answer["error"]


# ------------------------------------------------------------------------------- a catalogue to distil on


def test_the_teacher_teaches_by_a_catalogue_and_the_rest_stays_on_labels(command, finished):
    catalogue = write_catalogue(command.directory / "shop")
    own = ["distill.data.kind=corpus", f"distill.data.path={catalogue}"]
    made = command.run(*own, "--until", "features")["stages"]
    assert list(made)[:4] == ["ingest", "distill.data", "backbone", "features"]
    assert [name for name, stage in made.items() if stage["action"] == "run"] == ["distill.data", "features"]
    assert made["distill.data"]["rejects"]["by_reason"] == {"broken JSON": 1} != made["ingest"]["rejects"]["by_reason"]
    manifest = json.loads(Path(made["features"]["uri"], "manifest.json").read_text())
    assert manifest["metrics"]["rows"] == 2 * 24 and "hit@5 at full depth" in manifest["metrics"]
    assert manifest["inputs"]["distill.data"]["key"] == made["distill.data"]["key"]
    plan = command.run(*own, "--plan", "distill.learning_rate=0.1", "data.max_pixels=4096")["stages"]
    assert plan["distill.data"]["action"] == "cached" and plan["distill.data"]["key"] == made["distill.data"]["key"]
    assert plan["features"]["reasons"] == ["INPUT backbone", "INPUT ingest"]
    (catalogue / "goods.jsonl").write_text('{"text": "another"}\n')
    plan = command.run(*own, "--plan")["stages"]
    assert plan["distill.data"]["reasons"] == ["DATA"] and plan["features"]["reasons"] == ["INPUT distill.data"]
    assert plan["ingest"]["action"] == plan["backbone"]["action"] == "cached"


# ------------------------------------------------------------------------------- candidates by the teacher


@pytest.fixture(scope="module")
def asymmetric(command, finished) -> dict:
    return command.run("index.candidates=teacher")


def test_only_index_and_evaluation_run_for_candidates_by_the_teacher(asymmetric, finished):
    ran = [name for name, stage in asymmetric["stages"].items() if stage["action"] == "run"]
    assert ran == ["index", "evaluate"]
    assert asymmetric["metrics"]["student"]["local"] == finished["metrics"]["student"]["local"]
    assert asymmetric["metrics"]["asymmetric"]["local"] == finished["metrics"]["asymmetric"]["local"]


def test_a_search_finds_by_the_students_query_what_the_evaluation_measured(command, asymmetric):
    import pyarrow.parquet as pq

    (run,) = store_of(asymmetric, "evaluate").glob("runs/asymmetric.local.*_task0.trec")
    scores: dict[str, dict[str, float]] = {}
    for qid, _, did, _, score, _ in map(str.split, run.read_text().splitlines()):
        scores.setdefault(qid, {})[did] = float(score)
    rows = [
        row
        for path in store_of(asymmetric, "ingest").glob("queries/*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    asked = [row for row in rows if row["qid"] in scores][:3]
    questions = command.directory / "asked.jsonl"
    questions.write_text("".join(json.dumps({"text": row["text"], "want": "image"}) + "\n" for row in asked))
    answers = command("search.py", "--queries", str(questions), "-k", "50", "index.candidates=teacher")["answers"]
    for row, answer in zip(asked, answers, strict=True):
        assert answer["index"] == asymmetric["stages"]["index"]["key"]
        measured = scores[row["qid"]]
        found = {one["id"]: one["score"] for one in answer["results"] if one["id"] in measured}
        assert len(found) > 5 and found == pytest.approx({did: measured[did] for did in found}, abs=2e-3)


def test_student_and_teacher_go_out_as_one_directory(command, asymmetric):
    code = (
        "import json, sys; from pipeline.retriever import export_router;"
        " print(json.dumps(export_router(sys.argv[1], sys.argv[2])))"
    )
    given = [asymmetric["stages"]["index"]["uri"], str(command.directory / "router")]
    done = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert min(report["query"], report["document"]) > 0.9999


def store_of(run: dict, stage: str) -> Path:
    """The files of a stage's artifact."""
    place = Path(run["stages"][stage]["uri"])
    return place / json.loads((place / "manifest.json").read_text())["attempt"]
