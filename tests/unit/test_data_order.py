"""The order of samples: pure, the same for any number of workers, complete in every epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.order import batch_at, drawn, epoch_order, in_blocks, picks, steps_per_epoch, upsampled
from stages.learn.settings import Training

sizes = st.integers(8, 300)
seeds = st.integers(0, 2**31)


@given(sizes, seeds, st.integers(0, 100), st.sampled_from([1, 2, 4, 8]))
def test_the_global_batch_is_the_same_for_any_number_of_workers(size, seed, step, world):
    whole = batch_at(step, size=size, batch=8, seed=seed)
    shares = [batch_at(step, size=size, batch=8, world=world, rank=rank, seed=seed) for rank in range(world)]
    assert np.array_equal(np.concatenate(shares), whole)


@given(sizes, seeds, st.integers(0, 5))
def test_an_epoch_repeats_no_sample_and_drops_less_than_a_batch(size, seed, epoch):
    steps = steps_per_epoch(size, 8)
    seen = np.concatenate([batch_at(epoch * steps + step, size=size, batch=8, seed=seed) for step in range(steps)])
    assert len(set(seen.tolist())) == len(seen) > size - 8
    assert 0 <= seen.min() <= seen.max() < size


def test_epochs_and_seeds_are_shuffled_differently():
    first = batch_at(0, size=64, batch=64, seed=1)
    assert not np.array_equal(first, batch_at(1, size=64, batch=64, seed=1))
    assert not np.array_equal(first, batch_at(0, size=64, batch=64, seed=2))
    assert np.array_equal(first, batch_at(0, size=64, batch=64, seed=1))


def test_a_batch_that_cannot_be_is_refused_with_advice():
    with pytest.raises(ValueError, match="lower batch_size"):
        batch_at(0, size=4, batch=8)
    with pytest.raises(ValueError, match="choose a multiple of 3"):
        batch_at(0, size=64, batch=8, world=3)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=50, unique=True), seeds, st.integers(0, 1000))
def test_a_pick_belongs_to_the_sample_and_not_to_its_place(samples, seed, step):
    forward = picks(step, np.array(samples), seed=seed)
    backward = picks(step, np.array(samples[::-1]), seed=seed)
    assert np.array_equal(forward, backward[::-1])


def test_picks_are_even_and_streams_differ():
    samples = np.arange(6000)
    chosen = picks(3, samples, seed=0) % np.uint64(3)
    assert np.all(np.abs(np.bincount(chosen.astype(int), minlength=3) - 2000) < 200)
    assert np.mean(chosen == picks(3, samples, seed=0, stream=1) % np.uint64(3)) < 0.4
    assert np.mean(chosen == picks(4, samples, seed=0) % np.uint64(3)) < 0.4


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 7), seeds)
def test_blocks_are_of_one_group_and_what_fills_none_comes_last(groups, block, seed):
    group = np.array(groups, np.int64)
    order = epoch_order(len(group), seed, 0)
    blocked = in_blocks(order, group, block)
    assert sorted(blocked) == list(range(len(group)))
    whole = sum(np.bincount(group) // block) * block if len(group) else 0
    assert all(len(set(group[blocked[start : start + block]])) == 1 for start in range(0, whole, block))
    where = np.argsort(order)
    assert np.all(np.diff(where[blocked[0:whole:block]]) > 0) and np.all(np.diff(where[blocked[whole:]]) > 0)
    for name in set(groups):  # within a group the epoch's order stays
        assert list(blocked[group[blocked] == name]) == list(order[group[order] == name])


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, 40))
def test_small_groups_are_repeated_evenly_and_large_ones_stay(groups, least):
    group = np.array(groups, np.int64)
    times = np.bincount(upsampled(group, least), minlength=len(group))
    for name in set(groups):
        members = group == name
        assert times[members].sum() == max(least, members.sum())
        assert times[members].max() - times[members].min() <= 1


def test_draws_are_of_the_seed_alone_nested_and_keep_repetitions():
    samples = np.repeat(np.arange(50), 2)
    some, more = drawn(samples, 30, 5), drawn(samples, 60, 5)
    assert len(some) == 30 and np.array_equal(some, drawn(samples, 30, 5)) and (np.diff(some) >= 0).all()
    assert not (Counter(some.tolist()) - Counter(more.tolist()))
    assert not np.array_equal(some, drawn(samples, 30, 6))
    assert drawn(samples, 100, 5) is samples


@pytest.mark.parametrize(("steps", "draws"), [(0, 0), (1, 64), (2, 130), (40, 2600), (300, 20_000), (8_605, 560_000)])
def test_steps_draw_a_number_of_two_digits_that_is_large_enough(steps, draws):
    assert Training(steps=steps).draws == draws >= steps * 64
