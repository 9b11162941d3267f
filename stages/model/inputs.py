"""Rows to tensors: what a ragged batch of texts and images becomes before the model sees it.

Shapes: B rows of a batch, R rows of a chunk, L tokens of its longest row, J of its rows with an image, I different
images of theirs, P vision patches of these, C values of a patch.

A batch is cut into chunks of rows of similar length, and each chunk is padded on the right to its own longest row:
texts of ten tokens do not pay for texts of a hundred. No attention mask is needed: attention is causal, and so are
linear attention and the convolution before it, so what stands after a row's last token cannot reach it. Positions are
computed here for each row alone (stock 2-D M-RoPE), hence a row's vector does not depend on its neighbours. Images are
decoded here; one that several rows have is decoded and looked at once.

Chunks are also the passes of GradCache, which bounds their rows (`limit`). Where ranks must run the same modules in
every pass, chunks without a picture get a blank one in a row of no meaning (`needs_images`); see
`stages.learn.gradcache`.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import Image

from stages.data.narrow import too_narrow
from stages.model.patches import PatchCutter
from stages.model.prompt import IMAGE_PAD, ReadOut
from stages.model.rows import Box, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2VLImageProcessorPil

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")

SPREAD = 1.25
"""The longest row of a chunk has at most this many times the tokens of its shortest: a fifth of padding at worst."""


@dataclass(frozen=True)
class Chunk:
    """Rows of similar length, padded to one rectangle; see the module header for the shapes."""

    input_ids_RL: torch.Tensor
    position_ids_3RL: torch.Tensor
    last_R: torch.Tensor
    pixels_PC: torch.Tensor | None
    """Levels, uint8, of the different images, those of few patches first."""
    grid_I3: torch.Tensor | None
    image_J: torch.Tensor | None
    """For each row with an image the number of its image."""

    def __len__(self) -> int:
        """Its rows."""
        return len(self.last_R)

    @property
    def tokens(self) -> int:
        """Tokens of its rows, without padding."""
        return int(self.last_R.sum()) + len(self)

    def to(self, device: torch.device | str) -> "Chunk":
        """The same chunk on `device`."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Batch:
    """Collated rows: the chunks, and for each of the rows its place in their concatenation.

    Rows of the concatenation that no place names are fillers: their states are computed and dropped.
    """

    chunks: tuple[Chunk, ...]
    place_B: torch.Tensor

    @classmethod
    def of(cls, chunk: Chunk) -> "Batch":
        """The rows of one chunk, as they stand in it."""
        return cls((chunk,), torch.arange(len(chunk), device=chunk.last_R.device))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        return Batch(tuple(chunk.to(device) for chunk in self.chunks), self.place_B.to(device))


Picture = tuple[bytes | None, Box | None]
"""An encoded image, and the part of it that is seen."""
Seen = tuple[np.ndarray, np.ndarray]
"""An image's patches uint8 [P, C] and grid [3]."""
Sequenced = tuple[list[int], Seen | None]
"""A row's tokens and its image; rows of one image have the same object."""


