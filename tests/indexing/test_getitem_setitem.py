"""``x[key]`` and ``x[key] = v`` mean what NumPy means, for keys of every kind; their gradients."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle.errors import (
    ArgumentError,
    ArgumentTypeError,
    AxisError,
    DeviceError,
    DTypeError,
    GradientError,
    OutOfRangeError,
    ShapeError,
)

EXTENTS = st.integers(0, 4)


def slices(extent):
    bound = st.none() | st.integers(-extent - 2, extent + 2)
    step = st.none() | st.integers(-3, 3).filter(bool)
    return st.builds(slice, bound, bound, step)


@st.composite
def index_arrays(draw, extent, common):
    """Indices into an axis, of a shape that broadcasts to ``common``."""
    shape = tuple(1 if draw(st.booleans()) else n for n in common)
    shape = shape[draw(st.integers(0, len(shape))) :]
    if extent == 0:
        shape = (0,) if shape.count(0) == 0 else shape
        return np.zeros(shape, dtype=np.int64)
    size = int(np.prod(shape))
    values = draw(st.lists(st.integers(-extent, extent - 1), min_size=size, max_size=size))
    return np.array(values, dtype=np.int64).reshape(shape)


@st.composite
def masks(draw, shape):
    size = int(np.prod(shape))
    bits = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return np.array(bits, dtype=bool).reshape(shape)


@st.composite
def keys(draw, shape):
    """A key for ``shape``: any mixture of parts; NumPy may refuse to broadcast the indices."""
    common = draw(st.lists(st.integers(0, 3), max_size=2))
    parts, axis = [], 0
    while axis < len(shape):
        n = shape[axis]
        kind = draw(st.sampled_from(["int", "slice", "array", "mask"]))
        covered = 1
        if kind == "int" and n:
            parts.append(draw(st.integers(-n, n - 1)))
        elif kind == "array":
            parts.append(draw(index_arrays(n, common)))
        elif kind == "mask":
            covered = draw(st.integers(1, len(shape) - axis))
            parts.append(draw(masks(shape[axis : axis + covered])))
        else:
            parts.append(draw(slices(n)))
        axis += covered
    if draw(st.booleans()):  # an ellipsis for some of the parts, or for none
        first = draw(st.integers(0, len(parts)))
        parts[first : draw(st.integers(first, len(parts)))] = [Ellipsis]
    for _ in range(draw(st.integers(0, 2))):
        parts.insert(draw(st.integers(0, len(parts))), None)
    return tuple(parts)


@st.composite
def arrays_and_keys(draw):
    shape = tuple(draw(st.lists(EXTENTS, max_size=4)))
    x = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    if draw(st.booleans()):
        x = x.T
    return x, draw(keys(x.shape))


def as_needle(key):
    if isinstance(key, tuple):
        return tuple(as_needle(k) for k in key)
    return ndl.asarray(key) if isinstance(key, np.ndarray) else key


def numpy_result(x, key):
    """The oracle's answer, or None where NumPy, too, refuses the key."""
    try:
        return x[key]
    except (IndexError, ValueError):
        return None


@settings(max_examples=400, deadline=None)
@given(arrays_and_keys())
def test_getitem_is_numpys(case):
    x, key = case
    expected = numpy_result(x, key)
    t = ndl.asarray(x)
    if expected is None:
        with pytest.raises((IndexError, ValueError)):
            t[as_needle(key)]
        return
    for k in (as_needle(key), key):  # tensors and arrays
        result = t[k]
        assert result.shape == expected.shape
        np.testing.assert_array_equal(result.numpy(), expected)
    if isinstance(expected, np.ndarray):  # NumPy returns a scalar for a 0-d view
        assert np.shares_memory(result.numpy(), x) == np.shares_memory(expected, x)


