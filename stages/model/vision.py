"""The vision tower: its stock forward, without what that repeats for each picture.

Shapes: P patches of I pictures, C values of a patch once (a still picture has T equal frames), N patches in one order
of attention, H heads of E values each, W windows.

Three things are exchanged, through what the library offers for it; weights, their names and the states stay.

    - patches are embedded by a matrix product: a convolution whose stride is its kernel is one, and torch's costs
      several times as much. Of a still picture's equal frames one is read, by the sum of the weights. (The library's
      own `fusion_config` does the first of this, and gives the weights other names.)
    - attention runs on all pictures, or windows, of one size at once; without flash attention the library calls it
      for each. Sizes are not padded to one another: a call costs less than the attention that padding adds.
    - positions and windows are made once for each size, not in a loop over pictures.
"""

from functools import cache, lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

ATTENTION = "puma_flash_free"
"""The library hands pictures over together, with their lengths, where the name of the implementation has "flash"."""
Order = torch.Tensor | None
"""Numbers of patches; None where they stand so already."""
SIZES = 512
"""Sizes of pictures whose positions are kept."""


def quicken(visual: Any) -> None:
    """Exchanges the parts of a stock vision tower; done twice it stays the same."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
    visual.config._attn_implementation = ATTENTION
    embedding = visual.patch_embed
    if not isinstance(embedding, PatchEmbedding):
        embedding.__class__ = _embedding(embedding.__class__)
        embedding.proj.__class__ = PatchProjection


@cache
def _embedding(stock: type[nn.Module]) -> type[nn.Module]:
    return type(f"Linear{stock.__name__}", (PatchEmbedding, stock), {})


class PatchEmbedding(nn.Module):
    """What a stock patch embedding becomes."""

    proj: nn.Conv3d

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """States [P, D] of patches [P, C], or [P, T · C] in the library's layout."""
        return self.proj(hidden_states.to(self.proj.weight.dtype))


class PatchProjection(nn.Conv3d):
    """The convolution as a product of matrices; a module of its own, since ZeRO-3 gathers weights for module calls."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """See `PatchEmbedding`."""
        weight = self.weight
        if input.shape[1] * self.kernel_size[0] == weight[0].numel():
            weight = weight.sum(2)
        return functional.linear(input, weight.flatten(1), self.bias)


def attend(_module: nn.Module, query_1HNE: torch.Tensor, key_1HNE: torch.Tensor, value_1HNE: torch.Tensor,
           *, cu_seq_lens_q: torch.Tensor, scaling: float, **_: Any) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention [1, N, H, E] within each stretch of patches, as the library calls its implementations.

    Args:
        cu_seq_lens_q: where stretches begin and the last one ends, on the CPU.
        scaling: of the products of queries and keys.
    """
    runs, order_N, back_N = _runs(tuple(cu_seq_lens_q.diff().tolist()), query_1HNE.device)
    parts = [x[0] if order_N is None else x[0, :, order_N] for x in (query_1HNE, key_1HNE, value_1HNE)]
    patches = [count * length for count, length in runs]
    stretches = zip(runs, *(x_HNE.split(patches, dim=1) for x_HNE in parts), strict=True)
    output_NHE = torch.cat([_attend_alike(run, *three, scaling=scaling) for run, *three in stretches])
    return (output_NHE if back_N is None else output_NHE[back_N])[None], None


def _attend_alike(run: tuple[int, int], *given: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention [N, H, E] of queries, keys and values within equal stretches, which stand side by side for it."""
    query, key, value = (x_HNE.unflatten(1, run).transpose(0, 1) for x_HNE in given)
    output = functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    return output.transpose(1, 2).flatten(0, 1)


@lru_cache(8)
@torch.inference_mode(False)  # what is kept may serve a training too
def _runs(lengths: tuple[int, ...], device: torch.device) -> tuple[list[tuple[int, int]], Order, Order]:
    """Stretches of one length, as (how many, length), the order that brings them together, and the way back."""
    ordered = sorted(lengths)
    runs = [(len(list(same)), length) for length, same in groupby(ordered)]
    if list(lengths) == ordered:
        return runs, None, None
    stretches = torch.arange(sum(lengths)).split(lengths)
    order_N = torch.cat([stretches[place] for place in sorted(range(len(lengths)), key=lengths.__getitem__)])
    return runs, order_N.to(device), order_N.argsort().to(device)


def geometry(visual: Any, grid_I3: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the tower's forward would compute from the (t, h, w) grids, under the names by which it takes it."""
    config, grids = visual.config, [tuple(grid) for grid in grid_I3.tolist()]
    lengths_I = torch.tensor([height * width for frames, height, width in grids for _ in range(frames)])
    positions = [_positions(grid, config.spatial_merge_size) for grid in grids]
    made = {"image_position_ids": torch.cat(positions).to(grid_I3.device), "image_cu_seqlens": _ends(lengths_I)}
    if not hasattr(config, "window_size"):
        return made
    windows = [_windows(grid, config.spatial_merge_size, config.window_size, config.patch_size) for grid in grids]
    starts = _ends(torch.tensor([len(index) for index, _ in windows])).tolist()
    index = torch.cat([index + start for (index, _), start in zip(windows, starts, strict=False)])
    ends = _ends(torch.cat([lengths_W for _, lengths_W in windows]))
    return made | {"image_window_index": index.to(grid_I3.device), "image_cu_window_seqlens": ends}


def _ends(lengths: torch.Tensor) -> torch.Tensor:
    return functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


@lru_cache(SIZES)
@torch.inference_mode(False)
def _positions(grid: tuple[int, ...], merge: int) -> torch.Tensor:
    return get_vision_position_ids(torch.tensor([grid]), merge)


@lru_cache(SIZES)
@torch.inference_mode(False)
def _windows(grid: tuple[int, ...], merge: int, window: int, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of merged patches that brings windows together, and the patches of each window."""
    index, ends = get_vision_window_index(torch.tensor([grid]), merge, window, patch)
    return index, ends.diff()
