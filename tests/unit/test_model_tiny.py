"""How a tiny backbone starts."""

import pytest
import torch
from safetensors.torch import load_file

from stages.model import tiny
from stages.model.encoder import Encoder
from stages.model.tiny import tiny_config, train_tokenizer, write_tiny
from tests.tiny_models import TEXTS, ragged_rows

SIZES = {"layers": 1, "vision_layers": 1, "vision_hidden": 32, "patch": 14}
LIMITS = {"min_pixels": 784, "max_pixels": 3136, "max_text_characters": 64}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 20, 400)


def test_it_starts_with_weights_that_keep_the_length_of_states(tokenizer, tmp_path, monkeypatch):
    def start(name: str) -> dict[str, torch.Tensor]:
        config = tiny_config(tokenizer, hidden=32, heads=1, **SIZES)
        write_tiny(tmp_path / name, tokenizer, config, **LIMITS, seed=0)
        return load_file(tmp_path / name / "model.safetensors")

    weights = start("tiny")
    monkeypatch.setattr(tiny, "keep_lengths", lambda module: None)
    stock = start("stock")
    changed = {name for name, weight in weights.items() if not torch.equal(weight, stock[name])}
    assert changed == {
        name
        for name, weight in weights.items()
        if weight.ndim == 2 and (".layers." in name or "merger.mlp" in name or "embed_tokens" in name)
    }
    for name in changed:
        inputs = 1 if "embed_tokens" in name else weights[name].shape[1]
        # The smallest matrix has 1,024 values: a tenth is more than four standard errors of their deviation.
        assert weights[name].std().item() == pytest.approx(inputs**-0.5, rel=0.1), name


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5])
def test_a_decoder_of_any_number_of_heads_computes(tokenizer, tmp_path, heads):
    config = tiny_config(tokenizer, hidden=32 * heads, heads=heads, **SIZES)
    write_tiny(tmp_path, tokenizer, config, **LIMITS, seed=0)
    assert Encoder.load(tmp_path).encode(ragged_rows()).shape == (5, 32 * heads)
