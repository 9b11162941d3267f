"""What every Qwen2-VL directory that Puma writes has in common, wherever its weights come from.

The special tokens of the read-out prompt, the sections of M-RoPE, and the files by which stock loaders and
`Encoder.load` read a directory.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from stages.model.encoder import SETTINGS
from stages.model.prompt import DEFAULT, SETTING, SPECIAL_TOKENS, read_out

END, PAD = "<|im_end|>", "<|endoftext|>"


def stock_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer with the read-outs' special tokens; those that it lacks are added after its last one."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END, PAD)],
        clean_up_tokenization_spaces=False,
    )


def stock_config(
    tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any], vision: Mapping[str, Any], *, tied: bool = True
) -> Qwen2VLConfig:
    """A Qwen2-VL configuration that names the tokenizer's special tokens.

    Args:
        tokenizer: made by `stock_tokenizer`.
        text: sizes of the decoder and its rotary positions.
        vision: sizes of the vision tower.
        tied: whether the language-model head is the embedding table.
    """
    ids = tokenizer.get_vocab()
    special = {"bos_token_id": None, "eos_token_id": ids[END], "pad_token_id": ids[PAD]}
    return Qwen2VLConfig(
        text_config={**text, **special, "tie_word_embeddings": tied},
        vision_config=dict(vision),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )


def mrope_sections(pairs: int) -> list[int]:
    """The rotary pairs of a head for time, height and width, in Qwen2-VL's proportion 2 : 3 : 3."""
    side = 3 * pairs // 8
    return [pairs - 2 * side, side, side]


def write_checkpoint(directory: Path, model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, *,
                     min_pixels: int, max_pixels: int, max_text_characters: int,
                     readout: str = DEFAULT) -> None:  # fmt: skip
    """Writes weights, tokenizer, image processor and `puma.json`, which comes last, to an existing directory."""
    model.save_pretrained(directory)
    tokenizer.chat_template = read_out(readout).chat_template(max_text_characters)
    tokenizer.save_pretrained(directory)
    vision: Any = model.config.vision_config
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
    )
    processor.save_pretrained(directory)
    settings = {"max_text_characters": max_text_characters, SETTING: readout}
    (directory / SETTINGS).write_text(json.dumps(settings))
