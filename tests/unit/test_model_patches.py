"""Patches of pictures: the image processor's but for rounding where nothing is resized, else within a level of it."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from stages.model.patches import PatchCutter, resize

SIDES = [(140, 140), (56, 280), (128, 128), (50, 120), (300, 40), (700, 500), (9, 5)]


def noise(size: tuple[int, int]) -> Image.Image:
    """Soft colours of all levels."""
    rough = np.random.default_rng(0).integers(0, 256, (size[1] // 8 + 2, size[0] // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(params=[(14, 2), (16, 2), (16, 3)], ids=str)
def processor(request) -> Qwen2VLImageProcessorPil:
    patch, merge = request.param
    limits = {"shortest_edge": (patch * merge) ** 2, "longest_edge": 8 * (patch * merge) ** 2}
    colours = {"image_mean": [0.1, 0.5, 0.4], "image_std": [0.2, 0.5, 0.3]}
    return Qwen2VLImageProcessorPil(patch_size=patch, merge_size=merge, size=limits, **colours)


@pytest.mark.parametrize("size", SIDES)
def test_patches_are_the_processors_within_a_level(processor, size):
    picture = noise(size)
    expected = processor(images=[picture], return_tensors="np")
    levels, grid = (cut := PatchCutter(processor))(picture)
    assert np.array_equal(grid, expected["image_grid_thw"][0]) and levels.dtype == np.uint8
    patches = cut.frames(cut.values(torch.from_numpy(levels))).numpy()
    level = 1 / 255 / min(processor.image_std)
    assert np.abs(patches - expected["pixel_values"]).max() < 2.1 * level
    assert np.abs(patches - expected["pixel_values"]).mean() < 0.2 * level


def test_what_needs_no_resizing_is_the_processors_but_for_rounding(processor):
    side = processor.patch_size * processor.merge_size
    picture = noise((2 * side, 3 * side))
    expected = processor(images=[picture], return_tensors="np")["pixel_values"]
    cut = PatchCutter(processor)
    patches = cut.frames(cut.values(torch.from_numpy(cut(picture)[0])))
    assert patches.dtype == torch.float32 and np.abs(patches.numpy() - expected).max() < 1e-6


def test_a_strip_is_refused_as_by_the_processor(processor):
    with pytest.raises(ValueError, match="aspect ratio"):
        PatchCutter(processor)(noise((3000, 10)))


def test_pictures_keep_their_sides_apart_when_they_are_resized():
    levels_HWC = np.zeros((40, 20, 3), np.uint8)
    levels_HWC[:20, :, 0] = 255
    small_HWC = resize(levels_HWC, (20, 10))
    assert small_HWC.shape == (20, 10, 3)
    assert small_HWC[:8, :, 0].min() == 255 and small_HWC[12:].max() == 0 and small_HWC[:, :, 1:].max() == 0
