"""What a run needs is asked before it starts: the index's library, GPUs, memory; the image brings what it may need."""

import json
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import pipeline.run
from pipeline.artifacts.store import Artifact, open_store
from pipeline.config.sections import Config
from pipeline.execution import needs
from pipeline.planning.closure import ROOT
from pipeline.planning.plan import Decision
from stages.contract.context import InputError
from stages.data.sources.counting import count_candidates
from stages.search import choice
from tests.mbeir_files import text_candidate, write_lines, write_minimal

UNION = "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
LANCE = "index.backend=auto of 100,000 candidates or more needs lance, which is not installed"


@pytest.fixture
def no_library(monkeypatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: None)


@pytest.fixture
def large(tmp_path) -> Path:
    """An M-BEIR directory of 100,000 candidates."""
    root = write_minimal(tmp_path / "data")
    (root / UNION).parent.mkdir(parents=True)
    (root / UNION).write_text("".join(f'{{"did": "7:{number}", "modality": "text"}}\n' for number in range(100_000)))
    return root


def decided(**actions: str) -> list[Decision]:
    return [Decision(stage, "0" * 16, action, (), {}) for stage, action in actions.items()]


def stored(tmp_path: Path, rows: int) -> Artifact:
    """An ingest artifact with so many candidates in its union pool of test."""
    attempt = open_store(str(tmp_path)).begin("ingest", "0" * 16)
    attempt.write_json("stats.json", {"pools": {"union_test": rows, "union_train": 10**9}})
    return open_store(str(tmp_path)).commit(attempt, {"metrics": {}})


def test_a_plan_is_refused_where_the_index_will_lack_its_library(large, tmp_path, no_library, capfd):
    settings = [f"data.path={large}", f"store={tmp_path / 'store'}", "tracking_uri=sqlite:///none.db"]
    start = time.monotonic()
    code = pipeline.run.main(["--recipe", "mbeir_tiny", *settings, "--plan", "--json"])
    seconds = time.monotonic() - start
    answer = json.loads(capfd.readouterr().out)
    assert code == 2 and LANCE in answer["error"] and seconds < 5
    assert answer["stages"]["index"]["action"] == "run" and not (tmp_path / "store").exists()


def test_nothing_is_needed_for_an_index_that_is_not_made(large, tmp_path, no_library):
    config = Config.model_validate({"data": {"kind": "mbeir", "path": str(large)}})
    for decisions in (decided(ingest="run", train="run"), decided(ingest="run", index="cached")):
        needs.check_needs(config, decisions, open_store(str(tmp_path)))


def test_candidates_are_counted_once_and_of_the_split_that_is_indexed(tmp_path):
    root = write_minimal(tmp_path)
    local = "cand_pool/local/mbeir_toy_task1_val_cand_pool.jsonl"
    write_lines(root, local, [text_candidate(f"7:{number}", "one") for number in range(10, 15)])
    assert count_candidates(root, "test", 100) == 2  # without a union file: the pools of no other split
    write_lines(root, UNION, [*[text_candidate(f"7:{number}", "one") for number in (1, 2, 2, 3)], "not json"])
    assert count_candidates(root, "test", 100) == 3 and count_candidates(root, "test", 2) == 2


def test_an_ingest_that_is_there_tells_the_number_and_a_new_one_does_right_after(tmp_path, no_library):
    ingest, config = stored(tmp_path, 250_000), Config()
    message = "index.backend=auto of 250,000 candidates needs lance"
    with pytest.raises(InputError, match=message):
        needs.check_needs(config, decided(ingest="cached", index="run"), open_store(str(tmp_path)))
    with pytest.raises(InputError, match=message):
        needs.check_artifact(config, decided(ingest="run", index="run"), "ingest", ingest)
    needs.check_artifact(config, decided(ingest="run", index="skipped"), "ingest", ingest)
    needs.check_needs(config, decided(ingest="run", index="run"), open_store(str(tmp_path)))  # nothing tells yet


def rows_of(tmp_path: Path, stage: str, *tasks: int) -> Artifact:
    """An artifact of data with so many train queries in each of its tasks."""
    by_task = {f"toy_task{number}": {"queries": count} for number, count in enumerate(tasks)}
    attempt = open_store(str(tmp_path)).begin(stage, "0" * 16)
    attempt.write_json("stats.json", {"queries": {"by_task": {"train": by_task}}})
    return open_store(str(tmp_path)).commit(attempt, {"metrics": {}})


