"""The collectives of contrastive training, as small as they go.

Gathered tensors without gradients silently lose the candidates' share of the loss (ms-swift #5477); this gather has
them. Order is rank by rank, so that column `rank * B + i` is row i of that rank.
"""

from typing import Any

import torch
from torch import distributed


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return distributed.get_rank() if distributed.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """Forward: concatenate all ranks' rows. Backward: sum all ranks' gradients, keep this rank's rows."""

    @staticmethod
    def forward(context: Any, local_BD: torch.Tensor) -> torch.Tensor:
        context.rows = len(local_BD)
        parts = [torch.empty_like(local_BD) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, local_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient_CD: torch.Tensor) -> torch.Tensor:
        gradient_CD = gradient_CD.contiguous()
        distributed.all_reduce(gradient_CD)
        start = distributed.get_rank() * context.rows
        return gradient_CD[start : start + context.rows]


def gather(local_BD: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks, [world * B, ...], with gradient for floating tensors; every rank brings B rows."""
    if world_size() == 1:
        return local_BD
    return _Gather.apply(local_BD)


def total(local: torch.Tensor) -> torch.Tensor:
    """The sum of all ranks' tensors, without gradient."""
    if world_size() > 1:
        local = local.clone()
        distributed.all_reduce(local)
    return local


def largest(count: int, device: torch.device | str) -> int:
    """The largest of all ranks' counts."""
    if world_size() == 1:
        return count
    held = torch.tensor(count, device=device)
    distributed.all_reduce(held, distributed.ReduceOp.MAX)
    return int(held)
