"""Untrained checkpoints of a few hundred thousand parameters, one for each supported family, in the stock layout."""

import io
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import Qwen2VLImageProcessorPil

from stages.export.checkpoint import export_student, save_backbone
from stages.model.encoder import Encoder
from stages.model.prompt import RETRIEVAL_TOKEN, SETTING
from stages.model.rows import Row
from stages.model.tiny import keep_lengths, tiny_config, train_tokenizer, write_tiny

TEXTS = ["a red circle left of a blue square", "find the picture that shows two green stars", "what colour is it?"]
EMBEDDER = "qwen3_vl_embedding"
"""The read-out of a public embedder, and the name of a small one here."""
MOST_CHARACTERS = 256
"""Of a text that are read."""


def depths(family: str) -> tuple[int, int]:
    """(layers of a checkpoint of `family`, fewer of them that a student can keep)."""
    return (8, 4) if family == "qwen3_5" else (4, 3)


def write_checkpoint(directory: Path, family: str, layers: int = 0) -> Path:
    """Writes an untrained checkpoint of `family` (a `model_type`) and returns its directory."""
    layers = layers or depths(family)[0]
    tokenizer = train_tokenizer(TEXTS * 20, 400)
    if family == "qwen2_vl":
        config = tiny_config(tokenizer, layers=layers, hidden=64, heads=2, vision_layers=1, vision_hidden=32, patch=14)
        limits = {"min_pixels": 28 * 28, "max_pixels": 84 * 84, "max_text_characters": MOST_CHARACTERS}
        write_tiny(directory, tokenizer, config, **limits, seed=3)
        return directory
    builder = {"qwen2_5_vl": _qwen2_5, "qwen3_vl": _qwen3, "qwen3_5": _qwen3_5}[family]
    model, patch = builder(tokenizer, layers)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    limits = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (6 * patch) ** 2}
    Qwen2VLImageProcessorPil(patch_size=patch, size=limits).save_pretrained(directory)
    (directory / "puma.json").write_text(json.dumps({"max_text_characters": MOST_CHARACTERS}))
    return directory


def write_embedder(directory: Path) -> Path:
    """Writes a Qwen3-VL of random weights with what is particular to Qwen3-VL-Embedding, and returns its directory.

    That is: no token of ours, no settings of ours, and a tokenizer that puts <|endoftext|> behind every text.
    """
    write_checkpoint(directory, "qwen3_vl")
    rename_token(directory, RETRIEVAL_TOKEN, "[OTHER]")
    (directory / "puma.json").unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    last = ("<|endoftext|>", tokenizer.pad_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <|endoftext|>", special_tokens=[last])
    tokenizer.save_pretrained(directory)
    return directory


@torch.inference_mode()
def embedder_state(embedder: Path, text: str, told: str | None = None, weights: Path | None = None) -> np.ndarray:
    """The state [D] at which the embedder's own code reads a text: its turns, its tokenizer, its last token.

    `weights` is a model that was made of it.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedder)
    turns = {"system": told or "Represent the user's input.", "user": text}
    prompt = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns.items())
    ids = tokenizer(f"{prompt}<|im_start|>assistant\n", return_tensors="pt")["input_ids"]
    model = transformers.AutoModel.from_pretrained(weights or embedder, dtype=torch.float32).eval()
    return model(input_ids=ids).last_hidden_state[0, -1].numpy()


def rename_token(directory: Path, token: str, other: str) -> None:
    """Takes a token out of a tokenizer's vocabulary, and puts another in its place."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (directory / name).read_text()
        (directory / name).write_text(text.replace(json.dumps(token), json.dumps(other)))


def write_student(directory: Path, family: str) -> Encoder:
    """A student of an untrained checkpoint, exported to `model` beside its `source` and its `weights`.

    `family` is a `model_type`, or `EMBEDDER` for a student of that.
    """
    source = directory / "source"
    if family == EMBEDDER:
        settings = {"max_text_characters": MOST_CHARACTERS, SETTING: EMBEDDER}
        (write_embedder(source) / "puma.json").write_text(json.dumps(settings))
        family = "qwen3_vl"
    else:
        write_checkpoint(source, family)
    student = Encoder.load(source, layers=depths(family)[1])
    save_backbone(student.backbone.config, student.backbone.state_dict(), directory / "weights")
    export_student(directory / "weights", source, directory / "model", {"query": "Find it.\n"})
    return student


def _ids(tokenizer) -> dict:
    token = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }


def _text(tokenizer, layers: int) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _qwen2_5(tokenizer, layers: int):
    torch.manual_seed(3)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 48,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=_text(tokenizer, layers), vision_config=vision, **_ids(tokenizer)
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), 14


def _qwen3(tokenizer, layers: int):
    torch.manual_seed(3)
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 48,
        "patch_size": 16,
        "deepstack_visual_indexes": [0, 1, 2],
        "num_position_embeddings": 64,
    }
    config = transformers.Qwen3VLConfig(text_config=_text(tokenizer, layers), vision_config=vision, **_ids(tokenizer))
    return transformers.Qwen3VLForConditionalGeneration(config), 16


def _qwen3_5(tokenizer, layers: int):
    torch.manual_seed(3)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 48,
        "patch_size": 16,
        "num_position_embeddings": 64,
    }
    text = _text(tokenizer, layers) | {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [3, 3, 2],
            "partial_rotary_factor": 0.5,
        },
        "linear_key_head_dim": 128,  # as published; on a CPU vLLM refuses 32
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
    }
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision, **_ids(tokenizer))
    model = transformers.Qwen3_5ForConditionalGeneration(config)
    # As it is drawn linear attention adds next to nothing and forgets at once, and what reaches it would not show.
    keep_lengths(model.model.language_model)
    for layer in model.model.language_model.layers:
        if hasattr(layer, "linear_attn"):
            torch.nn.init.constant_(layer.linear_attn.A_log, -4)
    return model, 16


def picture(width: int = 60, height: int = 60, colour: str = "red") -> bytes:
    """An encoded picture with a gradient, so that no two patches are equal."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.paste(colour, (0, 0, width // 2, height // 2))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def ragged_rows() -> list[Row]:
    """Texts of several lengths, images of several shapes, and both."""
    return [
        Row("A red circle."),
        Row("Find it.\n" + "two green stars and a square " * 3),
        Row(None, picture()),
        Row(None, picture(120, 50, "blue")),
        Row("What colour is it?", picture(50, 120, "green")),
    ]
