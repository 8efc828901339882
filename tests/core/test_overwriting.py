"""In-place writes: gradients are right, or there is an error; never a wrong gradient.

Each program runs here and in PyTorch. Where needle gives a result, it is PyTorch's. needle refuses
some programs that PyTorch accepts, because it does not rewrite the history of views; the programs
that must work are marked so.
"""

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import needle as ndl
from needle.errors import ArgumentError, DTypeError, GradientError, ShapeError
from needle.testing import assert_close

# Programs: (library, leaf w = [1, 2, 3], constant zeros of 3) → a scalar.


def view_of_constant_then_write_through_it(m, w, z):
    v = z[0:2]
    v += w[0:2]
    return (z * z).sum() + w.sum()


def view_of_constant_then_write_through_base(m, w, z):
    v = z[0:2]
    z += w
    return (v * v).sum() + w.sum()


def sibling_views_of_a_constant(m, w, z):
    a, b = z[0:2], z[1:3]
    a += w[0:2]
    return (b * b).sum() + w.sum()


def view_taken_after_a_write_through_another(m, w, z):
    a = z[0:2]
    a += w[0:2]
    b = z[1:3]
    return (b * w[0:2]).sum()


def view_of_a_view_of_a_constant(m, w, z):
    v = z.reshape((3, 1)).reshape((3,))
    z += w
    return (v * w).sum()


def reduction_of_a_stale_constant(m, w, z):
    v = z[0:2]
    z += w
    return v.sum() * 3 + w.sum()


def item_assignment_through_a_view_of_a_constant(m, w, z):
    v = z[0:1]
    v[0] = w[0]
    return (z * z).sum() + w.sum()


def item_assignment_to_the_base_of_a_constant_view(m, w, z):
    v = z[0:1]
    z[0] = w[0]
    return (v * v).sum() + w.sum()


def unrelated_item_assignment(m, w, z):
    v = z[0:1]
    z[1] = w[0]
    return (z * z).sum() + (v * v).sum()


def write_through_a_view_of_a_computed_tensor(m, w, z):
    b = w * 1
    v = b[0:1]
    v *= 3
    return (b * b).sum()


def view_of_an_overwritten_computed_tensor(m, w, z):
    b = w * 1
    v = b[0:1]
    b *= 3
    return (v * v).sum()


def write_to_a_kept_input(m, w, z):
    b = w * 1
    y = b * b
    b += 1
    return y.sum()


def write_to_a_kept_result(m, w, z):
    y = (w * 1).exp()
    y *= 3
    return y.sum()


def write_to_a_kept_constant(m, w, z):
    y = w * z
    z += 1
    return y.sum()


def write_to_an_input_that_was_not_kept(m, w, z):
    b = w * 1
    y = b + b
    b *= 3
    return (y * y).sum()


def write_to_an_input_of_exp(m, w, z):
    b = w * 1
    y = b.exp()
    b *= 3
    return y.sum() + b.sum()


def write_to_a_square(m, w, z):
    b = w * w
    b += 1
    return b.sum()


def write_of_a_tensor_to_itself(m, w, z):
    b = w * 2
    b += b
    return b.sum()


def square_in_place(m, w, z):
    b = w * 2
    b *= b
    return b.sum()


def write_to_a_detached_tensor(m, w, z):
    b = w * 1
    d = b.detach()
    d *= 2
    return (b * b).sum()


def write_to_a_detached_kept_tensor(m, w, z):
    b = w * 1
    y = b * b
    d = b.detach()
    d *= 2
    return y.sum()


def detached_before_a_write(m, w, z):
    d = z.detach()
    z += w
    return (d * w).sum()


def write_with_gradients_to_a_detached_tensor(m, w, z):
    d = z.detach()
    d += w
    return (z * w).sum()


def write_with_gradients_to_a_detached_leaf(m, w, z):
    d = w.detach()
    d += w
    return (w * w).sum()


def update_of_a_leaf_that_was_kept(m, w, z):
    y = w * w
    with m.no_grad():
        w *= 2
    return y.sum()


def update_of_a_leaf_through_a_view(m, w, z):
    v = w[0:1]
    with m.no_grad():
        v *= 2
    return (w * w).sum()


