"""Random crops: what they keep, what they depend on, and that the model sees just that."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.learn.crops import random_box
from stages.learn.sampling import PairSampler
from stages.learn.settings import Sampling
from stages.model.encoder import Encoder
from stages.model.inputs import pixels
from stages.model.rows import Row
from tests.tiny_models import write_checkpoint
from tests.training_world import write_ingest


@given(st.integers(0, 2**64 - 1), st.floats(0.01, 0.999))
def test_a_crop_lies_in_the_image_and_keeps_its_share(draw, least):
    left, top, right, bottom = random_box(draw, least)
    assert 0 <= left < right <= 1 + 1e-12
    assert 0 <= top < bottom <= 1 + 1e-12
    assert (right - left) * (bottom - top) >= least - 1e-12


def test_crops_are_spread_over_the_image_and_over_sizes():
    boxes = np.array([random_box(draw, 0.2) for draw in range(2000)])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert abs(np.mean(areas) - 0.6) < 0.02  # even between 0.2 and 1
    assert np.abs(boxes[:, :2].mean(0) - (1 - boxes[:, 2:].mean(0))).max() < 0.02  # as far from each edge


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 9))
def test_a_part_of_a_tiny_image_has_pixels(width, height, draw):
    left, top, right, bottom = pixels(random_box(draw, 0.01), (width, height))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.fixture
def sampler_of(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ingest = write_ingest(Path(tmp_path, "store"))
    place = {"world": 1, "rank": 0, "seed": 0, "vary_instructions": False}
    return lambda least_crop=0.3, **changes: PairSampler(
        ingest, Sampling(batch_size=8, least_crop=least_crop), **place | changes
    )


def test_a_crop_is_a_function_of_seed_step_and_row(sampler_of):
    whole = sampler_of().pairs(5)
    parts = [sampler_of(world=2, rank=rank).pairs(5) for rank in (0, 1)]
    assert whole.query_rows == parts[0].query_rows + parts[1].query_rows
    assert whole.candidate_rows == parts[0].candidate_rows + parts[1].candidate_rows
    boxes = {
        name: [row.box for row in sampler_of(seed=seed).pairs(step).candidate_rows if row.image]
        for name, seed, step in (("here", 0, 5), ("later", 0, 6), ("other seed", 1, 5))
    }
    assert len({box for several in boxes.values() for box in several}) == sum(map(len, boxes.values())) > 3
    assert all(row.box is None for row in whole.query_rows if row.image is None)


def test_images_are_seen_whole_unless_asked(sampler_of):
    pairs = sampler_of(least_crop=1.0).pairs(0)
    assert all(row.box is None for row in pairs.query_rows + pairs.candidate_rows)


def test_the_model_sees_the_part_alone(tmp_path):
    collator = Encoder.load(write_checkpoint(tmp_path, "qwen2_vl", layers=1)).collator
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8))
    whole, part = io.BytesIO(), io.BytesIO()
    image.save(whole, "PNG")
    image.crop((30, 20, 90, 80)).save(part, "PNG")
    seen = collator([Row(None, whole.getvalue(), (0.25, 0.25, 0.75, 1.0))]).chunks[0]
    expected = collator([Row(None, part.getvalue())]).chunks[0]
    assert seen.pixels_PC.equal(expected.pixels_PC)
    assert seen.grid_I3.equal(expected.grid_I3)


def test_the_whole_is_seen_where_a_part_would_be_too_narrow_for_the_model(tmp_path):
    collator = Encoder.load(write_checkpoint(tmp_path, "qwen2_vl", layers=1)).collator
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((1600, 10)).save(buffer, "PNG")
    seen = collator([Row(None, buffer.getvalue(), (0.0, 0.0, 1.0, 0.5))]).chunks[0]
    assert seen.pixels_PC.equal(collator([Row(None, buffer.getvalue())]).chunks[0].pixels_PC)
