"""Every loader that is installed gives an exported student's own vectors, and the directory is laid out for vLLM."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages import backbone
from stages.contract.context import StageError
from stages.data.sources.fields import normalise
from stages.export.card import write_card
from stages.export.checkpoint import export_student, save_backbone
from stages.export.loaders import LOADERS, ROOT, VLLM, VLLM_PYTHON, run_stock_loaders
from stages.export.mlflow_model import pyfunc_vectors, save_reference
from stages.export.parity import MINIMUM_COSINE, check_parity, compare, samples
from stages.model.encoder import Encoder
from stages.model.rows import Row
from stages.search.precision import find_ranges, quantize
from tests.tiny_models import picture, write_checkpoint


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """A directory with `source`, `weights` and the exported `model`."""
    directory = tmp_path_factory.mktemp("loaders")
    source = write_checkpoint(directory / "source", "qwen2_vl")
    backbone = Encoder.load(source, layers=2).backbone
    save_backbone(backbone.config, backbone.state_dict(), directory / "weights")
    export_student(directory / "weights", source, directory / "model", {"query": "Find it.\n"})
    return directory


@pytest.mark.slow
def test_every_installed_loader_gives_the_students_vectors(student, monkeypatch):
    monkeypatch.delenv(VLLM_PYTHON, raising=False)  # it has a test of its own
    places = (student / "weights", student / "source", student / "model")
    report, _ = check_parity(*places, {"MLflow pyfunc": pyfunc_vectors})
    assert set(report["not_run"]) == {VLLM}
    assert set(report["loaders"]) == {"puma", "transformers AutoModel", "MLflow pyfunc", *LOADERS} - {VLLM}
    assert min(values["cosine"] for values in report["loaders"].values()) >= MINIMUM_COSINE
    apart = {name: values["max_difference"] for name, values in report["loaders"].items()}
    # Above a megapixel a picture is scaled down twice, by what checks it and then for the model.
    assert apart.pop("MLflow pyfunc") < 3e-3
    assert max(apart.values()) < 1e-6


@pytest.mark.slow
def test_the_lines_of_the_card_give_smaller_vectors_as_an_index_stores_them(student, tmp_path):
    report = {"loaders": {}, "not_run": {}, "inputs": 0}
    write_card(student / "model", "train", {"layers": 2, "dim": 64, "parameters": 1}, report, {}, SimpleNamespace())
    lines = "\n".join(re.findall(r"^```python\n(.*?)^```", (student / "model" / "README.md").read_text(), re.M | re.S))
    (student / "model" / "README.md").unlink()
    lines = lines.replace("path/to/this/directory", str(student / "model"))
    lines = lines.replace(', {"text": "What is it?", "image": "photo.jpg"}', "")  # no decoder of files is built here
    seen = "from stages.export.loaders import see_torchvision\nsee_torchvision()\n"
    kept = f"\nimport numpy\nnumpy.savez({str(tmp_path / 'found.npz')!r}, a=candidates, b=signs, c=bytes_of_values)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", seen + lines + kept], cwd=tmp_path, env=environment, check=True)
    with np.load(tmp_path / "found.npz") as found:
        candidates, signs, values = (found[name] for name in "abc")
    assert np.array_equal(signs, quantize(candidates, "binary")) and signs.shape == (2, 8)
    assert np.array_equal(values, quantize(candidates, "int8", find_ranges([candidates])))
    own = Encoder.load(student / "model").encode([Row("A red circle."), Row("A blue square.")])
    assert np.abs(candidates - own).max() < 1e-4


def test_the_inputs_are_queries_and_candidates_of_all_kinds_and_some_are_longer_than_what_is_read():
    kinds = {(bool(one.instruction), bool(one.text), bool(one.image)) for one in samples()}
    assert kinds == {(told, text, image) for told in (True, False) for text, image in ((1, 0), (0, 1), (1, 1))}
    long = [one for one in samples() if len(one.text or "") > backbone.Params().max_text_characters]
    assert {bool(one.image) for one in long} == {True, False}


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        ("", f"it is not installed here, and {VLLM_PYTHON} names no Python that has it"),
        ("gone", "gone can't be run: "),
    ],
)
def test_where_vllm_is_missing_the_report_says_how_to_give_it(student, monkeypatch, python, reason):
    monkeypatch.setenv(VLLM_PYTHON, python)
    vectors, not_run = run_stock_loaders(student / "model", samples()[:1], [VLLM])
    assert vectors == {} and not_run[VLLM].startswith(reason)


@pytest.mark.parametrize("seen", [True, False])
def test_the_card_says_whether_vllm_has_read_the_student(student, seen):
    found = {"cosine": 0.99999, "max_difference": 3e-4}
    report = {"inputs": 1, "loaders": {VLLM: found} if seen else {}, "not_run": {} if seen else {VLLM: "no"}}
    write_card(student / "model", "train", {"layers": 2, "parameters": 1, "dim": 64}, report, {}, SimpleNamespace())
    card = (student / "model" / "README.md").read_text()
    assert ("| vLLM | 0.999990 | 3.0e-04 |" in card) == ("compared with the trained weights' below" in card) == seen
    assert ("| vLLM | not run: no | |" in card) == ("It was not run on this directory" in card) == (not seen)


def test_the_card_names_what_its_loaders_need_and_gives_texts_in_the_form_of_the_data(tmp_path):
    (tmp_path / "puma.json").write_text('{"max_text_characters": 9}')
    report = {"inputs": 1, "loaders": {}, "not_run": {}}
    write_card(tmp_path, "distill", {"layers": 2, "parameters": 1, "dim": 64}, report, {}, SimpleNamespace())
    card = (tmp_path / "README.md").read_text()
    assert "sentence-transformers[image]" in card and "transformers[vision]" in card
    code = "".join(re.findall(r"^```python\n(.*?)^```", card, re.M | re.S))
    asked = re.findall(r'"(\w[^"]* [^"]*)"', code)
    assert len(asked) >= 4 and asked == [normalise(text) for text in asked]


@pytest.mark.parametrize("wrong", [-1.0, np.nan])
def test_a_loader_that_differs_is_refused_by_name(wrong):
    vectors = np.eye(3, dtype=np.float32)
    report = {"loaders": {}}
    compare(report, "same", vectors, vectors)
    assert report["loaders"]["same"] == {"cosine": 1, "max_difference": 0, "cosines": [1, 1, 1]}
    with pytest.raises(StageError, match="other reads the export with cosine"):
        compare(report, "other", vectors * wrong, vectors)


def test_vllm_finds_last_token_pooling_and_normalisation(student):
    """As its `get_pooling_config` reads them: legacy module names, boolean modes (vLLM #45995, #54533)."""
    model = student / "model"
    modules = {entry["type"]: entry["path"] for entry in json.loads((model / "modules.json").read_text())}
    assert "sentence_transformers.models.Normalize" in modules
    pooling = json.loads((model / modules["sentence_transformers.models.Pooling"] / "config.json").read_text())
    assert [name for name, value in pooling.items() if value is True and name != "include_prompt"] == [
        "pooling_mode_lasttoken"
    ]
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["Qwen2VLForConditionalGeneration"] and "auto_map" not in config
    assert config["text_config"]["max_window_layers"] == config["text_config"]["num_hidden_layers"] == 2
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "np") as weights:
        assert any(name.startswith("model.layers.") for name in weights.keys())  # noqa: SIM118 (not a dictionary)
    assert "[RET]" in (model / "chat_template.jinja").read_text()
    prompts = json.loads((model / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == {"query": "Find it.\n", "document": ""}


@pytest.mark.slow
def test_an_mlflow_model_refers_to_the_weights_and_needs_no_checkout(student, tmp_path):
    save_reference(tmp_path / "reference", str(student / "model"))
    files = [path for path in (tmp_path / "reference").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    (tmp_path / "photo.png").write_bytes(picture())
    code = """
import mlflow, numpy, sys
model = mlflow.pyfunc.load_model("reference")
rows = [{"text": "A red circle."}, {"image": open("photo.png", "rb").read()}]
numpy.save("vectors.npy", model.predict(rows))
import stages
assert "reference" in stages.__file__, stages.__file__
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ours = Encoder.load(student / "model").encode([Row("A red circle."), Row(None, picture())])
    assert (np.load(tmp_path / "vectors.npy") * ours).sum(1).min() > MINIMUM_COSINE


@pytest.fixture(scope="module")
def registered(student):
    """The student as MLflow loads it."""
    import mlflow

    save_reference(student / "reference", str(student / "model"))
    return mlflow.pyfunc.load_model(str(student / "reference"))


PACKED = base64.b64encode(picture()).decode()
DAMAGED = picture()[:100] + b"\x5a\xa5" + picture()[102:]
TEXTS = ["A red circle.", "A blue square."]


def table(**columns):
    import pandas as pd

    return pd.DataFrame(columns)


@pytest.mark.parametrize(
    "given, rows",
    [
        (TEXTS, [Row(text) for text in TEXTS]),
        (TEXTS[0], [Row(TEXTS[0])]),
        (np.array(TEXTS), [Row(text) for text in TEXTS]),
        (table(text=TEXTS)["text"], [Row(text) for text in TEXTS]),
        ({"text": TEXTS}, [Row(text) for text in TEXTS]),
        ([{"text": TEXTS[0]}, {"image": picture()}, picture()], [Row(TEXTS[0]), *[Row(None, picture())] * 2]),
        (table(text=[TEXTS[0], None], image=[None, picture()]), [Row(TEXTS[0]), Row(None, picture())]),
        (table(text=[TEXTS[0]], image=[PACKED]), [Row(TEXTS[0], picture())]),
        ([], []),
    ],
    ids=["texts", "a text", "array", "column", "columns", "rows", "table", "base64", "nothing"],
)
def test_an_mlflow_model_reads_texts_and_rows(student, registered, given, rows):
    np.testing.assert_allclose(registered.predict(given), Encoder.load(student / "model").encode(rows), atol=1e-5)


@pytest.mark.parametrize(
    "given, told",
    [
        (["A red circle.", " "], "row 1 has neither text nor image"),
        ([{"query": "red"}], "row 0 has neither text nor image"),
        ([None], "row 0 has neither text nor image"),
        (["<|im_end|>"], "row 0 has neither text nor image"),
        (table(query=["red"]), "the columns are query; name them text and image"),
        (table(text=[None], image=[None]), "row 0 has neither text nor image"),
        ([7], "row 0: a text must be words, not int"),
        ([["red"]], "row 0: a text must be words, not list"),
        (["red", "\ud83d"], "row 1: the text holds half a character"),
        ([{"text": "red", "image": b"<svg/>"}], "row 0: the image can't be used: unknown format"),
        ([{"image": "***"}], "row 0: the image can't be used: Only base64"),
        ([{"image": DAMAGED}], "row 0: the image can't be used: (broken|truncated) image"),
    ],
)
def test_an_mlflow_model_refuses_what_it_cannot_read_with_the_reason(registered, given, told):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=told):
        registered.predict(given)


def invoked(registered, sent: dict) -> np.ndarray:
    """What MLflow's server answers, as vectors."""
    from mlflow.pyfunc.scoring_server import invocations

    answer = invocations(json.dumps(sent), "application/json", registered, registered.metadata.get_input_schema())
    return np.array(json.loads(answer.response)["predictions"])


@pytest.mark.parametrize(
    "sent",
    [
        {"inputs": TEXTS},
        {"inputs": [{"text": "red"}, {"image": PACKED}]},
        {"instances": TEXTS},
        {"dataframe_split": {"columns": ["text", "image"], "data": [["red", None], [None, PACKED]]}},
    ],
)
def test_mlflows_server_passes_texts_and_rows_on(registered, sent):
    assert invoked(registered, sent).shape == (2, 64)


def test_mlflows_server_shows_the_reason(registered):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="row 0 has neither text nor image"):
        invoked(registered, {"inputs": [{"query": "red"}]})


def test_an_mlflow_model_whose_weights_are_gone_says_how_to_give_them(tmp_path):
    import mlflow

    save_reference(tmp_path / "reference", str(tmp_path / "gone"))
    with pytest.raises(Exception, match=r"not at .*gone; give their place"):
        mlflow.pyfunc.load_model(str(tmp_path / "reference"))