def old_view_of_an_updated_leaf(m, w, z):
    v = w[0:1]
    with m.no_grad():
        w *= 5
    return (v * v).sum()


def view_of_a_leaf_without_recording(m, w, z):
    with m.no_grad():
        v = w[0:1]
    v *= 2
    return (w * w).sum()


def write_through_numpy(m, w, z):
    b = w * 1
    b.detach().numpy()[0] = 7
    return (b * b).sum()


def write_without_recording(m, w, z):
    z += w
    with m.no_grad():
        z.zero_()
    return (z * z).sum() + w.sum()


def shift_without_recording(m, w, z):
    b = w * 3
    with m.no_grad():
        b += 1
    return (b * b).sum()


def write_with_gradients_under_no_grad(m, w, z):
    with m.no_grad():
        z += w
    return (z * w).sum()


def item_assignment_of_a_constant(m, w, z):
    b = w * 1
    b[0] = 5.0
    return (b * b).sum()


def item_assignments_in_a_loop(m, w, z):
    for i in range(3):
        z[i] = w[i] * w[2 - i]
    return (z * z).sum()


def item_updates_in_a_loop(m, w, z):
    for i in range(3):
        z[i] += w[i] * 2
    for i in range(2):
        z[i] -= w[i + 1] * w[i]
    return (z * z).sum()


def slice_updates(m, w, z):
    z[0:2] += w[1:3]
    z[1:3] *= 3
    z[1:3] -= w[0:2]
    return (z * z).sum()


def recurrence_in_a_buffer(m, w, z):
    z[0] = w[0]
    for i in range(1, 3):
        z[i] = z[i - 1].clone() * w[i]
    return (z * z).sum()


def recurrence_without_copies(m, w, z):
    z[0] = w[0]
    for i in range(1, 3):
        z[i] = z[i - 1] * w[i]
    return (z * z).sum()


def accumulator(m, w, z):
    for _ in range(3):
        z += w * w
    return z.sum()


def copy_into(m, w, z):
    z.copy_(w * 2)
    return (z * z).sum()


def fill_over(m, w, z):
    b = w * 2
    b.zero_()
    return (b * w).sum()


def reshaped_siblings(m, w, z):
    a = w * 2
    b, c = a.reshape((3, 1)), a.reshape((1, 3))
    b += 1
    return (c * c).sum()


def expanded_view(m, w, z):
    a = w * 1
    e = a.reshape((1, 3)).broadcast_to((2, 3))
    a += 1
    return (e * e).sum()


MUST_WORK = [
    write_to_an_input_that_was_not_kept,
    write_to_an_input_of_exp,
    write_to_a_square,
    write_of_a_tensor_to_itself,
    detached_before_a_write,
    write_with_gradients_to_a_detached_leaf,
    update_of_a_leaf_through_a_view,
    write_through_numpy,
    write_without_recording,
    shift_without_recording,
    write_with_gradients_under_no_grad,
    item_assignment_of_a_constant,
    item_assignments_in_a_loop,
    item_updates_in_a_loop,
    slice_updates,
    recurrence_in_a_buffer,
    accumulator,
    copy_into,
    fill_over,
]
MUST_FAIL = [
    unrelated_item_assignment,
    view_of_constant_then_write_through_it,
    view_of_constant_then_write_through_base,
    sibling_views_of_a_constant,
    view_taken_after_a_write_through_another,
    view_of_a_view_of_a_constant,
    reduction_of_a_stale_constant,
    item_assignment_through_a_view_of_a_constant,
    item_assignment_to_the_base_of_a_constant_view,
    write_through_a_view_of_a_computed_tensor,
    view_of_an_overwritten_computed_tensor,
    write_to_a_kept_input,
    write_to_a_kept_result,
    write_to_a_kept_constant,
    square_in_place,
    write_to_a_detached_tensor,
    write_to_a_detached_kept_tensor,
    update_of_a_leaf_that_was_kept,
    old_view_of_an_updated_leaf,
    recurrence_without_copies,
    reshaped_siblings,
    expanded_view,
]
MAY_DO_EITHER = [
    write_with_gradients_to_a_detached_tensor,
    view_of_a_leaf_without_recording,
]


