"""Storage that tensors share: writes are seen where they are eagerly, or are an error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, TraceError


def both(function: Callable[..., Any], *arrays: Any) -> None:
    """Call eagerly and compiled, twice; compare results and what became of the arguments."""
    compiled = ndl.compile(function)
    given = [[ndl.asarray(np.array(a)) for a in arrays] for _ in range(2)]
    for _ in range(2):
        results = [f(*g) for f, g in zip((function, compiled), given, strict=True)]
        for eager, traced in zip(
            *([r, *g] for r, g in zip(results, given, strict=True)), strict=True
        ):
            np.testing.assert_array_equal(eager.numpy(), traced.numpy())
            assert eager.dtype == traced.dtype


MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)
VECTOR = np.arange(4, dtype=np.float32) - 1.5


def add_in_place(x: Any, v: Any) -> Any:
    x += v
    return x * 2


def write_row(x: Any, v: Any) -> Any:
    x[1] = v
    return x.sum(axis=0)


def add_to_row(x: Any, v: Any) -> Any:
    x[1] += v
    x[:, 2] *= 3
    return x + 0


def write_through_a_view(x: Any, v: Any) -> Any:
    row = x[2]
    row += v
    row *= row
    return x + row


def view_sees_a_write_to_the_base(x: Any, v: Any) -> Any:
    row, other = x[0], x.T
    x += 1
    x[0, 1] = 7.0
    return row * v + other.sum(axis=0)[0]


def views_of_views(x: Any, v: Any) -> Any:
    block = x[1:, ::2]
    corner = block.T[1]
    corner -= 10
    block[0] = 5.0
    return x.sum(axis=0) + v * corner.sum()


def write_with_indices(x: Any, v: Any) -> Any:
    x[np.array([0, 2])] = v
    x[ndl.asarray([1]), 1:] += 1
    return x.sum(axis=0)


def write_where(x: Any, v: Any) -> Any:
    x[x > 5] = 0.5
    return x + v


def reshape_and_write(x: Any, v: Any) -> Any:
    y = (x * 2).reshape(-1)
    y += 1
    return y[:4] + v


def detached_shares(x: Any, v: Any) -> Any:
    y = x.detach()
    y += v
    return x * 1


def backwards(x: Any, v: Any) -> Any:
    x[::-1, 1] = v[:3]
    y = x[::-1]
    y[0] = v
    return x.sum(axis=0)


def fill_and_zero(x: Any, v: Any) -> Any:
    x.T[0].fill_(3.0)
    x[1, 1:3].zero_()
    x[2].copy_(v)
    return x.sum(axis=0)


def expand_and_squeeze(x: Any, v: Any) -> Any:
    y = x[None, :, 0]
    y += 1
    return x.sum(axis=0) + v


def copy_is_apart(x: Any, v: Any) -> Any:
    y = x.clone()
    y += v
    return x + y


def swap(x: Any, v: Any) -> Any:
    first = x[0].clone()
    x[0] = x[1]
    x[1] = first
    return x.sum(axis=0) + v


CASES = [
    add_in_place,
    write_row,
    add_to_row,
    write_through_a_view,
    view_sees_a_write_to_the_base,
    views_of_views,
    write_with_indices,
    write_where,
    reshape_and_write,
    detached_shares,
    backwards,
    fill_and_zero,
    expand_and_squeeze,
    copy_is_apart,
    swap,
]


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_writes(function: Any) -> None:
    both(function, MATRIX, VECTOR)


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_writes_to_state(function: Any) -> None:
    seen = []
    for is_compiled in (False, True):
        state = ndl.asarray(MATRIX.copy())
        v = ndl.asarray(VECTOR)
        f = functools.partial(function, state)
        f = ndl.compile(f) if is_compiled else f
        seen.append([f(v).tolist(), f(v).tolist(), state.tolist(), state._version])
    assert seen[0][:3] == seen[1][:3]
    assert (seen[0][3][0] > 0) == (seen[1][3][0] > 0)


def test_writes_with_gradients() -> None:
    def f(x: Any, v: Any) -> Any:
        y = x * 2
        y[0] = v * v
        y[1:] += v
        y[2, 1] += x[0, 0]
        return (y**2).sum()

    seen = []
    for g in (f, ndl.compile(f)):
        x, v = ndl.Tensor(MATRIX), ndl.Tensor(VECTOR)
        g(x, v).backward()
        assert x.grad is not None
        assert v.grad is not None
        seen.append((x.grad.tolist(), v.grad.tolist()))
    assert seen[0] == seen[1]


def test_the_reshape_of_something_that_is_used_later() -> None:
    def f(x: Any) -> Any:
        y = x * 2
        flat = y.reshape(-1)
        flat += 1  # here
        return y

    with pytest.raises(TraceError, match=r"test_storage.py:\d+ wrote into the result of a reshape"):
        ndl.compile(f)(ndl.asarray(MATRIX))


def test_state_through_a_reshape() -> None:
    """The array of the state is known, and so is that its reshape is a view."""
    state = ndl.asarray(MATRIX.copy())

    @ndl.compile
    def f() -> Any:
        state.reshape(-1)[::2] += 1
        return state.sum()

    assert f().item() == MATRIX.sum() + 6
    assert state[0].tolist() == [1.0, 1.0, 3.0, 3.0]


def test_broadcast_views_are_read_only() -> None:
    def f(x: Any) -> Any:
        y = x.broadcast_to((3, 4))
        y += 1
        return y

    with pytest.raises(ArgumentError, match="read-only"):
        f(ndl.asarray(VECTOR))
    with pytest.raises(TraceError, match="read-only"):
        ndl.compile(f)(ndl.asarray(VECTOR))


def test_backward_through_an_overwritten_value() -> None:
    def f(x: Any) -> Any:
        y = x.exp()
        z = y * y
        y += 1
        z.sum().backward()

    for g in (f, ndl.compile(f)):
        with pytest.raises(ndl.errors.GradientError, match="overwritten"):
            g(ndl.Tensor(VECTOR))


def test_a_leaf_is_not_overwritten() -> None:
    w = ndl.Tensor([1.0])

    def f() -> None:
        nonlocal w
        w += 1

    for g in (f, ndl.compile(f)):
        with pytest.raises(ndl.errors.GradientError, match="a leaf that requires a gradient"):
            g()
    assert w.tolist() == [1.0]


def test_state_in_shared_memory() -> None:
    memory = np.zeros(8, dtype=np.float32)
    a, b, c = (ndl.asarray(memory[i : i + 4]) for i in (0, 2, 4))

    @ndl.compile
    def read() -> Any:
        return a + b

    assert read().tolist() == [0.0] * 4

    @ndl.compile
    def write() -> Any:
        a.copy_(b + 1)

    with pytest.raises(TraceError, match=r"shares its memory .* clone\(\)"):
        write()

    @ndl.compile
    def apart() -> Any:
        a.copy_(c + 1)

    apart()
    assert memory.tolist() == [1.0] * 4 + [0.0] * 4


def test_an_argument_in_the_memory_of_the_state() -> None:
    state = ndl.zeros(4)

    @ndl.compile
    def add(x: Any) -> None:
        nonlocal state
        state += x

    add(ndl.ones(4))
    for bad in (state, state[:], state.numpy()):
        with pytest.raises(TraceError, match="the argument x shares its memory with state"):
            add(bad)
    add(state.clone())
    assert state.tolist() == [2.0] * 4


def test_one_array_as_two_arguments() -> None:
    @ndl.compile
    def move(x: Any, y: Any) -> None:
        x += y

    x = ndl.ones(4)
    move(x, ndl.ones(4))
    with pytest.raises(TraceError, match="x is overwritten, and shares its memory with y"):
        move(x, x)
    total = ndl.compile(lambda x, y: x + y)
    assert total(x, x).tolist() == [4.0] * 4


def test_odd_layouts() -> None:
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    state = ndl.asarray(wide[:, ::2])

    @ndl.compile
    def f(x: Any) -> Any:
        nonlocal state
        x *= 2
        state += x
        return x + 1, state

    x = ndl.asarray(np.ones((3, 4), np.float32)).T
    out, same = f(x)
    assert same is state
    np.testing.assert_array_equal(x.numpy(), 2 * np.ones((4, 3)))
    np.testing.assert_array_equal(wide[:, ::2], np.arange(0, 24, 2).reshape(4, 3) + 2)
    np.testing.assert_array_equal(out.numpy(), 3 * np.ones((4, 3)))
    x[0] = 0.0
    out, _ = f(x)
    np.testing.assert_array_equal(out.numpy()[:2, 0], [1.0, 5.0])


def test_read_only_arrays() -> None:
    array = np.ones(4, np.float32)
    array.flags.writeable = False
    assert ndl.compile(lambda x: x * 2)(array).tolist() == [2.0] * 4

    @ndl.compile
    def f(x: Any) -> None:
        x += 1

    with pytest.raises(ArgumentError, match=r"the argument x is overwritten, but .* read-only"):
        f(ndl.asarray(array))


def test_results_are_new_arrays() -> None:
    x = ndl.ones((2, 3))
    w = ndl.asarray(np.ones((2, 3), np.float32))
    f = ndl.compile(lambda x: [x.T, w.reshape(-1), x * 1, x.detach(), ndl.zeros(3)])
    results: Any = f(x)
    again: Any = f(x)
    arrays = [x.numpy(), w.numpy(), *(t.numpy() for t in (*results, *again))]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[:i])


def test_identity_is_kept() -> None:
    w = nn.Parameter([1.0])
    f = ndl.compile(lambda x, y: (x, w, [y], None, "text"))
    x, y = ndl.ones(2), np.ones(2, np.float32)
    a, b, (c,), *rest = f(x, y)
    assert a is x
    assert b is w
    assert c is y
    assert rest == [None, "text"]


def test_versions_are_counted() -> None:
    w = ndl.Tensor([1.0])
    optimizer = ndl.optim.SGD([w], lr=0.1)

    @ndl.compile
    def step() -> None:
        optimizer.zero_grad()
        (w * w).sum().backward()
        optimizer.step()

    y = (w * w).sum()
    step()
    with pytest.raises(ndl.errors.GradientError, match="overwritten"):
        y.backward()


def test_buffers_may_be_assigned() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            self.count = nn.Buffer(ndl.zeros(()))

        def forward(self, x: Any) -> Any:
            self.count = self.count + 1
            return x * self.count

    model = Counter()
    buffer = model.count
    f = ndl.compile(model)
    assert [f(ndl.ones(())).item() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert model.count is buffer
    assert buffer.item() == 3.0
