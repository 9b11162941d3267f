"""Read-outs: one prompt for the pipeline and for every loader, and a public embedder read as its own code reads it."""

import json
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from pipeline.config.load import load_config
from stages import backbone
from stages.contract.context import InputError
from stages.export.checkpoint import export_student, save_backbone
from stages.export.loaders import LOADERS, VLLM
from stages.export.mlflow_model import pyfunc_vectors
from stages.export.parity import MINIMUM_COSINE, check_parity
from stages.model import checkpoint
from stages.model.encoder import Encoder, load_collator
from stages.model.prompt import DEFAULT, READ_OUTS, RETRIEVAL_TOKEN, SETTING, read_out
from stages.model.rows import Row
from tests.tiny_models import (
    EMBEDDER,
    embedder_state,
    picture,
    ragged_rows,
    rename_token,
    write_checkpoint,
    write_embedder,
)

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PROMPTS = {
    "puma": f"<|im_start|>user\n{PICTURE}Find it.\nRed.\nSummarize above image and sentence in one word:<|im_end|>\n"
    "<|im_start|>assistant\n[RET]",
    "puma_published": f"{QWEN}<|im_start|>user\n{PICTURE}Find it.\nRed.\n"
    "Summarize above image and sentence in one word: <|im_end|>\n<|im_start|>assistant\n[RET]",
    "eol": f"{QWEN}<|im_start|>user\n{PICTURE}Find it.\nRed.\n"
    "Summarize above image and sentence in one word: <|im_end|>\n<|im_start|>assistant\n",
    EMBEDDER: f"<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\n{PICTURE}Red.<|im_end|>\n"
    "<|im_start|>assistant\n<|endoftext|>",
    "gme": f"<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\n{PICTURE}Red.<|im_end|>\n"
    "<|im_start|>assistant\n<|endoftext|>",
}
TOLD = (None, "Find it.\n", "Find it.\n\n", "do " * 999, "<|im_end|>")
TEXTS = (None, "What is it?\nNow.", " \n", " \tä 苹果\n", "x" * 999, "a [RET]<|im_<|im_end|>start|>" * 20)
MOST = 256


# ------------------------------------------------------------------------------------------------------------- prompts


def test_the_setting_offers_every_read_out_and_the_prompts_are_these():
    assert get_args(backbone.Params.model_fields[SETTING].annotation) == tuple(READ_OUTS) == tuple(PROMPTS)
    assert backbone.Params().readout == DEFAULT
    for name, prompt in PROMPTS.items():
        assert read_out(name).render("Red.", True, MOST, "Find it.\n") == prompt


def test_without_an_instruction_an_embedder_says_its_own():
    assert read_out("gme").render("Red.", False, MOST).startswith(f"{QWEN}<|im_start|>user\nRed.<|im_end|>")
    assert read_out(EMBEDDER).render(None, True, MOST).startswith("<|im_start|>system\nRepresent the user's input.<")


@pytest.mark.parametrize("name", READ_OUTS)
def test_the_chat_template_renders_the_same_prompt_and_tokens(name, tokenizer):
    prompt = read_out(name)
    tokenizer.chat_template = prompt.chat_template(MOST)
    for told, text, has_image in product(TOLD, TEXTS, (False, True)):
        said = [{"type": "text", "text": text}] if text else []
        image = [{"type": "image"}] if has_image else []
        try:
            expected = prompt.render(text, has_image, MOST, told)
        except ValueError:
            continue
        for content in [said + image, image + said, *([text] if text and not has_image else [])]:
            system = {"role": "system", "content": [{"type": "text", "text": told}] if content else told}
            messages = [*([system] if told else []), {"role": "user", "content": content}]
            assert tokenizer.apply_chat_template(messages, tokenize=False) == expected
        tokens = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        assert tokens == tokenizer(expected)["input_ids"] == tokenizer(expected, add_special_tokens=False)["input_ids"]
        assert prompt.token in ("", tokenizer.decode(tokens[-1:]))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_collator(write_checkpoint(tmp_path_factory.mktemp("tokenizer"), "qwen2_vl"), 9999).tokenizer


@pytest.mark.parametrize("name", READ_OUTS)
def test_a_text_and_its_instruction_are_cut_together_and_bring_no_control_token(name):
    prompt = read_out(name)
    own = prompt.render("a", False, MOST).replace("a<|im_end|>", "<|im_end|>")
    read = prompt.render("<|image_pad|>" + "b" * 99, False, 40, "<|im_start|>" + "c" * 30)
    assert "c" * 30 in read and "b" * 9 in read and "b" * 11 not in read
    assert [read.count(token) for token in (PICTURE, "<|im_start|>")] == [0, own.count("<|im_start|>")]


@pytest.mark.parametrize("name", READ_OUTS)
def test_a_row_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match="text or an image"):
        read_out(name).render(" \n", False, 99)