def run(program):
    w = ndl.Tensor(np.array([1.0, 2.0, 3.0]))
    loss = program(ndl, w, ndl.zeros(3, dtype="float64"))
    loss.backward()
    return loss.item(), w.grad.numpy()


def run_peer(torch, program):
    """Return PyTorch's result, or None where it refuses, too."""
    w = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    try:
        loss = program(torch, w, torch.zeros(3, dtype=torch.float64))
        loss.backward()
    except RuntimeError:
        return None
    return loss.item(), w.grad.numpy()


@pytest.mark.peers
@pytest.mark.parametrize("program", MUST_WORK, ids=lambda p: p.__name__)
def test_gradient_is_right(program, torch):
    value, gradient = run(program)
    expected = run_peer(torch, program)
    assert expected is not None, "PyTorch refuses it: nothing to compare with"
    assert_close(value, expected[0])
    assert_close(gradient, expected[1])


@pytest.mark.parametrize("program", MUST_FAIL, ids=lambda p: p.__name__)
def test_error_instead_of_a_wrong_gradient(program):
    with pytest.raises(GradientError, match=r"overwritten|written through"):
        run(program)


@pytest.mark.peers
@pytest.mark.parametrize("program", MAY_DO_EITHER, ids=lambda p: p.__name__)
def test_right_or_refused(program, torch):
    try:
        value, gradient = run(program)
    except GradientError:
        return
    expected = run_peer(torch, program)
    if expected is not None:
        assert_close(value, expected[0])
        assert_close(gradient, expected[1])


# Random programs over a pool of tensors that share storage.

VIEWS = {
    "first half": ((4,), lambda t: t[0:2]),
    "second half": ((4,), lambda t: t[2:4]),
    "every second": ((4,), lambda t: t[::2]),
    "row": ((2, 2), lambda t: t[1]),
    "column": ((2, 2), lambda t: t[:, 0]),
    "square": ((4,), lambda t: t.reshape((2, 2))),
    "flat": ((2, 2), lambda t: t.reshape((4,))),
    "detached": (None, lambda t: t.detach()),
    "cloned": (None, lambda t: t.clone()),
}
OPS = {
    "exp": lambda a, b: (a * 0.1).exp(),
    "sin": lambda a, b: a.sin(),
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "copy": lambda a, b: b * 1,
}


def add_to(a, b):
    a += b


def multiply_by(a, b):
    a *= b


def assign_all(a, b):
    a[...] = b


def assign_first(a, b):
    a[0] = b[0]


def scale(a, b):
    a *= 0.5


def zero(a, b):
    a.zero_()


WRITES = [add_to, multiply_by, assign_all, assign_first, scale, zero]

indices = st.integers(0, 9)
view = st.tuples(st.just("view"), st.sampled_from(list(VIEWS)), indices, st.booleans())
op = st.tuples(st.just("op"), st.sampled_from(list(OPS)), indices, indices)
write = st.tuples(st.just("write"), st.sampled_from(WRITES), indices, indices)
quiet_write = st.tuples(st.just("quiet write"), st.sampled_from(WRITES), indices, indices)
instructions = st.one_of(view, view, op, write, write, quiet_write)


def execute(m, pool, program):
    """Run a program; both libraries make the same choices, which depend on shapes alone.

    The first of the pool is a leaf that requires gradients, and is not written to.
    """
    for kind, what, i, j in program:
        if kind == "view":
            shape, take = VIEWS[what]
            fitting = [t for t in pool if shape is None or tuple(t.shape) == shape]
            with contextlib.nullcontext() if j else m.no_grad():
                pool.extend(take(t) for t in fitting[i % max(1, len(fitting)) :][:1])
            continue
        a = pool[1 + i % (len(pool) - 1)]
        others = [t for t in pool if t is not a and tuple(t.shape) == tuple(a.shape)] or [a]
        b = others[j % len(others)]
        if kind == "op":
            pool.append(OPS[what](a, b))
        else:
            with m.no_grad() if kind == "quiet write" else contextlib.nullcontext():
                what(a, b)
    return sum((t * (k + 1)).sin().sum() for k, t in enumerate(pool))