def test_data_with_fewer_rows_than_a_batch_is_refused_right_after_ingest_and_by_the_next_plan(tmp_path):
    config = Config.model_validate({"data": {"kind": "corpus", "path": "shop"}, "cluster": {"workers": 4}})
    ingest, store = rows_of(tmp_path, "ingest", 30, 8), open_store(str(tmp_path))
    both = "backbone.tiny.batch_size=64 and distill.batch_size=64"
    mend = "set backbone.tiny.batch_size=36 distill.batch_size=36, or give more data"
    message = f"^data.path=shop has too few rows to train on, 38, for {both}; {mend}$"
    with pytest.raises(InputError, match=message):
        needs.check_artifact(config, decided(ingest="run", backbone="run", distill="run"), "ingest", ingest)
    with pytest.raises(InputError, match=message):
        needs.check_needs(config, decided(ingest="cached", backbone="run", distill="run"), store)
    needs.check_needs(config, decided(ingest="cached", backbone="cached", distill="cached"), store)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "for train.batch_size=64; set train.batch_size=38, or give more data"),
        ({"train": {"batch_size": 38}}, ""),
        ({"train": {"steps": 0}}, ""),
        ({"train": {"smallest_task": 34}}, ""),  # each of the two tasks comes up that often
    ],
)
def test_a_training_of_some_rows_is_refused_by_its_own_settings(tmp_path, settings, said):
    config = Config.model_validate({"distill": {"data": {"kind": "corpus", "path": "shop"}}, **settings})
    asked = config, decided(distill="run", train="run"), "ingest", rows_of(tmp_path, "ingest", 30, 8)
    if not said:
        return needs.check_artifact(*asked)
    with pytest.raises(InputError, match=f"^data.kind=scenes has too few rows to train on, 38, {said}$"):
        needs.check_artifact(*asked)


def test_data_of_distillation_is_its_own_and_one_row_fits_no_batch(tmp_path):
    config = Config.model_validate({"distill": {"data": {"kind": "corpus", "path": "one"}}})
    one = rows_of(tmp_path, "distill.data", 1)
    with pytest.raises(InputError, match=r"^distill.data.path=one .*, 1, for distill.batch_size=64; give more data$"):
        needs.check_artifact(config, decided(distill="run", train="run"), "distill.data", one)


def test_a_library_that_was_asked_for_by_name_is_looked_for_at_any_size(tmp_path, no_library):
    config = Config.model_validate({"index": {"backend": "faiss"}})
    with pytest.raises(InputError, match=r"^index.backend=faiss needs faiss, which is not installed"):
        needs.check_needs(config, decided(ingest="run", index="run"), open_store(str(tmp_path)))


@pytest.mark.parametrize(
    ("running", "here", "asked"),
    [("train", 3, "workers=4"), ("features", 2, None), ("evaluate", 1, "actors=2"), ("ingest", 0, None)],
)
def test_gpus_are_compared_with_those_of_this_machine(monkeypatch, tmp_path, running, here, asked):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(needs, "visible_gpus", lambda: here)
    config = Config.model_validate({"cluster": {"workers": 4, "actors": 2, "gpus_per_worker": 1}})
    if asked is None:
        return needs.check_gpus(config, [running])
    count = asked.partition("=")[2]
    with pytest.raises(InputError, match=f"^cluster.{asked} .* ask for {count} GPUs, this machine has {here}; choose"):
        needs.check_needs(config, decided(**{running: "run"}), open_store(str(tmp_path)))


@pytest.mark.parametrize(("running", "said"), [("train", "workers=1000000"), ("index", "actors=5"), ("ingest", "")])
def test_more_processes_than_this_machine_has_memory_for_are_refused(monkeypatch, tmp_path, running, said):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(needs, "machine_bytes", lambda: 4 * needs.PROCESS)
    cluster = {"workers": 10**6, "actors": 5}
    asked = Config.model_validate({"cluster": cluster}), decided(**{running: "run"}), open_store(str(tmp_path))
    if not said:
        return needs.check_needs(*asked)
    with pytest.raises(InputError, match=f"^cluster.{said} are more processes than fit into this machine's 1 GB"):
        needs.check_needs(*asked)


def test_the_whole_teacher_has_to_fit_as_often_as_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(needs, "PROCESS", 0)
    weights = {"norm.weight": np.zeros((1000, 500), np.float16), "lm_head.weight": np.zeros((9, 9), np.float16)}
    save_file(weights, tmp_path / "model.safetensors")
    config = Config.model_validate({"backbone": {"source": "local", "model": str(tmp_path)}, "cluster": {"actors": 3}})
    asked = (config, decided(backbone="cached", features="run", ingest="run"), open_store(str(tmp_path)))
    monkeypatch.setattr(needs, "machine_bytes", lambda: 3 * 4 * 500_000 - 1)
    with pytest.raises(
        InputError, match=r"^features: 3 × 0.00 billion parameters of .* in fp32 are 0.0 GB, this mach"
    ):
        needs.check_needs(*asked)
    monkeypatch.setattr(needs, "machine_bytes", lambda: 3 * 4 * 500_000)
    needs.check_needs(*asked)
    monkeypatch.setattr(needs, "machine_bytes", lambda: 1)
    needs.check_needs(config, decided(index="run"), asked[2])  # of a corpus, by a student that is there


def test_the_image_installs_what_an_index_may_need():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text()
    (script,) = re.findall(r'RUN python -c "(.*?)" > requirements.txt', dockerfile.replace("\\\n", ""), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {line for name in choice.MODULES for line in extras[name]} <= set(done.stdout.splitlines())
