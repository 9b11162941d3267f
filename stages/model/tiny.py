"""A real Qwen2-VL of a few million parameters for machines without weights: its tokenizer and its first weights.

The architecture is stock, so everything learnt on it (pruning, export, loaders) holds for the 2B and 7B checkpoints.
The tokenizer is byte-level BPE trained on the ingested texts and the read-out prompt itself.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from stages.model.prompt import DEFAULT, SPECIAL_TOKENS, read_out
from stages.model.stock import mrope_sections, stock_config, stock_tokenizer, write_checkpoint

KINDS = (("a", True), ("a", False), (None, True))


def train_tokenizer(texts: Iterable[str], vocabulary: int, readout: str = DEFAULT) -> PreTrainedTokenizerFast:
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
    prompts = [read_out(readout).render(text, image, 1) for text, image in KINDS]
    tokenizer.train_from_iterator(_with_prompts(texts, prompts), trainer)
    return stock_tokenizer(tokenizer)


def _with_prompts(texts: Iterable[str], prompts: Sequence[str]) -> Iterable[str]:
    """The texts, and the prompt's own words often enough to become single tokens."""
    for index, text in enumerate(texts):
        yield text
        if index % 50 == 0:
            yield from prompts


def tiny_config(tokenizer: PreTrainedTokenizerFast, *, layers: int, hidden: int, heads: int, vision_layers: int,
                vision_hidden: int, patch: int) -> Qwen2VLConfig:  # fmt: skip
    """A Qwen2-VL configuration of the given sizes; head sizes follow from `hidden` and `heads`."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 1 if heads % 2 else heads // 2,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": mrope_sections(hidden // heads // 2)},
    }
    vision = {
        "depth": vision_layers,
        "embed_dim": vision_hidden,
        "hidden_size": hidden,
        "num_heads": max(1, vision_hidden // 32),
        "mlp_ratio": 3,
        "patch_size": patch,
    }
    return stock_config(tokenizer, text, vision)


def write_tiny(directory: Path, tokenizer: PreTrainedTokenizerFast, config: Qwen2VLConfig, *, min_pixels: int,
               max_pixels: int, max_text_characters: int, seed: int, readout: str = DEFAULT) -> None:  # fmt: skip
    """Writes an untrained checkpoint in the stock layout, its weights drawn with `seed`."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    keep_lengths(model.model.language_model)
    keep_lengths(model.model.visual.merger)
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels, "max_text_characters": max_text_characters}
    write_checkpoint(directory, model, tokenizer, **limits, readout=readout)


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
