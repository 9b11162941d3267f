"""A real Qwen2-VL of a few million parameters for machines without weights: its tokenizer and its first weights.

The architecture is stock, so everything learnt on it (pruning, export, loaders) holds for the 2B and 7B checkpoints.
The tokenizer is byte-level BPE trained on the ingested texts and the read-out prompt itself.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from stages.model.encoder import SETTINGS
from stages.model.prompt import CHAT_TEMPLATE, RETRIEVAL_TOKEN, SPECIAL_TOKENS, render

PROMPTS = tuple(render(text, image) for text, image in (("a", True), ("a", False), (None, True)))


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with at most `vocabulary` tokens, the special tokens included; any string can be encoded.

    It reads lower case: a model that knows only the texts of one catalogue can't know that "carrots" are "Carrots".
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_prompts(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _with_prompts(texts: Iterable[str]) -> Iterable[str]:
    """The texts, and the prompt's own words often enough to become single tokens."""
    for index, text in enumerate(texts):
        yield text
        if index % 50 == 0:
            yield from PROMPTS


def tiny_config(tokenizer: PreTrainedTokenizerFast, *, layers: int, hidden: int, heads: int, vision_layers: int,
                vision_hidden: int, patch: int) -> Qwen2VLConfig:  # fmt: skip
    """A Qwen2-VL configuration of the given sizes; head sizes follow from `hidden` and `heads`."""
    token = tokenizer.get_vocab()
    pairs = hidden // heads // 2
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        # Rotary pairs for time, height and width, in Qwen2-VL's proportion 2 : 3 : 3.
        "rope_scaling": {"type": "mrope", "mrope_section": [pairs - 2 * (3 * pairs // 8), *[3 * pairs // 8] * 2]},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": token["<|im_end|>"],
        "pad_token_id": token["<|endoftext|>"],
    }
    vision = {
        "depth": vision_layers,
        "embed_dim": vision_hidden,
        "hidden_size": hidden,
        "num_heads": max(1, vision_hidden // 32),
        "mlp_ratio": 3,
        "patch_size": patch,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def write_tiny(directory: Path, tokenizer: PreTrainedTokenizerFast, config: Qwen2VLConfig, *, min_pixels: int,
               max_pixels: int, max_text_tokens: int, seed: int, unit_scale: bool = False,
               mimetic: bool = False) -> None:  # fmt: skip
    """Writes an untrained checkpoint in the stock layout, its weights drawn with `seed`.

    Args:
        unit_scale: embeddings, decoder and merger start as `keep_lengths` draws them.
        mimetic: the vision tower starts with attention as `mimic_trained` draws it.
    """
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    if unit_scale:
        keep_lengths(model.model.language_model)
        keep_lengths(model.model.visual.merger)
    if mimetic:
        for block in model.model.visual.blocks:
            mimic_trained(block.attn)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    processor = Qwen2VLImageProcessorPil(
        patch_size=config.vision_config.patch_size,
        merge_size=config.vision_config.spatial_merge_size,
        temporal_patch_size=config.vision_config.temporal_patch_size,
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
    )
    processor.save_pretrained(directory)
    (directory / SETTINGS).write_text(json.dumps({"max_text_tokens": max_text_tokens, "read_out": RETRIEVAL_TOKEN}))


@torch.no_grad()
def keep_lengths(module: torch.nn.Module) -> None:
    """Draws embeddings from N(0, 1) and every linear map from N(0, 1/inputs), so that states of unit values stay so.

    The stock start, N(0, 0.02²) throughout, is made for widths of thousands. At a width of 128 it has each layer add
    next to nothing, and Adam's steps, whose size does not depend on the weights', are a twentieth of them and more.
    """
    for part in module.modules():
        if isinstance(part, torch.nn.Embedding):
            torch.nn.init.normal_(part.weight)
        elif isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=part.in_features**-0.5)


@torch.no_grad()
def mimic_trained(attention: Any) -> None:
    """Draws a vision block's attention as large trained towers have it, which a few thousand photos do not teach.

    Mimetic initialisation (Trockman and Kolter 2023, arXiv 2305.09828): in trained towers a patch looks at patches
    like itself and takes away what they share, so with Z of entries N(0, 1/width) each head starts at
    W_qᵀ W_k ≈ 0.7 Z + 0.7 I, and all heads together at W_o W_v = 0.4 Z - 0.4 I.

    Args:
        attention: of a Qwen2-VL vision block: `qkv` of three times the width, `proj` of the width.
    """
    width, size = attention.dim, attention.head_dim
    query, key, value = attention.qkv.weight.split(width)
    for head in range(attention.num_heads):
        left, right = _factors(0.7, 0.7, width)
        rows = slice(head * size, (head + 1) * size)
        query[rows], key[rows] = left.T[:size], right[:size]
    left, right = _factors(0.4, -0.4, width)
    attention.proj.weight.copy_(left)
    value.copy_(right)


def _factors(noise: float, identity: float, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices [width, width] whose product is noise · Z + identity · I, by its singular values, largest first."""
    product = noise * torch.randn(width, width) / width**0.5 + identity * torch.eye(width)
    left, values, right = torch.linalg.svd(product)
    return left * values.sqrt(), values.sqrt()[:, None] * right
