"""Samplers: every index once, reproducible, and the right probabilities."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

import needle as ndl
from needle.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SeededSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from needle.errors import ArgumentError, ShapeError


@given(st.integers(0, 300), st.integers(0, 2**62))
def test_random_sampler_is_a_permutation(n, seed):
    order = list(RandomSampler(range(n)).order(seed))
    assert sorted(order) == list(range(n))
    assert order == list(RandomSampler(range(n)).order(seed))
    assert all(type(i) is int for i in order)


def test_epochs_differ_and_are_reproducible():
    def epochs(seed):
        sampler = RandomSampler(range(20), generator=ndl.random.Generator(seed))
        return [list(sampler) for _ in range(3)]

    first = epochs(0)
    assert first == epochs(0)
    assert first != epochs(1)
    assert len({tuple(e) for e in first}) == 3


def test_manual_seed_decides_without_a_generator():
    sampler = RandomSampler(range(20))
    ndl.manual_seed(8)
    first = [list(sampler), list(sampler)]
    ndl.manual_seed(8)
    assert [list(sampler), list(sampler)] == first


def test_every_place_is_equally_likely():
    counts = np.zeros((5, 5))
    for seed in range(2000):
        for place, index in enumerate(RandomSampler(range(5)).order(seed)):
            counts[place, index] += 1
    # Binomial with n = 2000, p = 1/5: four standard deviations are 72.
    assert np.abs(counts - 400).max() < 72


def test_random_sampler_draws_fewer_or_with_replacement():
    some = list(RandomSampler(range(100), num_samples=10).order(0))
    assert len(set(some)) == 10
    many = RandomSampler(range(3), replacement=True, num_samples=3000)
    drawn = np.bincount(list(many.order(0)), minlength=3)
    assert drawn.sum() == len(many) == 3000
    assert np.abs(drawn - 1000).max() < 110
    assert not many.distinct


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomSampler(range(5), num_samples=6),
        lambda: RandomSampler(range(5), num_samples=0),
        lambda: RandomSampler(range(0), replacement=True),
        lambda: WeightedRandomSampler([1.0, -1.0], 1),
        lambda: WeightedRandomSampler([1.0, float("nan")], 1),
        lambda: WeightedRandomSampler([1.0, float("inf")], 1),
        lambda: WeightedRandomSampler([0.0, 0.0], 1),
        lambda: WeightedRandomSampler([], 1),
        lambda: WeightedRandomSampler([1.0, 0.0], 2, replacement=False),
        lambda: WeightedRandomSampler([1.0], 0),
        lambda: BatchSampler(range(3), 0, False),
        lambda: BatchSampler(range(3), True, False),
        lambda: BatchSampler(range(3), 2.0, False),
    ],
)
def test_samplers_reject(make):
    with pytest.raises(ArgumentError):
        make()


def test_weights_must_be_flat():
    with pytest.raises(ShapeError, match=r"\(1, 2\)"):
        WeightedRandomSampler([[1.0, 2.0]], 1)


def test_weighted_with_replacement_follows_the_weights():
    weights = np.array([0.0, 1.0, 3.0, 0.0, 6.0, 0.0])
    drawn = list(WeightedRandomSampler(weights, 20_000).order(1))
    frequency = np.bincount(drawn, minlength=6) / 20_000
    np.testing.assert_allclose(frequency, weights / 10, atol=0.014)  # four standard deviations
    assert (frequency[weights == 0] == 0).all()


def test_weighted_without_replacement_follows_successive_draws():
    weights = np.array([1.0, 2.0, 3.0, 0.0])
    pairs: dict[tuple[int, ...], int] = {}
    trials = 6000
    for seed in range(trials):
        pair = tuple(WeightedRandomSampler(weights, 2, replacement=False).order(seed))
        pairs[pair] = pairs.get(pair, 0) + 1
    for i in range(3):
        for j in range(3):
            if i != j:
                expected = weights[i] / 6 * weights[j] / (6 - weights[i])
                assert abs(pairs[i, j] / trials - expected) < 0.025
    assert all(3 not in pair for pair in pairs)


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=20), st.booleans())
def test_extreme_weights_stay_in_range(weights, replacement):
    n = len(weights)
    drawn = list(WeightedRandomSampler(weights, n, replacement=replacement).order(0))
    assert len(drawn) == n
    assert set(drawn) <= set(range(n))
    if not replacement:
        assert len(set(drawn)) == n


def test_subset_random_sampler():
    sampler = SubsetRandomSampler([4, 2, 8], ndl.random.Generator(0))
    assert sorted(sampler) == [2, 4, 8]
    assert len(sampler) == 3
    assert sampler.distinct
    assert not SubsetRandomSampler([1, 1]).distinct


@given(st.integers(0, 40), st.integers(1, 9), st.booleans())
def test_batches_are_the_order_cut_up(n, size, drop):
    sampler = BatchSampler(SequentialSampler(range(n)), size, drop)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    flat = [i for batch in batches for i in batch]
    assert flat == list(range(n // size * size if drop else n))
    assert all(len(batch) == size for batch in batches[:-1])
    assert batches == list(sampler.order(7))


def test_batch_sampler_passes_the_seed_on():
    inner = RandomSampler(range(9))
    batches = list(BatchSampler(inner, 2, False).order(5))
    assert [i for b in batches for i in b] == list(inner.order(5))


def test_base_classes_say_what_to_write():
    with pytest.raises(NotImplementedError, match="__iter__"):
        iter(Sampler())
    with pytest.raises(NotImplementedError, match="__len__"):
        len(Sampler())
    with pytest.raises(NotImplementedError, match="order"):
        iter(SeededSampler())
