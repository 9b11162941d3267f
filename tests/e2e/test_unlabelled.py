"""A catalogue without a single label, from the command line: distilled on, indexed by its student, searched.

What labels beside it change is in `test_pipeline`, whose run has ingested and trained already.
"""

import json
from pathlib import Path

import pytest

from tests.corpus_files import write_catalogue
from tests.e2e.test_pipeline import Command
from tests.tiny_models import write_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BEFORE_TRAIN = ["ingest", "backbone", "features", "distill"]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Command:
    return Command(tmp_path_factory.mktemp("unlabelled"))


def test_rows_without_a_label_make_a_student_that_indexes_and_finds_them(command):
    catalogue = write_catalogue(command.directory / "shop")
    backbone = write_checkpoint(command.directory / "backbone", "qwen2_vl")
    smoke = ("run.py", "--recipe", "smoke", "backbone.source=local", f"backbone.model={backbone}")
    corpus = ["data.kind=corpus", f"data.path={catalogue}", "distill.contrastive_weight=0"]
    refused = command(*smoke, *corpus, "--plan", code=2)["error"]
    assert "\n" not in refused and "add --until distill" in refused and "distill.data.kind=corpus" in refused
    made = command(*smoke, *corpus, "--until", "distill")["stages"]
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
