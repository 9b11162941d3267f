"""What the encoder spares of the stock forward changes neither vectors nor gradients, for each family.

The stock model is loaded beside it and reads one row at a time. Both compute in float64, where they differ by less
than 1e-7; the library rounds norms and rotary positions to float32 in between.
"""

from unittest.mock import patch

import pytest
import torch
from torch.nn import functional

from stages.model import vision
from stages.model.encoder import Encoder
from stages.model.families import FAMILIES
from stages.model.inputs import Collator
from stages.model.prune import first_layers, load_backbone
from stages.model.rows import Row
from tests.tiny_models import picture, ragged_rows, write_checkpoint

EXACT = 1e-6
"""Of the largest value; a token too many or a window amiss makes more than 1e-2."""
SMALL, WIDE = picture(), picture(120, 50, "blue")
ROWS = {
    "mixed": [*ragged_rows(), Row("Again.", SMALL), Row(None, picture(84, 84, "black"))],
    "one picture": [Row(None, WIDE)],
    "no picture": [Row("A red circle."), Row("Find it.\n" + "two green stars and a square " * 3)],
    "repeated": [Row(None, SMALL), Row("What?", WIDE), Row(None, SMALL), Row("Who?", WIDE), Row("Who?", SMALL)],
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def checkpoint(request, tmp_path_factory):
    layers = max(3, FAMILIES[request.param].group)
    return write_checkpoint(tmp_path_factory.mktemp(request.param), request.param, layers)


@pytest.fixture(scope="module")
def stock(checkpoint):
    return load_backbone(checkpoint).double().eval()


@pytest.fixture
def encoder(checkpoint):
    return Encoder.load(checkpoint).double()


def stock_states(backbone, collator: Collator, rows: list[Row]) -> torch.Tensor:
    """States [B, D] at the last token by the stock forward of one row after another."""
    states = []
    for row in rows:
        (chunk,) = collator([row]).chunks
        pixels = None if row.image is None else collator.cut.frames(collator.cut.values(chunk.pixels_PC)).double()
        output = backbone(
            input_ids=chunk.input_ids_RL,
            position_ids=chunk.position_ids_3RL,
            pixel_values=pixels,
            image_grid_thw=chunk.grid_I3,
            use_cache=False,
        )
        states.append(output.last_hidden_state[0, -1])
    return torch.stack(states)


def gradients(module: torch.nn.Module, states_BD: torch.Tensor) -> dict[str, torch.Tensor]:
    """By parameter, of a sum in which every value of the states weighs differently."""
    module.zero_grad()
    (states_BD * torch.linspace(-1, 1, states_BD.numel()).view_as(states_BD)).sum().backward()
    return {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in module.named_parameters()}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_states_and_gradients_are_those_of_the_stock_model(stock, encoder, rows):
    expected_BD, states_BD = stock_states(stock, encoder.collator, rows), encoder.states(encoder.collator(rows))
    assert (states_BD - expected_BD).abs().max() < EXACT * expected_BD.abs().max()
    expected, found = gradients(stock, expected_BD), gradients(encoder.backbone, states_BD)
    assert expected.keys() == found.keys()
    largest = max(one.abs().max() for one in expected.values())
    assert {name for name, one in expected.items() if (found[name] - one).abs().max() > EXACT * largest} == set()
    assert all(found[name].shape == one.shape for name, one in expected.items())


def test_the_last_layer_sees_one_token_a_row_and_the_others_all(encoder):
    batch = encoder.collator(ROWS["mixed"], limit=7)
    tokens: list[list[int]] = []
    for layer in encoder.backbone.language_model.layers:
        layer.mlp.register_forward_hook(lambda _module, inputs, _output: tokens[-1].append(inputs[0].shape[1]))
    for chunk in batch.chunks:
        tokens.append([])
        encoder.states_by_layer(type(batch).of(chunk))
    lengths = [chunk.input_ids_RL.shape[1] for chunk in batch.chunks]
    others = len(encoder.backbone.language_model.layers) - 1
    is_stock = encoder.backbone.config.model_type == "qwen3_5"
    assert tokens == [[length] * others + [length if is_stock else 1] for length in lengths]


def test_the_last_layer_is_that_of_the_layers_in_use(checkpoint, encoder):
    """At every depth that a student of the family can have."""
    config, batch = encoder.backbone.config, encoder.collator(ROWS["mixed"])
    for layers in FAMILIES[config.model_type].depths(config.text_config.num_hidden_layers):
        cut = load_backbone(checkpoint, layers).double().eval()
        with first_layers(encoder.backbone, layers), torch.no_grad():
            states_BD = encoder.states(batch)
        with torch.no_grad():
            expected_BD = stock_states(cut, encoder.collator, ROWS["mixed"])
        assert (states_BD - expected_BD).abs().max() < EXACT * expected_BD.abs().max()


def test_a_mask_that_the_stock_model_makes_holds_in_the_last_layer(encoder):
    batch = encoder.collator(ROWS["mixed"])
    with torch.no_grad():
        expected_BD = encoder.states(batch)
        encoder.backbone.language_model.config._attn_implementation = "eager"
        assert (encoder.states(batch) - expected_BD).abs().max() < EXACT * expected_BD.abs().max()


def test_pictures_of_one_size_are_attended_to_together(encoder):
    rows = [Row(None, picture(60, 60, colour)) for colour in ("red", "green", "blue", "black")]
    (chunk,) = encoder.collator([*rows, Row(None, picture(84, 56))]).chunks
    attention = functional.scaled_dot_product_attention
    with patch.object(functional, "scaled_dot_product_attention", wraps=attention) as call:
        encoder.encode_images(chunk)
    # Two sizes of pictures, and with Qwen2.5 two sizes of windows.
    assert call.call_count == 2 * len(encoder.backbone.visual.blocks)


def test_a_picture_of_several_rows_is_decoded_and_looked_at_once(encoder):
    collator = encoder.collator
    with patch.object(collator, "patches", wraps=collator.patches) as decode:
        batch = collator([*ROWS["repeated"], Row(None, SMALL, (0.0, 0.0, 0.5, 0.5))])
    assert decode.call_count == 3  # the part of a picture is another picture
    looked_at = sum(len(chunk.grid_I3) for chunk in batch.chunks)
    assert looked_at < sum(len(chunk.image_J) for chunk in batch.chunks) == 6


def test_what_inference_has_kept_serves_training(encoder):
    batch = encoder.collator(ROWS["mixed"])
    vision._runs.cache_clear(), vision._positions.cache_clear(), vision._windows.cache_clear()
    encoder.encode(ROWS["mixed"])
    encoder.states(batch).sum().backward()
    assert encoder.backbone.visual.patch_embed.proj.weight.grad.abs().max() > 0