@settings(max_examples=300, deadline=None)
@given(arrays_and_keys(), st.data())
def test_setitem_is_numpys(case, data):
    x, key = case
    taken = numpy_result(x, key)
    if taken is None:
        return
    shape = list(taken.shape)
    for axis in range(len(shape)):
        if data.draw(st.integers(0, 3)) == 0:
            shape[axis] = 1
    shape = shape[data.draw(st.integers(0, len(shape))) :] if data.draw(st.booleans()) else shape
    v = -1 - np.arange(float(np.prod(shape))).reshape(shape)
    expected = x.copy()
    if len({*indices_of(x, key)}) == taken.size:
        expected[key] = v
    else:  # duplicates: the last stays
        flat = expected.reshape(-1)
        for place, value in zip(
            indices_of(x, key), np.broadcast_to(v, taken.shape).reshape(-1), strict=True
        ):
            flat[place] = value
        expected = flat.reshape(x.shape)
    direct = ndl.asarray(x.copy())
    direct[as_needle(key)] = v
    np.testing.assert_array_equal(direct.numpy(), expected)
    np.testing.assert_array_equal(ndl.setitem(x, as_needle(key), v).numpy(), expected)
    recorded = ndl.asarray(x.copy())
    w = ndl.Tensor(v)
    recorded[as_needle(key)] = w
    np.testing.assert_array_equal(recorded.numpy(), expected)


def indices_of(x, key):
    return np.arange(x.size).reshape(x.shape)[key].reshape(-1).tolist()


