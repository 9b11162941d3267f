"""A picture to the patches that a vision tower reads.

Shapes: H × W pixels of C channels, P patches, T times that a still picture is repeated (2), V values of a patch.

The same steps as in transformers' image processors (size by `smart_resize`, bicubic with antialiasing, rescaled,
normalised, cut), without what they cost for each picture, which is more than all of the steps. A value is looked up by
its level, one of 256, in a table that the image processor itself has filled, so that what it does to colours holds to
the bit. Pixels are resized by torch, as torchvision does it in every other loader of a student; Pillow rounds some of
them to the next level, and takes several times as long.
"""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

LEVELS = 256


class PatchCutter:
    """Cuts pictures as an image processor says.

    Args:
        processor: its limits of size, and what it makes of colours.
    """

    def __init__(self, processor: Qwen2VLImageProcessorPil):
        self.patch, self.merge, self.times = processor.patch_size, processor.merge_size, processor.temporal_patch_size
        self.least, self.most = processor.size["shortest_edge"], processor.size["longest_edge"]
        self.values_CL = self._values(processor)

    def __call__(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """Patches float32 [P, V] and the (t, h, w) grid [3] of an RGB picture.

        Raises:
            ValueError: one side is more than 200 times the other.
        """
        size = smart_resize(image.height, image.width, self.patch * self.merge, self.least, self.most)
        levels_PCS = self._cut(resize(np.array(image), size))
        patches_PCTS = np.empty((len(levels_PCS), len(self.values_CL), self.times, self.patch**2), np.float32)
        for channel, values_L in enumerate(self.values_CL):
            patches_PCTS[:, channel] = values_L[levels_PCS[:, channel]][:, None]
        grid_3 = np.array([1, size[0] // self.patch, size[1] // self.patch], np.int64)
        return patches_PCTS.reshape(len(patches_PCTS), -1), grid_3

    def _cut(self, levels_HWC: np.ndarray) -> np.ndarray:
        """Levels [P, C, S] of patches of S pixels; those that the tower merges into one state stand side by side."""
        height, width, channels = levels_HWC.shape
        side = self.patch * self.merge
        blocks = levels_HWC.reshape(
            height // side, self.merge, self.patch, width // side, self.merge, self.patch, channels
        )
        return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, channels, self.patch**2)

    def _values(self, processor: Qwen2VLImageProcessorPil) -> np.ndarray:
        """What the processor makes of each level of each channel, float32 [C, 256]; it is shown a picture of all."""
        side = self.patch * self.merge
        rows = -(-LEVELS // side**2)
        levels_HWC = np.resize(np.arange(LEVELS, dtype=np.uint8), (3, rows * side, side)).transpose(1, 2, 0)
        shown = processor(images=[Image.fromarray(levels_HWC)], do_resize=False, return_tensors="np")
        seen_PCTS = shown["pixel_values"].reshape(-1, 3, self.times, self.patch**2)
        values_CL = np.empty((3, LEVELS), np.float32)
        for channel in range(3):
            values_CL[channel, self._cut(levels_HWC)[:, channel]] = seen_PCTS[:, channel, 0]
        return values_CL


def resize(levels_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture, uint8, at `size` (height, width): bicubic, with antialiasing where it gets smaller."""
    if levels_HWC.shape[:2] == size:
        return levels_HWC
    levels_1CHW = torch.from_numpy(levels_HWC).permute(2, 0, 1)[None]
    return functional.interpolate(levels_1CHW, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
