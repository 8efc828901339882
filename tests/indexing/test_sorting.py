"""Sorting: NumPy's order with NaN last, ties in order, in every dtype; gradients go back."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle.errors import ArgumentError, AxisError

DTYPES = ["bool", "int8", "uint64", "int64", "float16", "bfloat16", "float32", "float64"]
VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, 2.0, -3.0, np.nan, np.inf, -np.inf])


@st.composite
def arrays(draw):
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)))
    size = int(np.prod(shape))
    values = draw(st.lists(VALUES, min_size=size, max_size=size))
    return np.array(values).reshape(shape), draw(st.integers(-len(shape), len(shape) - 1))


def expected_order(x, axis, descending):
    """Sort Python's way: by (is NaN, value), and by place among equals."""

    def order(line):
        keys = [(bool(np.isnan(v)), 0.0 if np.isnan(v) else float(v)) for v in line]
        if descending:  # equal elements stay in order, so not reverse=True
            keys = [tuple(-k for k in key) for key in keys]
        return sorted(range(len(keys)), key=keys.__getitem__)

    moved = np.moveaxis(x, axis, -1)
    lines = [order(line) for line in moved.reshape(-1, moved.shape[-1])] if moved.size else []
    return np.moveaxis(np.array(lines, dtype=np.int64).reshape(moved.shape), -1, axis)


@settings(max_examples=200, deadline=None)
@given(arrays(), st.booleans(), st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
def test_order(case, descending, dtype):
    x, axis = case
    t = ndl.asarray(x, dtype=dtype)
    expected = expected_order(x, axis, descending)
    np.testing.assert_array_equal(
        ndl.argsort(t, axis=axis, descending=descending).numpy(), expected
    )
    np.testing.assert_array_equal(
        ndl.sort(t, axis=axis, descending=descending).numpy().astype(float),
        np.take_along_axis(x, expected, axis),
    )
    k = x.shape[axis] // 2
    values, indices = ndl.topk(t, k, axis, largest=descending)
    first = np.take(expected, np.arange(k), axis=axis)
    np.testing.assert_array_equal(indices.numpy(), first)
    np.testing.assert_array_equal(values.numpy().astype(float), np.take_along_axis(x, first, axis))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    a = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, 50)
    x = ndl.asarray(a, dtype=dtype)
    assert ndl.sort(x).dtype == x.dtype
    assert ndl.sort(x).astype("int64").tolist() == sorted(a.tolist())
    assert ndl.argsort(x, descending=True).tolist() == np.argsort(-a, kind="stable").tolist()


def test_large_unsigned_numbers_are_not_rounded():
    x = ndl.asarray(np.array([2**64 - 1, 2**64 - 2, 2**63], dtype=np.uint64))
    assert ndl.argsort(x).tolist() == [2, 1, 0]


def test_gradients_go_back_to_their_places():
    x = ndl.Tensor(np.array([[3.0, 1.0, 2.0], [5.0, 4.0, 4.0]]))
    weights = ndl.asarray(np.array([1.0, 10.0, 100.0]))
    (ndl.sort(x, axis=1) * weights).sum().backward()
    assert x.grad.tolist() == [[100, 1, 10], [100, 1, 10]]
    y = ndl.Tensor(np.array([3.0, 1.0, 2.0]))
    values, indices = ndl.topk(y, 2)
    assert not indices.requires_grad
    (values**3).sum().backward(create_graph=True)
    assert y.grad.tolist() == [27, 0, 12]
    (h,) = ndl.grad(y.grad.sum(), [y])
    assert h.tolist() == [18, 0, 12]


def test_searchsorted():
    x = np.array([1.0, 2.0, 2.0, 5.0])
    v = np.array([[0.0, 1.0, 2.0], [3.0, 5.0, np.nan]])
    for side in ("left", "right"):
        np.testing.assert_array_equal(
            ndl.searchsorted(x, v, side=side).numpy(), np.searchsorted(x, v, side=side)
        )
    assert ndl.searchsorted(ndl.asarray([1, 3]), 2.5).item() == 1
    assert ndl.searchsorted(np.zeros(0), [1.0]).tolist() == [0]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: ndl.sort(ndl.asarray(1.0)), AxisError, "0-d"),
        (lambda: ndl.topk(ndl.zeros((2, 3)), 4), ArgumentError, "k must be 0 to 3"),
        (lambda: ndl.topk(ndl.zeros((2, 3)), 1.5), TypeError, "integer"),
        (lambda: ndl.searchsorted(ndl.zeros(3), 1.0, side="up"), ArgumentError, "'up'"),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