@settings(max_examples=200, deadline=None)
@given(arrays_and_keys())
def test_gradient_of_getitem_adds_up(case):
    x, key = case
    taken = numpy_result(x, key)
    if taken is None:
        return
    cotangent = np.random.default_rng(0).standard_normal(taken.shape)
    expected = np.zeros(x.size)
    np.add.at(expected, indices_of(x, key), cotangent.reshape(-1))
    t = ndl.Tensor(x)
    t[as_needle(key)].backward(ndl.asarray(cotangent))
    np.testing.assert_allclose(t.grad.numpy(), expected.reshape(x.shape), atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(arrays_and_keys(), st.booleans())
def test_gradient_of_setitem(case, whole):
    x, key = case
    taken = numpy_result(x, key)
    if taken is None:
        return
    v = np.zeros(taken.shape if whole else ())
    cotangent = np.random.default_rng(0).standard_normal(x.shape)
    places = indices_of(x, key)
    expected_x = cotangent.reshape(-1).copy()
    expected_x[places] = 0
    last = {place: i for i, place in enumerate(places)}
    expected_v = np.zeros(taken.size)
    for place, i in last.items():
        expected_v[i] = cotangent.reshape(-1)[place]
    t, w = ndl.Tensor(x), ndl.Tensor(v)
    y = t * 1.0
    y[as_needle(key)] = w
    y.backward(ndl.asarray(cotangent))
    np.testing.assert_allclose(t.grad.numpy(), expected_x.reshape(x.shape))
    expected_v = expected_v.reshape(taken.shape) if whole else expected_v.sum()
    np.testing.assert_allclose(w.grad.numpy(), expected_v, atol=1e-12)


def test_special_keys():
    a = np.arange(24.0).reshape(2, 3, 4)
    x = ndl.asarray(a)
    i = np.array([0, 1])
    for key in (
        (),
        Ellipsis,
        None,
        [0, 1],
        [[0, 1], [1, 0]],
        [True, False],
        [],
        True,
        False,
        (True, 0),
        np.array(True),
        np.int64(1),
        np.array(1),
        (slice(None), i, Ellipsis, i),  # an ellipsis for no axes still stands between
        (i, None, i),
        (0, slice(None), i),
        (0, i),
        (i.astype(np.uint8), 0),
        (slice(None), [True, False, True], 0),
        (Ellipsis, a[0] > 5),
        (slice(10), slice(-1, None), slice(3, None, -1)),
        slice(-1, -100, -1),
    ):
        np.testing.assert_array_equal(x[key].numpy(), a[key], err_msg=str(key))
        b, y = a.copy(), ndl.asarray(a.copy())
        b[key] = 7
        y[key] = 7
        np.testing.assert_array_equal(y.numpy(), b, err_msg=str(key))
    assert x[ndl.asarray(1), ndl.asarray(2)].shape == (4,)
    assert ndl.asarray(5.0)[()].item() == 5
    assert ndl.asarray(5.0)[ndl.asarray(True)].tolist() == [5]


def test_slices_are_views_and_indices_are_copies():
    x = ndl.arange(6, dtype="float32").reshape(2, 3)
    row, column, part = x[1], x[:, 0], x[..., ::2]
    copy = x[[1]]
    x[1, 0] = 50
    assert row.tolist() == [50, 4, 5]
    assert column.tolist() == [0, 50]
    assert part.tolist() == [[0, 2], [50, 5]]
    assert copy.tolist() == [[3, 4, 5]]
    row[0] = 7
    assert x[1, 0].item() == 7
    x[:] = 0
    assert x.sum().item() == 0


def test_iteration_and_unpacking():
    x = ndl.asarray([[1, 2], [3, 4]])
    assert [row.tolist() for row in x] == [[1, 2], [3, 4]]
    (a, b), _ = x
    assert (a.item(), b.item()) == (1, 2)
    assert 3 in x
    assert [[1, 2, 3][ndl.asarray(i)] for i in range(2)] == [1, 2]


@pytest.mark.parametrize(
    ("key", "error", "match"),
    [
        (4, OutOfRangeError, r"index 4 is out of range for axis 0 of extent 4; valid are -4 to 3"),
        (-5, OutOfRangeError, "index -5"),
        ((0, 0, 3), OutOfRangeError, "axis 2 of extent 3"),
        ([0, 9], OutOfRangeError, r"index 9 \(at position \[1\] of the indices\).*axis 0"),
        ((slice(None), [0, -6]), OutOfRangeError, "index -6.*axis 1 of extent 5"),
        (([0], 0, 3), OutOfRangeError, "index 3.*axis 2"),
        ((0, 0, 0, 0), AxisError, "4 indices for a tensor of 3 axes"),
        (np.zeros((4, 5, 3, 2), bool), AxisError, "4 indices"),
        (1.0, ArgumentTypeError, "got 1.0"),
        ("a", ArgumentTypeError, "got 'a'"),
        (slice(0, 1.5), ArgumentTypeError, "slice must be integers"),
        (slice(None, None, 0), ArgumentError, "cannot be 0"),
        ((Ellipsis, Ellipsis), ArgumentError, "only one Ellipsis"),
        ([0.0, 1.0], DTypeError, "must be integers, got float32"),
        (np.zeros(3, bool), ShapeError, r"mask of shape \[3\] for axes 0 to 0"),
        ((0, np.zeros((5, 2), bool)), ShapeError, r"axes 1 to 2"),
        (([0, 1], [0, 1, 2]), ShapeError, "do not broadcast"),
    ],
)
def test_bad_keys(key, error, match):
    for t in (ndl.zeros((4, 5, 3)), ndl.zeros((4, 5, 3)).requires_grad_()):
        with pytest.raises(error, match=match):
            t[as_needle(key)]
    with pytest.raises(error, match=match):
        ndl.zeros((4, 5, 3))[as_needle(key)] = 1.0
    y = ndl.zeros((4, 5, 3))
    with pytest.raises(error, match=match):
        y[as_needle(key)] = ndl.Tensor(1.0)
    assert y.sum().item() == 0


def test_index_errors_are_index_errors():
    for key in (4, (0, 0), [9]):
        with pytest.raises(IndexError):
            ndl.zeros(4)[key]
    with pytest.raises(IndexError):
        ndl.asarray(1.0)[0]


# Assignment: values, dtypes, storage


def test_values_are_converted():
    x = ndl.zeros(3, dtype="float16")
    x[0] = 1
    x[1] = np.float64(2.5)
    x[2] = True
    assert x.tolist() == [1, 2.5, 1]
    n = ndl.zeros(3, dtype="int32")
    n[0] = True
    n[1:] = ndl.asarray([300, 400])
    assert n.tolist() == [1, 300, 400]
    b = ndl.zeros(2, dtype="bool")
    b[0] = True
    assert b.tolist() == [True, False]
    h = ndl.zeros(2, dtype="bfloat16")
    h[[0, 1]] = ndl.asarray([1.0, 2.0])
    assert h.tolist() == [1, 2]


@pytest.mark.parametrize("key", [0, [0], slice(None), np.array([True, False, False])])
def test_values_that_do_not_convert(key):
    n = ndl.zeros(3, dtype="int64")
    for value in (1.5, ndl.asarray(1.5)):
        with pytest.raises(DTypeError, match="float32 and would be cut to int64"):
            n[key] = value
    b = ndl.zeros(3, dtype="bool")
    with pytest.raises(DTypeError, match="int64 and would be cut to bool"):
        b[key] = 2
    assert n.tolist() == [0, 0, 0]


@pytest.mark.parametrize("key", [0, [0, 1], (slice(None), 0), np.ones((2, 3), bool)])
@pytest.mark.parametrize("recorded", [False, True])
def test_values_that_do_not_broadcast(key, recorded):
    x = ndl.zeros((2, 3))
    value = ndl.Tensor(np.ones(5), requires_grad=recorded)
    with pytest.raises(ShapeError, match=r"shape \[5\] does not broadcast to .*shape of x\[key\]"):
        x[key] = value.astype("float32")


def test_overlapping_assignment_reads_before_it_writes():
    x = ndl.arange(6)
    x[1:] = x[:-1]
    assert x.tolist() == [0, 0, 1, 2, 3, 4]
    x[::-1] = x
    assert x.tolist() == [4, 3, 2, 1, 0, 0]
    x[[5, 4, 3, 2, 1, 0]] = x
    assert x.tolist() == [0, 0, 1, 2, 3, 4]


def test_of_duplicates_the_last_stays():
    x = ndl.zeros(3)
    x[[0, 2, 0]] = ndl.asarray([1.0, 2.0, 3.0])
    assert x.tolist() == [3, 0, 2]
    # … in row-major order of the indices, however they lie in memory.
    i = np.zeros((2, 3), np.int64).T
    v = np.arange(6.0).reshape(2, 3).T
    y = ndl.zeros(1)
    y[i] = v
    assert y.item() == v[-1, -1]


def test_read_only_tensors_are_not_written():
    x = ndl.broadcast_to(ndl.zeros(1), (3,))
    for key in (0, [0]):
        with pytest.raises(ArgumentError, match="read-only"):
            x[key] = 1.0


def test_leaves_that_require_gradients():
    w = ndl.Tensor([1.0, 2.0, 3.0])
    with pytest.raises(GradientError, match="leaf"):
        w[0] = 5.0
    with pytest.raises(GradientError, match="view of a leaf"):
        w[:2][0] = 5.0
    with ndl.no_grad():
        w[0] = 5.0
        w[[1, 2]] = 0.0
    assert w.tolist() == [5, 0, 0]
    assert w.requires_grad
    assert w.is_leaf


def test_overwriting_a_kept_value_is_an_error():
    x = ndl.Tensor([1.0, 2.0])
    y = x * 1.0
    z = y * y
    y[0] = 3.0
    with pytest.raises(GradientError, match="overwritten"):
        z.sum().backward()
    with ndl.no_grad():
        x = ndl.asarray([1.0, 2.0])
    w = ndl.Tensor([3.0, 4.0])
    z = w * x
    x[0] = 9.0
    with pytest.raises(GradientError, match="overwritten"):
        z.sum().backward()


@pytest.mark.parametrize("key", [0, (slice(None), 1), [0, 1], (slice(0, 2), slice(None, None, -1))])
def test_augmented_assignment(key):
    a = np.arange(1.0, 7).reshape(2, 3)
    w = ndl.Tensor(a)
    y = w * 1.0
    y[key] *= 3.0
    y[key] += y[key] * 2
    expected = a.copy()
    expected[key] *= 9
    np.testing.assert_array_equal(y.numpy(), expected)
    y.sum().backward()
    factor = np.ones_like(a)
    factor[key] = 9
    np.testing.assert_array_equal(w.grad.numpy(), factor)


def test_augmented_assignment_that_starts_the_history():
    v = ndl.Tensor([2.0, 3.0])
    x = ndl.zeros((2, 2))
    x[0] += v
    x[1] -= x[0].clone() * v
    x.sum().backward()
    np.testing.assert_array_equal(x.detach().numpy(), [[2, 3], [-4, -9]])
    np.testing.assert_array_equal(v.grad.numpy(), [1 - 4, 1 - 6])


def test_writes_through_another_view_are_still_caught():
    w = ndl.Tensor([1.0, 2.0, 3.0, 4.0])
    y = w * 1.0
    wide, narrow = y[0:3], y[0:1]
    wide *= 2.0
    with pytest.raises(GradientError, match="overwritten through another tensor"):
        y[0:1] = narrow
    y = w * 1.0
    wide = y[0:3]
    wide *= 2.0
    with pytest.raises(GradientError, match="overwritten through another tensor"):
        y[0:1] = wide[0:1]  # a view of what was written, but not all of it
    y = w * 1.0
    part = y[0:3]
    part *= 2.0
    part *= 2.0  # two writes
    with pytest.raises(GradientError, match="overwritten through another tensor"):
        y[0:3] = part


@pytest.mark.parametrize("write", ["augmented", "item", "items"])
def test_unrecorded_writes_keep_the_history_as_it_was(write):
    def write_to(t):
        with ndl.no_grad():
            if write == "augmented":
                t += 1.0
            elif write == "item":
                t[0] = 1.0
            else:
                t[[0, 1]] = 1.0

    w = ndl.Tensor([1.0, 2.0])
    y = w * 2.0
    write_to(y)
    y.sum().backward()
    assert w.grad.tolist() == [2, 2]
    y = w * 2.0
    part = y[:1]
    part *= 3.0  # now y does not know how its values came about …
    write_to(y)  # … and this must not make it forget that
    with pytest.raises(GradientError, match="overwritten through another tensor"):
        y.sum()


def test_loop_of_writes_has_the_right_gradient():
    w = ndl.Tensor(np.array([0.5, 2.0, 3.0]))
    out = ndl.zeros((4, 3), dtype="float64")
    state = ndl.ones(3, dtype="float64")
    for t in range(4):
        state = state * w
        out[t] = state
    out.sum().backward()
    a = w.detach().numpy()
    np.testing.assert_allclose(w.grad.numpy(), 1 + 2 * a + 3 * a**2 + 4 * a**3)


def test_second_order():
    x = ndl.Tensor(np.array([1.0, 2.0, 3.0]))
    y = (x[[0, 1, 1, 2]] ** 3).sum() + (x[1:] ** 3).sum() + x[0] ** 3
    (g,) = ndl.grad(y, [x], create_graph=True)
    np.testing.assert_allclose(g.detach().numpy(), 3 * np.array([2, 12, 18]))
    (h,) = ndl.grad(g.sum(), [x])
    np.testing.assert_allclose(h.numpy(), 6 * np.array([2, 6, 6]))
    z = x * 1.0
    z[[0, 2, 0]] = x * x
    (g,) = ndl.grad((z * z).sum(), [x], create_graph=True)
    # z = [x2², x1, x1²]
    np.testing.assert_allclose(g.detach().numpy(), [0, 2 * 2 + 4 * 8, 4 * 27])
    (h,) = ndl.grad(g.sum(), [x])
    np.testing.assert_allclose(h.numpy(), [0, 2 + 12 * 4, 12 * 9])


# The meta device


def test_meta():
    x = ndl.zeros((4, 5, 3), device="meta")
    assert x[0].shape == (5, 3)
    assert x[:, None, ::2].shape == (4, 1, 3, 3)
    assert x[[0, 1], :, [0, 2]].shape == (2, 5)
    x[0, :2] = 1.0
    x[[0, 1]] = ndl.zeros(3, device="meta")
    with pytest.raises(ShapeError, match="does not broadcast"):
        x[0] = ndl.zeros(4, device="meta")
    with pytest.raises(OutOfRangeError, match="index 4"):
        x[4]
    mask = ndl.zeros(4, dtype="bool", device="meta")
    with pytest.raises(DeviceError, match=r"where\(mask, x, other\)"):
        x[mask]
    x[mask] = 0.0  # the shape of this one is known
    assert x[ndl.asarray([True, False, True, True])].shape == (3, 5, 3)


@pytest.mark.peers
@settings(max_examples=100, deadline=None)
@given(arrays_and_keys())
def test_against_pytorch(case):
    torch = pytest.importorskip("torch")
    x, key = case
    taken = numpy_result(x, key)
    # PyTorch has no negative steps, and lets ints and an ellipsis for no axes part no indices.
    if taken is None or any(isinstance(k, slice) and (k.step or 1) < 0 for k in key):
        return
    if any(k is Ellipsis or (isinstance(k, (int, np.ndarray)) and np.ndim(k) == 0) for k in key):
        return
    ours, theirs = ndl.Tensor(x), torch.tensor(x, requires_grad=True)
    torch_key = tuple(torch.tensor(k) if isinstance(k, np.ndarray) else k for k in key)
    try:
        expected = theirs[torch_key]
    except IndexError:
        return
    result = ours[as_needle(key)]
    assert result.shape == tuple(expected.shape)
    (result * result).sum().backward()
    (expected * expected).sum().backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy())
