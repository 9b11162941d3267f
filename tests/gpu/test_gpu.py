"""What only a GPU can show: `python -m pytest tests/gpu` on a machine with one NVIDIA GPU; skipped elsewhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.model.encoder import Encoder
from stages.model.families import FAMILIES
from stages.search import device
from stages.search.exact import asked_of, search_all
from stages.search.filters import Filter
from tests.e2e.test_pipeline import METHOD, STAGES, Command
from tests.support import in_ranks
from tests.tiny_models import ragged_rows, write_checkpoint
from tests.unit.test_search_exact import corpus

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(("precision", "least"), [("fp32", 1 - 1e-5), ("bf16", 0.99)])
def test_its_vectors_are_those_of_the_cpu(tmp_path, family, precision, least):
    model, rows = write_checkpoint(tmp_path, family), ragged_rows()
    expected_ND = Encoder.load(model).encode(rows)
    vectors_ND = Encoder.load(model, precision=precision, device="cuda").encode(rows)
    assert np.einsum("nd,nd->n", vectors_ND, expected_ND).min() > least


def test_its_rankings_are_those_of_the_cpu():
    random = np.random.default_rng(0)
    vectors_ND, queries_QD = (random.normal(size=(size, 512)) for size in (20_000, 100))
    batches = corpus(unit(vectors_ND), [f"1:{number}" for number in range(20_000)]).to_batches()
    asked = [asked_of(unit(queries_QD), [Filter(pool="a"), Filter()])]
    ids = device.Ids.of(batch["did"] for batch in batches)
    there = device.search_all(batches, ids, asked, 50, "cuda")[0]
    for one, two in zip(search_all(batches, asked, 50)[0], there, strict=True):
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)
        assert np.mean(np.array(one.dids) == np.array(two.dids)) > 0.99


def unit(rows_ND: np.ndarray) -> np.ndarray:
    """At unit length, as float16 is stored."""
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> dict[str, dict[str, float]]:
    directory = tmp_path_factory.mktemp("gradcache")
    model, result = write_checkpoint(directory / "model", "qwen2_vl", layers=2), directory / "result.json"
    in_ranks(1, "tests.gpu.world", {"model": str(model), "result": str(result)}, {"DS_ACCELERATOR": "cuda"})
    return json.loads(result.read_text())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradcache_makes_the_update_of_the_whole_batch_with_dropout(compared, stage):
    assert compared["dropout matters"]["all"] > 1e-2
    assert compared[f"zero {stage}"]["all"] < 1e-4  # atomic additions come in any order


@pytest.mark.parametrize("stage", [1, 3])
def test_in_bf16_the_update_is_that_of_the_whole_batch_but_for_rounding(compared, stage):
    assert 0 < compared[f"bf16, zero {stage}"]["mean"] < 0.05


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Command:
    return Command(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def finished(command) -> dict:
    return command("run.py", "--recipe", "smoke", "cluster.gpus_per_worker=1", "cluster.zero_stage=2", *METHOD)


def test_a_run_trains_embeds_and_evaluates_there(finished):
    assert [stage["action"] for stage in finished["stages"].values()] == ["run"] * len(STAGES)
    trained = json.loads(Path(finished["stages"]["train"]["uri"], "manifest.json").read_text())
    assert trained["metrics"]["gpu_memory_gib"] > 0


def test_another_precision_is_another_backbone_on_the_same_data(command, finished):
    arguments = ("--recipe", "smoke", "cluster.gpus_per_worker=1", "cluster.zero_stage=2", *METHOD, "--plan")
    assert {stage["action"] for stage in command("run.py", *arguments)["stages"].values()} == {"cached"}
    plan = command("run.py", *arguments, "cluster.precision=fp32")["stages"]
    assert plan["ingest"]["action"] == "cached" and plan["backbone"]["action"] == "run"


def test_a_search_finds_pictures(command, finished):
    results = command("search.py", "--text", "A red circle", "--want", "image", "-k", "3")["results"]
    assert len(results) == 3
