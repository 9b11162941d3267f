"""Rows to tensors: what a ragged batch of texts and images becomes before the model sees it.

Shapes: B rows, L tokens of the longest row, P vision patches of all images, C values of a patch, I images.

Rows are padded on the right and need no attention mask: attention is causal, so what stands after a row's last token
cannot reach it. Positions are computed here for each row alone (stock 2-D M-RoPE), hence a row's vector does not
depend on its neighbours. Images are decoded here; truncation cuts text only, never an image's tokens.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from stages.model.prompt import IMAGE_PAD, RETRIEVAL_TOKEN, render


@dataclass(frozen=True)
class Row:
    """One thing to embed: text, an encoded image, or both. A query's text already holds its instruction."""

    text: str | None = None
    image: bytes | None = None


@dataclass(frozen=True)
class Batch:
    """A collated batch; see the module header for the shapes."""

    input_ids_BL: torch.Tensor
    position_ids_3BL: torch.Tensor
    last_B: torch.Tensor
    pixels_PC: torch.Tensor | None
    grid_I3: torch.Tensor | None

    def to(self, device: str) -> "Batch":
        """The same batch on `device`."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in self.__dict__.items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


class Collator:
    """Turns rows into a `Batch`. Holds the tokenizer and the image processor, no weights.

    Args:
        tokenizer: knows `[RET]` and the vision tokens.
        image_processor: a `Qwen2VLImageProcessorPil`; its size limits bound the tokens of an image.
        max_text_tokens: longer texts are cut.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, max_text_tokens: int):
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.max_text_tokens = max_text_tokens
        self.image_token = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        self.retrieval_token = tokenizer.convert_tokens_to_ids(RETRIEVAL_TOKEN)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collates rows; every row ends in `[RET]`, at index `last_B`."""
        pixels, grids = self._images([row.image for row in rows if row.image is not None])
        grid_of_row = iter(grids)
        grids_B = [next(grid_of_row) if row.image is not None else None for row in rows]
        prompts = [render(self._cut(row.text), row.image is not None) for row in rows]
        tokens_B = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        sequences = [self._expand(tokens, grid) for tokens, grid in zip(tokens_B, grids_B, strict=True)]
        positions = [self._positions(tokens, grid) for tokens, grid in zip(sequences, grids_B, strict=True)]
        return _pad(sequences, positions, pixels, grids)

    def _cut(self, text: str | None) -> str | None:
        """The text cut to `max_text_tokens`; short texts skip the tokenizer, a token being one character at least."""
        if text is None or len(text) <= self.max_text_tokens:
            return text
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoding["offset_mapping"]
        return text if len(offsets) <= self.max_text_tokens else text[: offsets[self.max_text_tokens - 1][1]]

    def _images(self, encoded: list[bytes]) -> tuple[np.ndarray | None, list[np.ndarray]]:
        if not encoded:
            return None, []
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded]
        features = self.image_processor(images=pictures, return_tensors="np")
        return features["pixel_values"], list(features["image_grid_thw"])

    def _expand(self, tokens: list[int], grid: np.ndarray | None) -> list[int]:
        """Repeats the single image token once for each merged patch."""
        if grid is None:
            return tokens
        count = int(grid.prod()) // self.image_processor.merge_size**2
        at = tokens.index(self.image_token)
        return tokens[:at] + [self.image_token] * count + tokens[at + 1 :]

    def _positions(self, tokens: list[int], grid: np.ndarray | None) -> np.ndarray:
        """M-RoPE positions [3, len(tokens)]: text counts on, an image spans its (t, h, w) grid at one start."""
        if grid is None:
            return np.tile(np.arange(len(tokens)), (3, 1))
        merge = self.image_processor.merge_size
        frames, height, width = int(grid[0]), int(grid[1]) // merge, int(grid[2]) // merge
        start = tokens.index(self.image_token)
        image = np.indices((frames, height, width)).reshape(3, -1) + start
        after = start + max(height, width) + np.arange(len(tokens) - start - image.shape[1])
        return np.concatenate([np.tile(np.arange(start), (3, 1)), image, np.tile(after, (3, 1))], axis=1)


def _pad(
    sequences: list[list[int]], positions: list[np.ndarray], pixels: np.ndarray | None, grids: list[np.ndarray]
) -> Batch:
    """Pads on the right with token 0 at position 0; causal attention keeps the padding out of every row."""
    length = max(len(tokens) for tokens in sequences)
    input_ids_BL = np.zeros((len(sequences), length), np.int64)
    position_ids_3BL = np.zeros((3, len(sequences), length), np.int64)
    for index, (tokens, position) in enumerate(zip(sequences, positions, strict=True)):
        input_ids_BL[index, : len(tokens)] = tokens
        position_ids_3BL[:, index, : len(tokens)] = position
    return Batch(
        input_ids_BL=torch.from_numpy(input_ids_BL),
        position_ids_3BL=torch.from_numpy(position_ids_3BL),
        last_B=torch.tensor([len(tokens) - 1 for tokens in sequences]),
        pixels_PC=None if pixels is None else torch.from_numpy(np.ascontiguousarray(pixels)),
        grid_I3=None if pixels is None else torch.from_numpy(np.stack(grids)),
    )
