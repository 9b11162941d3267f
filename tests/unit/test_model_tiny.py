"""How a tiny backbone starts."""

import pytest
import torch
from safetensors.torch import load_file

from stages.model.tiny import tiny_config, train_tokenizer, write_tiny
from tests.tiny_models import TEXTS

WIDTH, HEADS = 64, 2


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """The weights of the same checkpoint by its start: stock, with a mimetic vision tower, by the model's width."""
    tokenizer = train_tokenizer(TEXTS * 20, 400)
    sizes = {"layers": 1, "hidden": 32, "heads": 1, "vision_layers": 2, "vision_hidden": WIDTH, "patch": 8}
    limits = {"min_pixels": 256, "max_pixels": 1024, "max_text_tokens": 16}
    weights = []
    for start in ({}, {"mimetic": True}, {"unit_scale": True}):
        directory = tmp_path_factory.mktemp("tiny")
        write_tiny(directory, tokenizer, tiny_config(tokenizer, **sizes), **limits, seed=0, **start)
        weights.append(load_file(directory / "model.safetensors"))
    return weights


def test_a_mimetic_start_changes_the_attention_of_the_vision_tower_and_nothing_else(starts):
    usual, mimetic, _ = starts
    changed = {name for name in usual if not torch.equal(usual[name], mimetic[name])}
    assert len(changed) == 2 * 2
    assert all("visual.blocks." in name and name.endswith(("attn.qkv.weight", "attn.proj.weight")) for name in changed)


def test_a_mimetic_patch_looks_at_its_like_and_takes_away_what_they_share(starts):
    _, weights, _ = starts
    for block in range(2):
        prefix = next(name for name in weights if name.endswith(f"visual.blocks.{block}.attn.qkv.weight"))
        query, key, value = weights[prefix].double().split(WIDTH)
        taken = weights[prefix.replace("qkv", "proj")].double() @ value
        assert taken.diagonal().mean() == pytest.approx(-0.4, abs=4 * 0.4 / WIDTH)  # four standard errors of the mean
        around = taken - torch.diag(taken.diagonal())
        assert around.std().item() == pytest.approx(0.4 / WIDTH**0.5, rel=0.1)
        for head_query, head_key in zip(query.chunk(HEADS), key.chunk(HEADS), strict=True):
            looked = head_query.T @ head_key
            assert torch.linalg.matrix_rank(looked, rtol=1e-5) == WIDTH // HEADS
            # Of 0.7 I + 0.7 Z the larger half of the singular values holds more than half of the trace.
            assert 0.35 < looked.diagonal().mean() < 0.7
        assert not torch.allclose(query[: WIDTH // HEADS], query[WIDTH // HEADS :])


def test_a_start_by_the_width_keeps_the_length_of_states(starts):
    usual, _, scaled = starts
    changed = {name for name in usual if not torch.equal(usual[name], scaled[name])}
    assert changed == {
        name
        for name, weight in usual.items()
        if weight.ndim == 2 and (".layers." in name or "merger.mlp" in name or "embed_tokens" in name)
    }
    for name in changed:
        inputs = 1 if "embed_tokens" in name else scaled[name].shape[1]
        # The smallest matrix has 512 values: a tenth is three standard errors of their standard deviation.
        assert scaled[name].std().item() == pytest.approx(inputs**-0.5, rel=0.1), name
