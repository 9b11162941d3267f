"""A catalogue without a single label, from the command line: distilled on, indexed by its student, searched."""

import json
from pathlib import Path

import pytest

from tests.corpus_files import COLOURS, write_records
from tests.e2e.test_pipeline import Command
from tests.mbeir_files import png, write_bytes

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BEFORE_TRAIN = ["ingest", "backbone", "features", "distill"]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Command:
    return Command(tmp_path_factory.mktemp("unlabelled"))


@pytest.fixture(scope="module")
def catalogue(command) -> Path:
    """Twenty-four records of texts and pictures, and one that is broken."""
    folder = command.directory / "shop"
    for colour in COLOURS:
        write_bytes(folder, f"{colour}.png", png(colour, (56, 56)))
    good = [{"text": f"a {COLOURS[number % 4]} thing {number}"} for number in range(20)]
    write_records(folder / "goods.jsonl", [*good, *({"image": f"{colour}.png"} for colour in COLOURS), b"{broken"])
    return folder


def kinds(command: Command, *arguments: str, code: int = 0) -> dict:
    return command("run.py", "--recipe", "smoke", *arguments, code=code)


def test_rows_without_a_label_make_a_student_that_indexes_and_finds_them(command, catalogue):
    corpus = ["data.kind=corpus", f"data.path={catalogue}", "distill.contrastive_weight=0"]
    refused = kinds(command, *corpus, "--plan", code=2)["error"]
    assert "\n" not in refused and "add --until distill" in refused and "distill.data.kind=corpus" in refused
    made = kinds(command, *corpus, "--until", "distill")["stages"]
    assert {name: stage["action"] for name, stage in made.items()} == {
        **dict.fromkeys(BEFORE_TRAIN, "run"),
        **dict.fromkeys(("train", "index", "evaluate"), "skipped"),
    }
    assert made["ingest"]["rejects"] == {"candidates": 0, "queries": 1, "images": 0, "by_reason": {"broken JSON": 1}}
    metrics = json.loads(Path(made["distill"]["uri"], "manifest.json").read_text())["metrics"]
    assert metrics["feature cosine"] > 0 and "contrastive" not in metrics
    student = f"student={made['distill']['uri']}"
    command("run.py", "--only", "index", f"index.corpus={catalogue}", student)
    results = command("search.py", "--text", "a red thing", "-k", "3", f"index.corpus={catalogue}")["results"]
    assert len(results) == 3


def test_the_teacher_teaches_by_the_catalogue_and_the_rest_stays_on_labels(command, catalogue):
    own = ["distill.data.kind=corpus", f"distill.data.path={catalogue}"]
    made = kinds(command, *own, "--until", "distill")["stages"]
    assert list(made)[:5] == ["ingest", "distill.data", *BEFORE_TRAIN[1:]]
    assert made["distill.data"]["rejects"]["by_reason"] == {"broken JSON": 1} != made["ingest"]["rejects"]["by_reason"]
    manifest = json.loads(Path(made["features"]["uri"], "manifest.json").read_text())
    assert manifest["metrics"]["rows"] == 2 * 24 and "hit@5 at full depth" in manifest["metrics"]
    assert manifest["inputs"]["distill.data"]["key"] == made["distill.data"]["key"]
    plan = kinds(command, *own, "--plan", "distill.learning_rate=0.1", "data.max_pixels=4096")["stages"]
    assert plan["distill.data"]["action"] == "cached" and plan["distill.data"]["key"] == made["distill.data"]["key"]
    assert plan["features"]["reasons"] == ["INPUT backbone", "INPUT ingest"]
    (catalogue / "goods.jsonl").write_text('{"text": "another"}\n')
    plan = kinds(command, *own, "--plan")["stages"]
    assert plan["distill.data"]["reasons"] == ["DATA"] and plan["features"]["reasons"] == ["INPUT distill.data"]
    assert plan["ingest"]["action"] == plan["backbone"]["action"] == "cached"