@pytest.mark.peers
@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(program=st.lists(instructions, min_size=2, max_size=8))
def test_random_programs_are_right_or_refused(torch, program):
    start = np.array([0.3, -0.7, 1.1, 0.9])
    w = ndl.Tensor(start.copy())
    pool = [w, ndl.zeros(4, dtype="float64"), w * 2, ndl.zeros((2, 2), dtype="float64")]
    try:
        loss = execute(ndl, pool, program)
        loss.backward()
    except (GradientError, ArgumentError):
        return
    v = torch.tensor(start, requires_grad=True)
    zeros = torch.zeros(4, dtype=torch.float64)
    try:
        expected = execute(torch, [v, zeros, v * 2, zeros.reshape(2, 2).clone()], program)
        expected.backward()
    except RuntimeError:
        return
    assert_close(loss, expected, rtol=1e-9)
    assert_close(w.grad, v.grad, rtol=1e-9, atol=1e-11)


# What cannot be written


def test_leaf_that_requires_gradients_is_protected():
    w = ndl.Tensor([1.0, 2.0])
    with pytest.raises(GradientError, match=r"leaf that requires a gradient.*no_grad"):
        w += 1
    with pytest.raises(GradientError, match="leaf"):
        w[0] = 3.0
    with pytest.raises(GradientError, match="leaf"):
        w.zero_()
    with pytest.raises(GradientError, match="view of a leaf"):
        w[0:1].zero_()
    with pytest.raises(GradientError, match="view of a leaf"):
        w.reshape((2, 1))[0:1].fill_(1)
    assert_close(w, [1.0, 2.0])
    with ndl.no_grad():
        w += 1
        w[0] = 7.0
    assert_close(w, [7.0, 3.0])
    assert w.is_leaf
    assert w.requires_grad


def test_shape_and_kind_are_kept():
    x = ndl.zeros(2)
    with pytest.raises(ShapeError, match=r"in-place add: the result has shape \[3, 2\]"):
        x += ndl.ones((3, 2))
    with pytest.raises(ShapeError):
        x += ndl.ones(3)
    n = ndl.arange(2)
    with pytest.raises(DTypeError, match="result is float32 and would be cut to int64"):
        n += 0.5
    with pytest.raises(DTypeError, match="would be cut to int64"):
        n /= 2
    with pytest.raises(DTypeError, match="would be cut to int64"):
        n[0] = 0.5
    n += True
    n *= 3
    assert_close(n, [3, 6])
    h = ndl.zeros(2, dtype="float16")
    h += ndl.ones(2, dtype="float64")
    assert h.dtype == ndl.float16
    b = ndl.asarray([True, False])
    b &= True
    b |= ndl.asarray([False, True])
    assert_close(b, [True, True])


def test_read_only_memory_is_protected():
    array = np.zeros(3)
    array.flags.writeable = False
    x = ndl.asarray(array)
    with pytest.raises(ArgumentError, match="read-only"):
        x += 1
    with pytest.raises(ArgumentError, match="read-only"):
        x[0] = 1
    wide = ndl.zeros(1).broadcast_to((3,))
    with pytest.raises(ArgumentError, match="read-only"):
        wide += 1


def test_numpy_view_of_a_tensor_with_gradients_is_read_only():
    w = ndl.Tensor([1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        w.numpy()[0] = 5
    w.detach().numpy()[0] = 5
    assert_close(w, [5.0, 2.0])
    x = ndl.zeros(2)
    x.numpy()[0] = 5
    assert_close(x, [5.0, 0.0])


def test_overlapping_views():
    x = ndl.arange(6)
    x[1:] += x[:-1]
    assert_close(x, [0, 1, 3, 5, 7, 9])
    y = ndl.arange(4)
    y[...] = y[::-1]
    assert_close(y, [3, 2, 1, 0])
    z = ndl.arange(4)
    z.copy_(z[::-1])
    assert_close(z, [3, 2, 1, 0])


def test_in_place_operators_return_the_tensor_itself():
    x = ndl.ones(2)
    y = x
    x += 1
    x -= 0.5
    x *= 4
    x /= 2
    x **= 2
    x //= 2
    x %= 3
    assert x is y
    assert_close(x, [1.0, 1.0])
    m = ndl.ones((2, 2))
    n = m
    m @= ndl.eye(2) * 2
    assert m is n
    assert_close(m, [[2.0, 2.0], [2.0, 2.0]])
