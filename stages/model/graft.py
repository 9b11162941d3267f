"""Makes a language model the decoder of a stock Qwen2-VL directory, beside a vision tower that has learnt nothing yet.

Qwen2-VL's decoder is Qwen2's, and Llama's is the same without biases. A token of text has one position in all three
sections of M-RoPE, which then turn as plain rotary positions do. So on texts the graft computes what the language
model computes, state by state, and years of pretraining fit a machine that no published multimodal model does.

The weights of queries and keys are ordered differently in a Llama's GGUF file; transformers undoes that as it reads.
"""

import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
)

from stages.contract.context import InputError, StageError
from stages.model.prompt import SPECIAL_TOKENS
from stages.model.stock import mrope_sections, stock_config, stock_tokenizer, write_checkpoint

FAMILIES: dict[str, Any] = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM}
SUPPORTED = "a Llama or Qwen2 model: a GGUF file, or a directory with one or with config.json and *.safetensors"
WITHOUT = ("attention_bias", "mlp_bias", "quantization_config")
"""What a Llama may have and Qwen2-VL's decoder has no place for."""
SAME = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
)
"""Fields of a language model's configuration that Qwen2-VL's decoder has under the same name; Llama lacks windows."""
VISION = {"depth": 4, "embed_dim": 256, "num_heads": 8, "mlp_ratio": 4, "patch_size": 14}
"""5 million parameters with the projection: what a small catalogue can train; patches of Qwen2-VL's own size."""
LIMITS: dict[str, Any] = {"min_pixels": 4 * 28 * 28, "max_pixels": 300 * 28 * 28, "max_text_characters": 1800}
"""The defaults of the section `backbone`, which sets a run's own."""
UNREADABLE = (OSError, ValueError, LookupError, RuntimeError, struct.error, SafetensorError)
"""What the readers of configurations, tokenizers and weights raise over files that are damaged or of another kind."""


def graft(source: Path, directory: Path) -> dict[str, Any]:
    """Writes the language model of `source` as a Qwen2-VL directory, whole or not at all; returns what it is.

    Args:
        source: a GGUF file, a directory with one, or a directory in the Hugging Face layout with safetensors.
        directory: where to write; it may exist if it is empty.

    Raises:
        InputError: `source` is no language model that fits, or `directory` is in use.
        StageError: the directory can't be written.
    """
    directory = directory.expanduser().resolve()
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise InputError(f"{directory} exists and is not empty; give a directory that is new")
    language, tokenizer = read_language_model(source.expanduser())
    added = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]
    stock = stock_tokenizer(tokenizer.backend_tokenizer)
    # A Llama's puts <s> before every text. Some loaders ask for that and others don't, so vectors would differ.
    stock.backend_tokenizer.post_processor = None
    model = multimodal(language, stock, [stock.get_vocab()[token] for token in added])
    print(f"graft: writing {directory}", file=sys.stderr, flush=True)
    with whole_directory(directory) as unfinished:
        write_checkpoint(unfinished, model, stock, **LIMITS)
    return {
        "directory": str(directory),
        "language_model": language.config.model_type,
        "layers": language.config.num_hidden_layers,
        "dim": language.config.hidden_size,
        "parameters": model.num_parameters(),
        "added_tokens": added,
    }


def read_language_model(source: Path) -> tuple[Any, Any]:
    """The language model with its head and its tokenizer; raises InputError where it can't be a decoder here."""
    folder, options = locate(source)
    options |= {"local_files_only": True, "trust_remote_code": False}
    print(f"graft: reading {source}", file=sys.stderr, flush=True)
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        check_fits(config, source)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        family = FAMILIES[config.model_type]
        language, found = family.from_pretrained(folder, output_loading_info=True, **options)
    except UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"{source} can't be read as a language model: {reason}; give {SUPPORTED}") from error
    if found["missing_keys"]:
        raise InputError(f"{source} lacks the weights {sorted(found['missing_keys'])[0]}; give the whole model")
    if not getattr(tokenizer, "backend_tokenizer", None):
        raise InputError(f"{source} has no tokenizer.json, nor anything that transformers makes one from; add it")
    return language.eval(), tokenizer


