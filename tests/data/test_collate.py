"""Collation: structure, dtypes, and errors that name the sample."""

from typing import NamedTuple

import numpy as np
import pytest

import needle as ndl
from needle.data import default_collate
from needle.errors import (
    ArgumentError,
    ArgumentTypeError,
    DTypeError,
    OutOfRangeError,
    ShapeError,
)


class Point(NamedTuple):
    x: float
    y: int


@pytest.mark.parametrize(
    ("samples", "dtype", "shape"),
    [
        ([1, 2], ndl.int64, (2,)),
        ([1.5, 2.5], ndl.float32, (2,)),
        ([True, False], ndl.bool, (2,)),
        ([np.float64(1), np.float64(2)], ndl.float64, (2,)),
        ([np.uint8(1), np.uint8(2)], ndl.uint8, (2,)),
        ([np.bool_(True)], ndl.bool, (1,)),
        ([np.zeros((2, 3), np.float16)] * 4, ndl.float16, (4, 2, 3)),
        ([np.zeros((0, 3))] * 2, ndl.float64, (2, 0, 3)),
        ([np.zeros(())] * 2, ndl.float64, (2,)),
        ([np.arange(6).reshape(2, 3).T, np.zeros((3, 2), np.int64)], ndl.int64, (2, 3, 2)),
        ([np.arange(3, dtype=">i4")] * 2, ndl.int32, (2, 3)),
    ],
)
def test_leaves(samples, dtype, shape):
    batch = default_collate(samples)
    assert isinstance(batch, ndl.Tensor)
    assert batch.dtype == dtype
    assert batch.shape == shape
    assert not batch.requires_grad
    np.testing.assert_array_equal(batch.numpy(), np.stack(samples))


def test_tensors_lose_their_gradient():
    batch = default_collate([ndl.Tensor([1.0, 2.0]), ndl.Tensor([3.0, 4.0])])
    assert batch.tolist() == [[1, 2], [3, 4]]
    assert not batch.requires_grad


def test_structure_is_kept():
    sample = {"image": np.ones(2), "target": (3, [Point(1.0, 2), "name"]), "raw": b"x"}
    batch = default_collate([sample, sample])
    assert list(batch) == ["image", "target", "raw"]
    number, (point, name) = batch["target"]
    assert number.tolist() == [3, 3]
    assert isinstance(point, Point)
    assert point.x.dtype == ndl.float32
    assert name == ["name", "name"]
    assert batch["raw"] == [b"x", b"x"]


def test_batch_owns_its_memory():
    row = np.zeros(3)
    batch = default_collate([row])
    row[0] = 1
    assert batch.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([np.zeros(3), np.zeros(3), np.zeros(4)], ShapeError, r"sample 2 has shape \(4,\).*\(3,\)"),
        ([(1, np.zeros(2)), (1, np.zeros(3))], ShapeError, r"sample 1 at \[1\] has shape \(3,\)"),
        ([{"a": {"b": np.zeros(1)}}, {"a": {"b": np.zeros(2)}}], ShapeError, r"\['a'\]\['b'\]"),
        ([(1, 2), (1, 2, 3)], ShapeError, "sample 1 is a tuple of 3 parts, but sample 0 has 2"),
        ([{"a": 1}, {"b": 1}], ShapeError, r"sample 1 has the keys \['b'\]"),
        ([np.zeros(1, np.float32), np.zeros(1)], DTypeError, "sample 1 has dtype float64"),
        ([np.array(["a"])], DTypeError, "sample 0"),
        ([np.array([None])], DTypeError, "sample 0"),
        ([1, 2.0], ArgumentTypeError, "sample 1 is of type float, but sample 0 is of type int"),
        ([1, True], ArgumentTypeError, "sample 1 is of type bool"),
        ([np.zeros(1), [1]], ArgumentTypeError, "sample 1 is of type list"),
        ([(1,), [1]], ArgumentTypeError, "sample 1 is of type list"),
        (["a", b"a"], ArgumentTypeError, "sample 1 is of type bytes"),
        ([None, None], ArgumentTypeError, "NoneType"),
        ([[object()]], ArgumentTypeError, r"at \[0\] is of type object"),
        ([1, 2**63], OutOfRangeError, "sample 1 is 9223372036854775808"),
        ([], ArgumentError, "no samples"),
    ],
)
def test_rejects(samples, error, message):
    with pytest.raises(error, match=message):
        default_collate(samples)
