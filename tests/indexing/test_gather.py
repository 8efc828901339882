"""Gathering along axes, classes and words, against NumPy and PyTorch, and with bad input."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle.errors import DeviceError, DTypeError, OutOfRangeError, ShapeError


@st.composite
def gather_cases(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    place = axis % len(shape)
    extents = tuple(draw(st.integers(0, 5 if a == place else n)) for a, n in enumerate(shape))
    size = int(np.prod(extents))
    values = draw(st.lists(st.integers(0, shape[place] - 1), min_size=size, max_size=size))
    return shape, axis, np.array(values, dtype=np.int64).reshape(extents)


@pytest.mark.peers
@settings(max_examples=150, deadline=None)
@given(gather_cases())
def test_gather_and_scatter_add_are_pytorchs(case):
    torch = pytest.importorskip("torch")
    shape, axis, indices = case
    rng = np.random.default_rng(0)
    a, src = rng.standard_normal(shape), rng.standard_normal(indices.shape)

    def run(lib, tensor, index):
        x, s = tensor(a), tensor(src)
        gathered, added = x.gather(axis, index), x.scatter_add(axis, index, s)
        ((gathered**2).sum() + (added**2).sum()).backward()
        return gathered, added, x.grad, s.grad

    ours = run(ndl, ndl.Tensor, ndl.asarray(indices))
    theirs = run(torch, lambda v: torch.tensor(v, requires_grad=True), torch.tensor(indices))
    for mine, peers in zip(ours, theirs, strict=True):
        assert mine.shape == tuple(peers.shape)
        np.testing.assert_allclose(
            mine.detach().numpy(), peers.detach().numpy(), rtol=1e-12, atol=1e-12
        )


@settings(max_examples=100, deadline=None)
@given(gather_cases(), st.booleans())
def test_take_along_axis_broadcasts_as_numpy(case, one):
    shape, axis, indices = case
    place = axis % len(shape)
    key = tuple(slice(None) if a == place else slice(0, 1) for a in range(len(shape)))
    x = np.random.default_rng(0).standard_normal(shape)
    x, indices = (x[key], indices) if one else (x, indices[key])
    try:
        expected = np.take_along_axis(x, indices, axis)
    except (IndexError, ValueError):
        return
    t = ndl.Tensor(x)
    out = ndl.take_along_axis(t, indices, axis=axis)
    np.testing.assert_array_equal(out.detach().numpy(), expected)
    cotangent = np.random.default_rng(1).standard_normal(expected.shape)
    out.backward(ndl.asarray(cotangent))
    order = np.arange(x.size).reshape(x.shape)
    total = np.zeros(x.size)
    np.add.at(total, np.take_along_axis(order, indices, axis), cotangent)
    np.testing.assert_allclose(t.grad.numpy(), total.reshape(x.shape), atol=1e-12)


def test_take():
    a = np.arange(24.0).reshape(2, 3, 4)
    x = ndl.asarray(a)
    for axis in (-3, 1, 2):
        for i in ([0, 1, 1, -1], [[1, 0], [0, -1]], [], 1):
            i = np.array(i, dtype=np.int64)
            np.testing.assert_array_equal(
                ndl.take(x, i, axis=axis).numpy(), np.take(a, i, axis), err_msg=f"{axis} {i}"
            )
    assert ndl.take(ndl.arange(5), [3, 1]).tolist() == [3, 1]
    for dtype in ("int8", "uint8", "int32", "uint64"):
        assert ndl.arange(5).take(np.array([4, 0], dtype)).tolist() == [4, 0]


def test_argsort_and_argmax_fit():
    x = ndl.asarray(np.random.default_rng(0).standard_normal((4, 5)))
    best = ndl.argmax(x, axis=1, keepdims=True)
    np.testing.assert_array_equal(
        ndl.take_along_axis(x, best, axis=1).numpy()[:, 0], x.max(1).numpy()
    )


def test_one_hot():
    labels = np.array([[0, 2], [1, 1]])
    expected = np.eye(3, dtype=np.int64)[labels]
    for dtype in ("uint8", "int32", "int64"):
        out = ndl.one_hot(labels.astype(dtype), 3)
        assert out.dtype == ndl.int64
        np.testing.assert_array_equal(out.numpy(), expected)
    assert ndl.one_hot(labels, 3, dtype="bool").dtype == ndl.bool
    assert ndl.one_hot(np.zeros((2, 0), np.int64), 0).shape == (2, 0, 0)
    with pytest.raises(OutOfRangeError, match=r"index 2 \(at position \[0, 1\].*valid are 0 to 1"):
        ndl.one_hot(labels, 2)
    with pytest.raises(OutOfRangeError, match=r"index 0.*no elements"):
        ndl.one_hot([0], 0)
    with pytest.raises(DTypeError, match="whole numbers"):
        ndl.one_hot(np.array([0.0, np.nan]), 2)


def test_embedding_repeats_add_up_and_padding_stays():
    weight = ndl.Tensor(np.arange(12.0).reshape(4, 3))
    words = ndl.asarray([[1, 3, 1], [0, 1, 2]])
    out = ndl.embedding(words, weight, padding_idx=2)
    np.testing.assert_array_equal(out.detach().numpy(), weight.detach().numpy()[words.numpy()])
    out.sum().backward()
    assert weight.grad.tolist() == [[1] * 3, [3] * 3, [0] * 3, [1] * 3]
    with pytest.raises(OutOfRangeError, match=r"index 4 \(at position \[1\].*axis 0 of extent 4"):
        ndl.embedding([0, 4], weight)
    with pytest.raises(OutOfRangeError, match=r"index -1.*valid are 0 to 3"):
        ndl.embedding([-1], weight)
    with pytest.raises(DTypeError, match="integers"):
        ndl.embedding([0.5], weight)


def test_indices_out_of_range_everywhere():
    x, i = ndl.zeros((2, 3)), np.array([[0], [3]])
    for call in (
        lambda: ndl.take_along_axis(x, i, axis=1),
        lambda: ndl.gather(x, 1, i),
        lambda: ndl.scatter_add(x, 1, i, ndl.ones((2, 1))),
        lambda: ndl.untake_along_axis(ndl.ones((2, 1)), i, 3, axis=1),
        lambda: ndl.take(x, i, axis=1),
    ):
        with pytest.raises(OutOfRangeError, match=r"index 3 \(at position \[1, 0\]"):
            call()


def test_masked_fill_keeps_the_dtype():
    x = ndl.zeros((2, 2), dtype="bfloat16")
    out = x.masked_fill(ndl.asarray([True, False]), float("-inf"))
    assert out.dtype == ndl.bfloat16
    assert out.tolist() == [[-np.inf, 0]] * 2
    w = ndl.Tensor([1.0, 2.0])
    value = ndl.Tensor(5.0)
    w.masked_fill(ndl.asarray([True, False]), value).sum().backward()
    assert w.grad.tolist() == [0, 1]
    assert value.grad.item() == 1
    with pytest.raises(ShapeError, match="one number"):
        w.masked_fill(ndl.asarray([True, False]), w)


def test_diagonal_is_numpys():
    a = np.arange(60).reshape(3, 4, 5)
    for offset in range(-6, 7):
        for axes in ((0, 1), (1, 2), (-1, 0)):
            np.testing.assert_array_equal(
                ndl.diagonal(a, offset, *axes).numpy(), np.diagonal(a, offset, *axes)
            )
    assert ndl.diagonal(ndl.zeros((0, 3))).shape == (0,)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=3), st.data())
def test_roll_is_numpys(shape, data):
    a = np.arange(int(np.prod(shape))).reshape(shape)
    axes = data.draw(
        st.none() | st.lists(st.integers(-len(shape), len(shape) - 1), max_size=3).map(tuple)
    )
    count = 1 if axes is None else len(axes)
    shifts = data.draw(st.lists(st.integers(-9, 9), min_size=count, max_size=count))
    shift = shifts[0] if axes is None else tuple(shifts)
    np.testing.assert_array_equal(ndl.roll(a, shift, axes).numpy(), np.roll(a, shift, axes))


def test_nonzero():
    a = np.random.default_rng(0).integers(0, 2, (3, 4, 2))
    for mine, numpys in zip(ndl.nonzero(a), np.nonzero(a), strict=True):
        np.testing.assert_array_equal(mine.numpy(), numpys)
    with pytest.raises(DeviceError, match="depends on the values"):
        ndl.nonzero(ndl.zeros(3, device="meta"))


def test_meta():
    table = ndl.zeros((10, 4), device="meta")
    words = ndl.zeros((2, 3), dtype="int64", device="meta")
    assert ndl.embedding(words, table).shape == (2, 3, 4)
    assert ndl.embedding(words, table, padding_idx=0).shape == (2, 3, 4)
    assert ndl.one_hot(words, 7).shape == (2, 3, 7)
    assert ndl.gather(table, 0, ndl.zeros((2, 4), dtype="int64", device="meta")).shape == (2, 4)
    values, indices = ndl.topk(table, 2)
    assert (values.shape, indices.shape, indices.dtype) == ((10, 2), (10, 2), ndl.int64)