def locate(source: Path) -> tuple[Path, dict[str, Any]]:
    """The directory to read from, and how: by the name of a GGUF file in it, or as safetensors."""
    if (source / "config.json").is_file() and any(source.glob("*.safetensors")):
        return source, {"use_safetensors": True}
    files = sorted(source.glob("*.gguf")) if source.is_dir() else [source] if source.suffix == ".gguf" else []
    if len(files) > 1:
        raise InputError(f"{source} has {len(files)} GGUF files; name one of them, for example {files[0]}")
    if not files or not files[0].is_file():
        raise InputError(f"{source} is no language model that can be read; give {SUPPORTED}")
    if not find_spec("gguf"):
        raise InputError(f"{files[0]} needs the package gguf to be read; pip install -e '.[evidence]'")
    return files[0].parent, {"gguf_file": files[0].name}


def check_fits(config: Any, source: Path) -> None:
    """Raises InputError for a language model that Qwen2-VL's decoder can't be."""
    if config.model_type not in FAMILIES:
        raise InputError(
            f"{source} is of the type {config.model_type}, which Qwen2-VL's decoder can't be; give {SUPPORTED}"
        )
    extra = [name for name in WITHOUT if getattr(config, name, None)]
    if (getattr(config, "head_dim", None) or 0) * config.num_attention_heads not in (0, config.hidden_size):
        extra.append("head_dim")
    if extra:
        raise InputError(
            f"{source} sets {', '.join(extra)}, for which Qwen2-VL's decoder has no place; give a model without"
        )


def multimodal(language: Any, tokenizer: PreTrainedTokenizerFast, added: Sequence[int]) -> Any:
    """A Qwen2-VL of the language model's weights and type of number; its vision tower is drawn, always the same.

    Args:
        language: a Llama or Qwen2 with its head.
        tokenizer: the one of `stock_tokenizer`.
        added: ids that the language model does not know.
    """
    tied, weights = language.config.tie_word_embeddings, decoder_weights(language, added)
    text = decoder_sizes(language.config) | {"vocab_size": len(weights["embed_tokens.weight"])}
    vision = VISION | {"hidden_size": language.config.hidden_size}
    torch.manual_seed(0)
    config = stock_config(tokenizer, text, vision, tied=tied)
    model = AutoModelForImageTextToText.from_config(config, dtype=language.dtype)
    model.model.language_model.load_state_dict(weights)
    if not tied:
        model.lm_head.load_state_dict({"weight": with_rows(language.lm_head.weight, added)})
    return model.eval()


def decoder_sizes(language: Any) -> dict[str, Any]:
    """A language model's configuration as that of Qwen2-VL's decoder, all but the vocabulary."""
    sections = mrope_sections(language.hidden_size // language.num_attention_heads // 2)
    sizes = {name: getattr(language, name) for name in SAME if hasattr(language, name)}
    return sizes | {"rope_parameters": {**language.rope_parameters, "mrope_section": sections}}


def decoder_weights(language: Any, added: Sequence[int]) -> dict[str, torch.Tensor]:
    """The language model's weights with rows for the added tokens, and biases of zero where it has none."""
    weights = language.model.state_dict()
    weights["embed_tokens.weight"] = with_rows(weights["embed_tokens.weight"], added)
    for name in list(weights):
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            weights.setdefault(name.replace(".weight", ".bias"), torch.zeros(len(weights[name])))
    return weights


@torch.no_grad()
def with_rows(weight_VD: torch.Tensor, added: Sequence[int]) -> torch.Tensor:
    """The table with the mean of its known rows in the rows of the added tokens; a token nobody has seen is average.

    Args:
        weight_VD: a row for each token; some models keep rows beyond their tokenizer's last one, and those are taken.
        added: ids, all above those of the known tokens.
    """
    if not added:
        return weight_VD
    mean_D = weight_VD[: min(added)].float().mean(dim=0).to(weight_VD.dtype)
    wide_VD = torch.cat([weight_VD, mean_D.repeat(max(0, max(added) + 1 - len(weight_VD)), 1)])
    wide_VD[list(added)] = mean_D
    return wide_VD


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A directory to fill beside `directory`, which takes its place when the block ends well and vanishes otherwise.

    Raises StageError where it can't be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
            unfinished = Path(scratch) / directory.name
            unfinished.mkdir()
            yield unfinished
            unfinished.rename(directory)
    except (OSError, SafetensorError) as error:
        raise StageError(f"{directory} can't be written: {error}; make room, or give another place") from error
