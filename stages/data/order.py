"""Which samples meet in which batch: pure functions of (seed, step, world size, rank), numpy only.

A global batch is a contiguous slice of the epoch's permutation, and a rank takes its slice of that. So the same
samples meet whatever the number of processes, a run that resumes at step s continues with exactly the batch that it
would have seen, and all of it is tested without torch. A stateful sampler, the usual alternative, would have to be
saved, restored and trusted.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

DRAWN = 2**32 - 1  # where an epoch's number stands: no training comes to that one


def steps_per_epoch(size: int, batch: int) -> int:
    """Full batches in an epoch of `size` samples; the tail that fills no batch is dropped."""
    return size // batch


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation int64 [size] of one epoch, read-only."""
    order = np.random.default_rng([seed, epoch]).permutation(size)
    order.setflags(write=False)
    return order


def task_groups(dataset: np.ndarray, task: np.ndarray) -> np.ndarray:
    """One number for each sample's data set and task, int64 [N]."""
    return dataset.astype(np.int64) << 32 | task


def upsampled(group: np.ndarray, least: int) -> np.ndarray:
    """Samples int64 [M] of one epoch in which every group has at least `least`: small groups are repeated.

    M-BEIR repeats its small data sets in the same way before training (UniIR issue 6, paper.md §4). Each sample of a
    group comes equally often, give or take once; a group that is large enough stays as it is.

    Args:
        group: the group of each sample, integers [N].
        least: 0 repeats nothing.
    """
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(group) else []
    return np.concatenate([np.resize(rows, max(least, len(rows))) for rows in members] or [order])


def drawn(samples: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most `most` of the samples of an epoch, drawn by `seed` alone, in their order.

    A training that comes to fewer samples than there are goes over these: which they are can then be told without
    it, and a teacher reads no others. Not by the seed of the training: trainings that differ in their luck alone
    share what the teacher read.
    """
    if most >= len(samples):
        return samples
    places = np.random.default_rng([seed, DRAWN]).permutation(len(samples))[:most]
    return samples[np.sort(places)]


def in_blocks(order: np.ndarray, group: np.ndarray, block: int) -> np.ndarray:
    """The same samples int64 [N], each block of `block` of them from one group: homogeneous sub-batches.

    Negatives of a query's own task are harder (VLM2Vec-V2 trains on sub-batches of one data set). Blocks come in
    the order of their first samples; what fills no block stands, mixed, at the end.

    Args:
        order: a permutation of the samples.
        group: the group of each sample, integers [N].
        block: samples of a block.
    """
    by_group = np.argsort(group[order], kind="stable")  # places in `order`, group by group, each in its order
    members = group[order][by_group]
    first = np.searchsorted(members, members)  # where the sample's group begins
    within = np.arange(len(order)) - first
    start = first + within // block * block  # where the sample's block begins
    size = np.searchsorted(members, members, side="right") - first
    full = start - first + block <= size
    rank = np.where(full, by_group[start], len(order) + by_group)
    return order[by_group[np.argsort(rank, kind="stable")]]


def batch_at(
    step: int,
    *,
    size: int,
    batch: int,
    world: int = 1,
    rank: int = 0,
    seed: int = 0,
    order_of: Callable[[int, int, int], np.ndarray] = epoch_order,
) -> np.ndarray:
    """The samples int64 [batch / world] that `rank` trains on in step `step`, counted from 0 over all epochs.

    `order_of` gives an epoch's order from (size, seed, epoch).

    Raises ValueError where `batch` is larger than `size` or no multiple of `world`.
    """
    if not 1 <= batch <= size:
        raise ValueError(f"{size} samples are fewer than a batch of {batch}: lower batch_size or give more data")
    if batch % world:
        raise ValueError(f"a batch of {batch} cannot be shared by {world} workers: choose a multiple of {world}")
    epoch, within = divmod(step, steps_per_epoch(size, batch))
    share = batch // world
    start = within * batch + rank * share
    return order_of(size, seed, epoch)[start : start + share]


def picks(step: int, samples: np.ndarray, *, seed: int, stream: int = 0) -> np.ndarray:
    """A random uint64 for each of `samples` [N] in step `step`: take it modulo the number of choices.

    It depends on the sample, not on its place in the batch, so that the choice of a positive or of an instruction
    stays the same for any number of workers. `stream` separates the choices that one step makes. (SplitMix64.)
    """
    mix = np.array([seed, step, stream], dtype=np.uint64)
    state = samples.astype(np.uint64)
    with np.errstate(over="ignore"):
        for part in mix:
            state = _scramble(state + part * np.uint64(0xD1342543DE82EF95))
    return state


def _scramble(state: np.ndarray) -> np.ndarray:
    """The SplitMix64 step, elementwise."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