class Collator:
    """Turns rows into a `Batch`. Holds the tokenizer and the image processor, no weights.

    Args:
        tokenizer: knows the control tokens of the read-out.
        image_processor: its size limits bound the tokens of an image.
        read_out: the prompt that rows are read with.
        max_text_characters: of instruction and text together that are read.
        readers: threads that decode and resize images; Pillow, numpy and torch let them work side by side.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        image_processor: "Qwen2VLImageProcessorPil",
        read_out: ReadOut,
        max_text_characters: int,
        readers: int = 1,
    ):
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.cut = PatchCutter(image_processor)
        self.read_out, self.max_text_characters, self.readers = read_out, max_text_characters, readers
        self.image_token = tokenizer.get_vocab()[IMAGE_PAD]
        self._map = map if readers == 1 else ThreadPoolExecutor(readers, "images").map

    def __call__(self, rows: Sequence[Row], limit: int = 0, needs_images: bool = False, tokens: int = 0) -> Batch:
        """Collates rows; every row ends in the token that is read out, at index `last_R` of its chunk.

        Args:
            rows: texts, images, or both.
            limit: rows of a chunk at most; 0 is no limit.
            needs_images: chunks without an image get the filler.
            tokens: of a chunk at most, padding included, where it has several rows; 0 is no limit.
        """
        sequences = self._sequences(rows)
        groups = bucket_by_length([len(ids) for ids, _ in sequences], limit, tokens)
        chunks, place_B, start = [], torch.empty(len(rows), dtype=torch.long), 0
        for group in groups:
            place_B[torch.tensor(group)] = start + torch.arange(len(group))
            members = [sequences[index] for index in group]
            if needs_images and not any(image for _, image in members):
                members.append(self._filler)
            chunks.append(self._chunk(members))
            start += len(members)
        return Batch(tuple(chunks), place_B)

    def filler(self) -> Chunk:
        """The cheapest chunk with an image: one row, a blank picture of the smallest size."""
        return self._chunk([self._filler])

    @cached_property
    def _filler(self) -> Sequenced:
        blank = io.BytesIO()
        Image.new("RGB", (self.image_processor.patch_size * self.image_processor.merge_size,) * 2).save(blank, "PNG")
        return self._sequences([Row(None, blank.getvalue())])[0]

    def _sequences(self, rows: Sequence[Row]) -> list[Sequenced]:
        """For each row its tokens, and its image's patches and grid."""
        seen = self._look({(row.image, row.box): row for row in rows if row.image is not None})
        images = [seen.get((row.image, row.box)) for row in rows]
        return [
            (self.expand(tokens, image[1] if image else None), image)
            for tokens, image in zip(self._tokens(rows), images, strict=True)
        ]

    def _look(self, rows: dict[Picture, Row]) -> dict[Picture, Seen]:
        """Patches and grids; each reader takes a share, since handing one over costs as much as a small picture."""
        shares = [list(rows.items())[first :: self.readers] for first in range(min(self.readers, len(rows)))]
        each = self._map if len(shares) > 1 else map
        return dict(chain.from_iterable(each(lambda share: [(key, self.patches(row)) for key, row in share], shares)))

    def _tokens(self, rows: Sequence[Row]) -> list[list[int]]:
        """The tokens of each row's prompt, in which an image is one token."""
        most = self.max_text_characters
        prompts = [self.read_out.render(row.text, row.image is not None, most, row.instruction) for row in rows]
        return self.tokenizer(prompts, add_special_tokens=False)["input_ids"]

    def _chunk(self, rows: list[Sequenced]) -> Chunk:
        """Pads with token 0; causal attention keeps the padding out of every row."""
        length = max(len(tokens) for tokens, _ in rows)
        input_ids_RL = np.zeros((len(rows), length), np.int64)
        position_ids_3RL = np.tile(np.arange(length), (3, len(rows), 1))
        for index, (tokens, image) in enumerate(rows):
            input_ids_RL[index, : len(tokens)] = tokens
            if image:
                position_ids_3RL[:, index, : len(tokens)] = self._positions(tokens, image[1])
        images = [image for _, image in rows if image]
        different = sorted({id(image): image for image in images}.values(), key=lambda image: len(image[0]))
        number = {id(image): index for index, image in enumerate(different)}
        return Chunk(
            input_ids_RL=torch.from_numpy(input_ids_RL),
            position_ids_3RL=torch.from_numpy(position_ids_3RL),
            last_R=torch.tensor([len(tokens) - 1 for tokens, _ in rows]),
            pixels_PC=torch.from_numpy(np.concatenate([patches for patches, _ in different])) if images else None,
            grid_I3=torch.from_numpy(np.stack([grid for _, grid in different])) if images else None,
            image_J=torch.tensor([number[id(image)] for image in images]) if images else None,
        )

    def patches(self, row: Row) -> Seen:
        """Vision patches [P, C] and the (t, h, w) grid [3] of a row's image, as the row says it is seen.

        Patches are levels, uint8; `cut.values` makes of them what a model reads. A part that is too narrow for a model
        gives way to the whole.
        """
        image: Image.Image = Image.open(io.BytesIO(row.image or b""))
        if image.mode != "RGB":  # else it would be copied
            image = image.convert("RGB")
        if row.box is not None:
            part = image.crop(pixels(row.box, image.size))
            image = image if too_narrow(*part.size) else part
        return self.cut(image)

    def expand(self, tokens: list[int], grid: np.ndarray | None) -> list[int]:
        """Repeats the single image token once for each merged patch."""
        if grid is None:
            return tokens
        count = int(grid.prod()) // self.image_processor.merge_size**2
        at = tokens.index(self.image_token)
        return tokens[:at] + [self.image_token] * count + tokens[at + 1 :]

    def count_tokens(self, row: Row) -> int:
        """Length of a row's sequence, found without reading its picture's pixels."""
        (tokens,) = self._tokens([row])
        if row.image is None:
            return len(tokens)
        width, height = Image.open(io.BytesIO(row.image)).size
        patches = self.image_processor.get_number_of_image_patches(height, width, {})
        return len(tokens) - 1 + patches // self.image_processor.merge_size**2

    def _positions(self, tokens: list[int], grid: np.ndarray) -> np.ndarray:
        """M-RoPE positions [3, len(tokens)]: text counts on, an image spans its (t, h, w) grid at one start."""
        merge = self.image_processor.merge_size
        frames, height, width = int(grid[0]), int(grid[1]) // merge, int(grid[2]) // merge
        start = tokens.index(self.image_token)
        image = np.indices((frames, height, width)).reshape(3, -1) + start
        after = start + max(height, width) + np.arange(len(tokens) - start - image.shape[1])
        return np.concatenate([np.tile(np.arange(start), (3, 1)), image, np.tile(after, (3, 1))], axis=1)


def prefetch(prepare: Callable[[Item], Prepared], items: Sequence[Item]) -> Iterator[Prepared]:
    """`prepare(item)` of each item in turn; while one is used, a thread prepares the next."""
    if len(items) <= 1:  # a thread costs more than a short query
        yield from map(prepare, items)
        return
    with ThreadPoolExecutor(1, "prefetch") as reader:
        upcoming = reader.submit(prepare, items[0])
        for item in items[1:]:
            current, upcoming = upcoming.result(), reader.submit(prepare, item)
            yield current
        yield upcoming.result()


def pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels of a part of an image of `size` (width, height); at least one in each direction."""
    (width, height), (left, top, right, bottom) = size, box
    left, top = min(int(left * width), width - 1), min(int(top * height), height - 1)
    return left, top, max(round(right * width), left + 1), max(round(bottom * height), top + 1)


def bucket_by_length(lengths: Sequence[int], limit: int = 0, tokens: int = 0) -> list[list[int]]:
    """Groups row numbers, shortest rows first, so that lengths within a group differ by `SPREAD` at most.

    `limit` is the size of a group at most, `tokens` its size times its longest length; 0 is no limit.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length, last = lengths[index], groups[-1] if groups else []
        full = len(last) == limit or (tokens and (len(last) + 1) * length > tokens)
        if not last or length > SPREAD * lengths[last[0]] or full:
            groups.append([])
        groups[-1].append(index)
    return groups