# --------------------------------------------------------------------------------------------------- a public embedder


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Path:
    """The directory of the embedder."""
    directory = write_embedder(tmp_path_factory.mktemp("embedder"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer("red")["input_ids"][-1] == tokenizer.pad_token_id
    return directory


@pytest.fixture(scope="module")
def student(embedder, tmp_path_factory) -> Path:
    """A directory with a view of the embedder as a backbone, `source`, and of its student `weights` and `model`."""
    directory = tmp_path_factory.mktemp("student")
    limits = {"min_pixels": 32 * 32, "max_pixels": 96 * 96, "max_text_characters": MOST}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUMA_CACHE", str(directory))
        source = checkpoint.pointed(
            {"source": "local", "model": str(embedder), "revision": "", **limits, SETTING: EMBEDDER}
        )
    (directory / "source").symlink_to(source)
    cut = Encoder.load(source, layers=3).backbone
    save_backbone(cut.config, cut.state_dict(), directory / "weights")
    export_student(directory / "weights", source, directory / "model", {"query": "Find it.\n"})
    return directory


def test_it_is_read_as_its_own_code_reads_it(embedder, student):
    ours = Encoder.load(student / "source")
    for told, text in ((None, "A red circle."), ("Find it.", "Two green stars")):
        expected_D = embedder_state(embedder, text, told)
        (found_D,) = ours.encode([Row(text, instruction=told and f"{told}\n")])
        np.testing.assert_allclose(found_D, expected_D / np.linalg.norm(expected_D), atol=1e-5)


def test_its_student_keeps_its_prompt_and_no_token_is_added(embedder, student):
    before, after = (AutoTokenizer.from_pretrained(place) for place in (embedder, student / "model"))
    assert before.get_vocab() == after.get_vocab() and RETRIEVAL_TOKEN not in after.get_vocab()
    assert after("red")["input_ids"] == before("red", add_special_tokens=False)["input_ids"]
    for place in (student / "source", student / "model"):
        assert json.loads((place / "puma.json").read_text())[SETTING] == EMBEDDER
        assert Encoder.load(place, 3).collator.read_out is READ_OUTS[EMBEDDER]
    whole, cut = Encoder.load(student / "source"), Encoder.load(student / "model")
    batch = whole.collator([*ragged_rows(), Row("Red.", picture(), instruction="Find it.\n")])
    with torch.inference_mode():
        torch.testing.assert_close(cut.states(batch), whole.states_by_layer(batch)[2], rtol=0, atol=5e-6)


@pytest.mark.slow
def test_every_loader_reads_its_student(student):
    places = (student / "weights", student / "source", student / "model")
    report, _ = check_parity(*places, {"MLflow pyfunc": pyfunc_vectors})
    assert report["not_run"].keys() <= {VLLM}
    assert set(report["loaders"]) | {VLLM} == {"puma", "transformers AutoModel", "MLflow pyfunc", *LOADERS}
    assert min(values["cosine"] for values in report["loaders"].values()) >= MINIMUM_COSINE


@pytest.mark.parametrize("name", [name for name in READ_OUTS if name != EMBEDDER])
def test_the_tokenizers_loader_reads_every_other_read_out(name, tmp_path):
    source = write_checkpoint(tmp_path / "source", "qwen2_vl", layers=2)
    settings = json.loads((source / "puma.json").read_text())
    (source / "puma.json").write_text(json.dumps(settings | {SETTING: name}))
    export_student(source, source, tmp_path / "model", {})
    report, _ = check_parity(source, source, tmp_path / "model", stock=False)
    assert min(values["cosine"] for values in report["loaders"].values()) > 0.99999
    token = READ_OUTS[name].token or "assistant\\n"
    assert f'{token}" -}}}}' in (tmp_path / "model" / "chat_template.jinja").read_text()


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("source", "name", "told"),
    [
        (
            "local",
            "gme",
            r"readout=gme is the prompt of qwen2_vl models, and this is a qwen3_vl; choose one of ",
        ),
        ("tiny", EMBEDDER, r"prompt of qwen3_vl models, and this is a qwen2_vl; choose one of .*, eol, gme$"),
        ("local", "mean", r"readout"),
    ],
)
def test_a_read_out_of_another_family_is_refused_before_anything_runs(embedder, source, name, told):
    model = [f"backbone.model={embedder}"] if source == "local" else []
    with pytest.raises(InputError, match=told) as caught:
        load_config("demo", [f"backbone.source={source}", *model, f"backbone.readout={name}", "student.layers=3"])
    assert "\n" not in str(caught.value)


def test_a_student_of_ours_is_not_read_in_another_way_for_want_of_a_setting(student):
    asked = ["backbone.source=local", f"backbone.model={student / 'model'}", "student.layers=3"]
    with pytest.raises(InputError, match=rf"readout=puma is not how .* was trained; set backbone.readout={EMBEDDER}"):
        load_config("demo", asked)
    assert load_config("demo", [*asked, f"backbone.readout={EMBEDDER}"]).backbone.readout == EMBEDDER


def test_what_a_directory_lacks_is_named(tmp_path):
    source = write_checkpoint(tmp_path, "qwen2_vl", layers=1)
    settings = json.loads((source / "puma.json").read_text())
    (source / "puma.json").write_text(json.dumps(settings | {SETTING: "mean"}))
    with pytest.raises(ValueError, match=r"readout=mean is not known; choose one of puma, "):
        load_collator(source, 9999)
    (source / "puma.json").write_text(json.dumps(settings))
    rename_token(source, RETRIEVAL_TOKEN, "[OTHER]")
    with pytest.raises(ValueError, match=r"none is free for \[RET\]"):
        load_collator(source, 0)
    rename_token(source, "<|vision_end|>", "<other>")
    with pytest.raises(ValueError, match=r"its tokenizer has no <\|vision_end\|>, which readout=puma needs"):
        load_collator(source, 9999)
