"""State whose axes lie in memory in another order than they are counted in."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn, optim
from needle.arrays import as_lies, in_order, memory_order

ORDERS = list(itertools.permutations(range(3)))


def parameter(order: tuple[int, ...]) -> nn.Parameter:
    values = np.random.default_rng(0).standard_normal((2, 3, 4), dtype=np.float32)
    return nn.Parameter(ndl.asarray(in_order(values, order)))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_order_of_axes(order: tuple[int, ...]) -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    y = in_order(x, order)
    np.testing.assert_array_equal(x, y)
    assert memory_order(y) == (None if order == (0, 1, 2) else order)
    assert as_lies(y, x).flags.c_contiguous
    assert as_lies(x, y).strides == y.strides
    assert as_lies(y, y) is y


def test_axes_of_one_element_and_gaps() -> None:
    assert memory_order(np.zeros((1, 3, 1)).transpose(2, 0, 1)) is None
    assert memory_order(np.zeros((4, 4))[:, ::2].T) is None
    assert memory_order(np.broadcast_to(np.zeros(3), (2, 3))) is None
    assert memory_order(np.zeros(())) is None
    weight = np.zeros((1, 5, 7, 1)).transpose(3, 2, 0, 1)
    order = memory_order(weight)
    assert order is None or weight.transpose(order).flags.c_contiguous


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("make", [optim.SGD, optim.Adam], ids=lambda f: f.__name__)
def test_compiled_step_equals_eager(order: tuple[int, ...], make: Any) -> None:
    x = ndl.asarray(np.random.default_rng(1).standard_normal((2, 3, 4), dtype=np.float32))
    found = []
    for compiled in (False, True):
        w = parameter(order)
        array = w._data
        optimizer = make([w], lr=0.1, **({"momentum": 0.9} if make is optim.SGD else {}))

        def step(x: Any, w: Any = w, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = ndl.mean(ndl.square(ndl.tanh(w) * x - 1))
            loss.backward()
            optimizer.step()
            return loss

        run = ndl.compile(step) if compiled else step
        losses = [run(x).item() for _ in range(3)]
        assert w._data is array  # overwritten where it lies
        state = [t for t in optimizer.state[w].values() if t.ndim]
        assert all(t._data.strides == array.strides for t in state)
        found.append((losses, w.numpy().copy(), state))
    (a, x, _), (b, y, _) = found
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_gradient_of_a_compiled_function_by_a_weight_in_another_order() -> None:
    w = parameter((2, 0, 1))

    def loss(x: Any) -> Any:
        return ndl.sum(ndl.exp(w) * x)

    x = ndl.asarray(np.random.default_rng(1).standard_normal((2, 3, 4), dtype=np.float32))
    ndl.compile(loss)(x).backward()
    assert w.grad is not None
    np.testing.assert_allclose(w.grad.numpy(), np.exp(w.numpy()) * x.numpy(), rtol=1e-5)
    assert w.grad._data.strides == w._data.strides


def test_what_the_backward_pass_needs_must_not_be_overwritten() -> None:
    w = parameter((2, 0, 1))
    loss = ndl.compile(lambda x: ndl.sum(w * w * x))(ndl.ones((2, 3, 4)))
    with ndl.no_grad():
        w *= 2.0
    with pytest.raises(ndl.NeedleError, match="overwritten"):
        loss.backward()


def test_other_order_is_another_program() -> None:
    layer = nn.Module()
    layer.w = parameter((2, 0, 1))
    f = ndl.compile(lambda x: layer.w * x + 1)
    x = ndl.ones((2, 3, 4))
    arrays = [in_order(layer.w.numpy() * 2, order) for order in ORDERS]
    arrays.append(np.ones((4, 3, 4), np.float32)[::2])  # with gaps
    with ndl.no_grad():
        for array in arrays:
            np.testing.assert_array_equal(f(x).numpy(), layer.w.numpy() + 1)
            layer.w = nn.Parameter(ndl.asarray(array))
            np.testing.assert_array_equal(f(x).numpy(), array + 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(3, 8, 5),
        lambda: nn.ConvTranspose2d(3, 8, 5),
        lambda: nn.Conv2d(4, 8, 3, groups=2),
        lambda: nn.Conv2d(32, 48, 3),  # large enough to be copied
        lambda: nn.ConvTranspose2d(48, 32, 3, stride=2, groups=2),
    ],
    ids=["conv", "transposed", "groups", "large", "large transposed"],
)
def test_layers_lie_as_kernels_read_and_are_loaded_as_always(make: Any) -> None:
    ndl.manual_seed(0)
    layer, twin = make(), make()
    assert layer.weight._data.transpose(2, 3, 1, 0).flags.c_contiguous
    strides = twin.weight._data.strides
    twin.load_state_dict({k: v.numpy().copy() for k, v in layer.state_dict().items()})
    np.testing.assert_array_equal(twin.weight.numpy(), layer.weight.numpy())
    assert twin.weight._data.strides == strides == layer.weight._data.strides
    x = ndl.randn(2, layer.in_channels, 7, 7)
    found = []
    for array in (layer.weight.numpy(), np.ascontiguousarray(layer.weight.numpy())):
        layer.weight = nn.Parameter(ndl.asarray(array))
        y = layer(x)
        ndl.sum(ndl.square(y)).backward()
        assert layer.weight.grad._data.strides == array.strides
        found.append((y.numpy().tobytes(), layer.weight.grad.numpy().tobytes()))
    assert found[0] == found[1]
