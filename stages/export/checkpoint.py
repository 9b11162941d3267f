"""Export: a stock checkpoint that transformers, sentence-transformers and vLLM read with the training code's vectors.

The base class alone would save `language_model.*` keys that vLLM and others do not know, so the weights go out under
the `ForConditionalGeneration` class. Its head is tied to the embeddings: the paper drops the head, loaders want one.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from stages.model.encoder import SETTINGS, load_collator
from stages.model.families import family_of
from stages.model.prune import KEPT

# Pooling and Normalize go by their older names: vLLM knew no others before #54533 (August 2026) and fell back
# to a default without a word (#45995). sentence-transformers reads both.
SENTENCE_TRANSFORMERS_MODULES = (
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)
POOLING_MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def save_backbone(config: PreTrainedConfig, weights: Mapping[str, torch.Tensor], directory: Path) -> None:
    """Writes base-model weights as the generation class, safetensors, head tied to the embeddings.

    Args:
        config: the configuration of the base model; its `num_hidden_layers` is the depth of the weights.
        weights: state dict of the base model.
        directory: where `config.json` and `model*.safetensors` go.
    """
    config = type(config).from_dict(config.to_dict())
    config.tie_word_embeddings = True
    config.text_config.tie_word_embeddings = True
    family = family_of(config.model_type)
    if family.interleaved:
        config.text_config.rope_parameters["mrope_interleaved"] = True
    with torch.device("meta"):
        model = family.generation()(config)
    model.model.load_state_dict(dict(weights), strict=True, assign=True)
    model.tie_weights()
    model.save_pretrained(directory, safe_serialization=True)


def export_student(
    weights: Path,
    source: Path,
    directory: Path,
    prompts: Mapping[str, str],
    dims: Sequence[int] = (),
    kept: Sequence[int] = (),
) -> None:
    """Builds the complete model directory: weights, tokenizer, processor, chat template, settings.

    All that tells a loader how to read follows from the read-out that the settings of `source` name.

    Args:
        weights: a directory written by `save_backbone`.
        source: the model directory that the student came from: tokenizer, image processor and settings.
        directory: the new model directory.
        prompts: named query prompts for sentence-transformers; `encode_query` takes the one named "query", and
            candidates take none.
        dims: leading dimensions that serve as vectors too; vLLM reads them from `config.json`.
        kept: numbers of the backbone's layers that the student was cut to here, where they are not its first ones.
    """
    shutil.copytree(weights, directory, dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    collator = load_collator(source, config["text_config"]["vocab_size"])
    tokenizer, image_processor = collator.tokenizer, collator.image_processor
    tokenizer.chat_template = collator.read_out.chat_template(collator.max_text_characters)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(directory)
    image_processor.save_pretrained(directory)
    processor = {"processor_class": family_of(config["model_type"]).processor_class}
    if dims:
        _merge_json(directory / "config.json", {"is_matryoshka": True, "matryoshka_dimensions": list(dims)})
    _merge_json(directory / "preprocessor_config.json", processor)
    _merge_json(directory / "tokenizer_config.json", processor)
    _drop_json(directory / "tokenizer_config.json", ("is_local", "local_files_only"))
    shutil.copy(source / SETTINGS, directory / SETTINGS)
    if kept:
        _merge_json(directory / SETTINGS, {KEPT: list(kept)})
    _write_sentence_transformers(directory, config["text_config"]["hidden_size"], prompts)


def _merge_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2, sort_keys=True) + "\n")


def _drop_json(path: Path, names: tuple[str, ...]) -> None:
    values = {name: value for name, value in json.loads(path.read_text()).items() if name not in names}
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _write_sentence_transformers(directory: Path, dim: int, prompts: Mapping[str, str]) -> None:
    """The files of sentence-transformers: Transformer, last-token pooling, normalisation."""
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(SENTENCE_TRANSFORMERS_MODULES)
    ]
    settings = {
        "prompts": {**prompts, "document": ""},
        "default_prompt_name": None,
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
    }
    modes = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in POOLING_MODES}
    pooling = {"word_embedding_dimension": dim, **modes, "include_prompt": True}
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    transformer = {
        "transformer_task": "feature-extraction",
        # "message" sends every input through the chat template, which puts the token that is read out last.
        "modality_config": {"text": forward, "image": forward, "message": forward | {"format": "structured"}},
        "module_output_name": "token_embeddings",
        # Qwen2-VL does not support unpadded inputs in sentence-transformers.
        "unpad_inputs": False,
    }
    files = {
        "modules.json": modules,
        "config_sentence_transformers.json": settings,
        "sentence_bert_config.json": transformer,
        "1_Pooling/config.json": pooling,
        "2_Normalize/config.json": {},
    }
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
