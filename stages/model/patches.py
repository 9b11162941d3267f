"""A picture to the patches that a vision tower reads.

Shapes: H × W pixels of C channels, P patches of S pixels, V = C · S values of a patch, T frames of a picture (2).

The same steps as in transformers' image processors (size by `smart_resize`, bicubic with antialiasing, cut, rescaled,
normalised), without what they cost for each picture, which is more than all of the steps. Pixels are resized by torch,
as torchvision does it in every other loader of a student; Pillow rounds some of them to the next level, and takes
several times as long.

A batch holds levels, one byte each, of one frame; they become values on the model's device. A value is a level times
a scale and a shift of its channel, which are read off a picture that the image processor itself was shown. It rounds
elsewhere than the processor, by 1e-7, as torchvision's does too.
"""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

LEVELS = 256
ROUNDING = 1e-5


class PatchCutter:
    """Cuts pictures as an image processor says.

    Args:
        processor: its limits of size, and what it makes of colours.
    """

    def __init__(self, processor: Qwen2VLImageProcessorPil):
        self.patch, self.merge, self.times = processor.patch_size, processor.merge_size, processor.temporal_patch_size
        self.least, self.most = processor.size["shortest_edge"], processor.size["longest_edge"]
        self.scale_V, self.shift_V = self._colours(processor)

    def __call__(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """Levels uint8 [P, V] of the patches, and the (t, h, w) grid [3], of an RGB picture.

        Raises:
            ValueError: one side is more than 200 times the other.
        """
        size = smart_resize(image.height, image.width, self.patch * self.merge, self.least, self.most)
        levels_PCS = self._cut(resize(np.array(image), size))
        grid_3 = np.array([1, size[0] // self.patch, size[1] // self.patch], np.int64)
        return levels_PCS.reshape(len(levels_PCS), -1), grid_3

    def values(self, levels_PV: torch.Tensor) -> torch.Tensor:
        """What the image processor makes of these levels, float32 [P, V]."""
        scale_V, shift_V = (part.to(levels_PV.device, non_blocking=True) for part in (self.scale_V, self.shift_V))
        return levels_PV.float().mul_(scale_V).add_(shift_V)

    def frames(self, values_PV: torch.Tensor) -> torch.Tensor:
        """The patches of still pictures as stock models read them, each frame anew: [P, C · T · S]."""
        channels_PCS = values_PV.unflatten(1, (-1, self.patch**2))
        return channels_PCS[:, :, None].expand(-1, -1, self.times, -1).flatten(1)

    def _cut(self, levels_HWC: np.ndarray) -> np.ndarray:
        """Levels [P, C, S] of patches of S pixels; those that the tower merges into one state stand side by side."""
        height, width, channels = levels_HWC.shape
        side = self.patch * self.merge
        blocks = levels_HWC.reshape(
            height // side, self.merge, self.patch, width // side, self.merge, self.patch, channels
        )
        return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, channels, self.patch**2)

    def _colours(self, processor: Qwen2VLImageProcessorPil) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift, float32 [V], of the processor, which is shown a picture of all levels."""
        side = self.patch * self.merge
        rows = -(-LEVELS // side**2)
        levels_HWC = np.resize(np.arange(LEVELS, dtype=np.uint8), (3, rows * side, side)).transpose(1, 2, 0)
        shown = processor(images=[Image.fromarray(levels_HWC)], do_resize=False, return_tensors="np")
        seen_PCTS = shown["pixel_values"].reshape(-1, 3, self.times, self.patch**2)
        values_CL = np.empty((3, LEVELS))
        for channel in range(3):
            values_CL[channel, self._cut(levels_HWC)[:, channel]] = seen_PCTS[:, channel, 0]
        scale_C, shift_C = (values_CL[:, -1] - values_CL[:, 0]) / (LEVELS - 1), values_CL[:, 0]
        assert np.allclose(values_CL, scale_C[:, None] * np.arange(LEVELS) + shift_C[:, None], atol=ROUNDING)
        scale_V, shift_V = (np.repeat(part, self.patch**2).astype(np.float32) for part in (scale_C, shift_C))
        return torch.from_numpy(scale_V), torch.from_numpy(shift_V)


def resize(levels_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture, uint8, at `size` (height, width): bicubic, with antialiasing where it gets smaller."""
    if levels_HWC.shape[:2] == size:
        return levels_HWC
    levels_1CHW = torch.from_numpy(levels_HWC).permute(2, 0, 1)[None]
    return functional.interpolate(levels_1CHW, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
