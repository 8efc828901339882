"""Datasets, subsets and splits."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

import needle as ndl
from needle.data import DataLoader, Dataset, Subset, TensorDataset, random_split
from needle.errors import (
    ArgumentError,
    ArgumentTypeError,
    DTypeError,
    OutOfRangeError,
    ShapeError,
)


def test_rows_of_arrays_and_tensors():
    x, y = np.arange(6.0).reshape(3, 2), ndl.asarray([5, 6, 7])
    data = TensorDataset(x, y)
    assert len(data) == 3
    row, label = data[-1]
    assert row.tolist() == [4, 5]
    assert label == 7
    assert isinstance(row, np.ndarray)
    assert np.shares_memory(data.arrays[0], x)
    assert [int(label) for _, label in data] == [5, 6, 7]  # ends by IndexError


def test_lists_of_floats_become_float32():
    data = TensorDataset([0.5, 1.5], [1, 2], ndl.Tensor([1.0, 2.0]))
    assert [a.dtype for a in data.arrays] == [np.float32, np.int64, np.float32]


def test_bfloat16_is_a_number():
    data = TensorDataset(np.ones((2, 2), ml_dtypes.bfloat16))
    (batch,) = next(iter(DataLoader(data, 2)))
    assert batch.dtype == ndl.bfloat16


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ([], ArgumentError, "at least one"),
        ([np.zeros(3), np.zeros((4, 2))], ShapeError, r"lengths \[3, 4\].*\(3,\), \(4, 2\)"),
        ([np.float32(1)], ShapeError, "no axis"),
        ([[[1, 2], [3]]], ShapeError, "ragged"),
        ([np.array(["a", "b"])], DTypeError, "argument 0"),
        ([np.zeros(2), np.array([None, 1])], DTypeError, "argument 1"),
        ([np.zeros(2, np.complex64)], DTypeError, "complex"),
    ],
)
def test_what_is_no_tensor_dataset(arrays, error, message):
    with pytest.raises(error, match=message):
        TensorDataset(*arrays)


def test_indices_are_checked():
    data = TensorDataset(np.zeros(3))
    for index in (3, -4):
        with pytest.raises(OutOfRangeError, match=f"index {index} is out of range for 3"):
            data[index]
        with pytest.raises(OutOfRangeError, match=f"index {index} is out of range for 3"):
            data.get_batch(np.array([0, index]))
    for index in (1.0, "a", slice(0, 2)):
        with pytest.raises(ArgumentTypeError, match="must be an integer"):
            data[index]
    with pytest.raises(ArgumentTypeError, match="float64"):
        data.get_batch(np.array([0.0]))
    assert data.get_batch(np.zeros(0, np.int64))[0].shape == (0,)


def test_base_class_says_what_to_write():
    class Half(Dataset):
        pass

    for call in (lambda d: len(d), lambda d: d[0], lambda d: d.get_batch(np.array([0]))):
        with pytest.raises(NotImplementedError, match="Half"):
            call(Half())


def test_subset_of_a_subset():
    data = TensorDataset(np.arange(10) * 10)
    inner = Subset(data, [9, 7, 5, -9])
    outer = Subset(inner, np.array([3, 0]))
    assert [int(x) for (x,) in outer] == [10, 90]
    assert outer.batched
    assert outer.get_batch(np.array([1, 0]))[0].tolist() == [90, 10]
    assert len(Subset(data, [])) == 0
    with pytest.raises(OutOfRangeError, match="index 10 is out of range"):
        Subset(data, [0, 10])
    with pytest.raises(OutOfRangeError, match="index 4 is out of range for 4"):
        inner[4]


def test_subset_of_a_dataset_that_reads_one_by_one():
    class Plain:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return index * 2

    part = Subset(Plain(), [3, 1])
    assert not part.batched
    assert [b.tolist() for b in DataLoader(part, 2)] == [[6, 2]]


@given(st.integers(0, 200), st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_split_by_fractions_is_a_partition(n, weights):
    fractions = [w / sum(weights) for w in weights]
    parts = random_split(TensorDataset(np.arange(n)), fractions, ndl.random.Generator(0))
    everything = np.concatenate([p.indices for p in parts])
    assert sorted(everything.tolist()) == list(range(n))
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - n * fraction) <= len(parts)


def test_split_by_lengths_follows_the_generator():
    data = TensorDataset(np.arange(50))

    def split(seed):
        return [
            p.indices.tolist() for p in random_split(data, [40, 10], ndl.random.Generator(seed))
        ]

    assert split(1) == split(1) != split(2)
    generator = ndl.random.Generator(1)
    first = random_split(data, [40, 10], generator)[0].indices
    second = random_split(data, [40, 10], generator)[0].indices
    assert first.tolist() != second.tolist()  # the generator advanced


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([40, 11], r"sum to 51, but the dataset has 50"),
        ([0.5, 0.4], "must sum to 1"),
        ([60, -10], "must not be negative"),
        ([float("nan"), 1.0], "must not be negative"),
    ],
)
def test_split_rejects(lengths, message):
    with pytest.raises(ArgumentError, match=message):
        random_split(TensorDataset(np.arange(50)), lengths)
