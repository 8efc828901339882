"""Function (a user's own backward pass) and checkpoint (rematerialisation)."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.errors import ArgumentTypeError, GradientError, ShapeError


class Cube(ndl.Function):
    @staticmethod
    def forward(ctx: Any, x: ndl.Tensor) -> ndl.Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, g: ndl.Tensor) -> ndl.Tensor:
        (x,) = ctx.saved_tensors
        return g * 3 * x * x


class ExpAndScaled(ndl.Function):
    """Two results, a result that is saved, and an argument that is no tensor."""

    @staticmethod
    def forward(ctx: Any, x: ndl.Tensor, factor: float) -> tuple[ndl.Tensor, ndl.Tensor]:
        y = x.exp()
        ctx.save_for_backward(y)
        ctx.factor = factor
        return y, x * factor

    @staticmethod
    def backward(ctx: Any, g: ndl.Tensor, h: ndl.Tensor) -> tuple[ndl.Tensor, None]:
        (y,) = ctx.saved_tensors
        return g * y + h * ctx.factor, None


def test_function_gives_derivatives_of_any_order() -> None:
    x = ndl.Tensor(2.0)
    first = ndl.grad(Cube.apply(x), x, create_graph=True)
    second = ndl.grad(first, x, create_graph=True)
    assert first.item() == 12.0
    assert second.item() == 12.0
    assert ndl.grad(second, x).item() == 6.0


def test_function_with_several_results_and_a_saved_result() -> None:
    x = ndl.Tensor(np.array([0.5, 1.0]))
    y, z = ExpAndScaled.apply(x, 3.0)
    first = ndl.grad((y * z).sum(), x, create_graph=True)
    expected = np.exp(x.numpy()) * 3 * x.numpy() + np.exp(x.numpy()) * 3
    np.testing.assert_allclose(first.numpy(), expected)
    second = ndl.grad(first.sum(), x)
    np.testing.assert_allclose(second.numpy(), expected + np.exp(x.numpy()) * 3)


def test_unused_result_of_a_function_counts_as_zero() -> None:
    x = ndl.Tensor(np.array([0.5, 1.0]))
    _, z = ExpAndScaled.apply(x, 3.0)
    z.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [3.0, 3.0])


def test_function_records_nothing_where_no_gradient_is_wanted() -> None:
    with ndl.no_grad():
        assert not Cube.apply(ndl.Tensor(2.0)).requires_grad
    assert not Cube.apply(ndl.asarray(2.0)).requires_grad


def test_function_may_return_its_argument() -> None:
    class Same(ndl.Function):
        @staticmethod
        def forward(ctx: Any, x: ndl.Tensor) -> ndl.Tensor:
            return x

        @staticmethod
        def backward(ctx: Any, g: ndl.Tensor) -> ndl.Tensor:
            return g * 2

    x = ndl.Tensor(1.0)
    Same.apply(x).backward()
    assert x.grad.item() == 2.0
    assert x.is_leaf


@pytest.mark.parametrize(
    ("returned", "error", "match"),
    [
        (lambda g: (g, g), GradientError, "2 cotangents, but forward took 1"),
        (lambda g: g.sum(), ShapeError, r"shape \[\] for argument 0 of shape \[2\]"),
    ],
)
def test_wrong_backward_is_explained(
    returned: Callable[[ndl.Tensor], Any], error: type[Exception], match: str
) -> None:
    class Wrong(ndl.Function):
        @staticmethod
        def forward(ctx: Any, x: ndl.Tensor) -> ndl.Tensor:
            return x + 1

        @staticmethod
        def backward(ctx: Any, g: ndl.Tensor) -> Any:
            return returned(g)

    with pytest.raises(error, match=match):
        Wrong.apply(ndl.Tensor([1.0, 2.0])).sum().backward()


def test_forward_must_return_tensors() -> None:
    class Number(ndl.Function):
        @staticmethod
        def forward(ctx: Any, x: ndl.Tensor) -> Any:
            return 1.0

    with pytest.raises(ArgumentTypeError, match=r"Number\.forward must return tensors"):
        Number.apply(ndl.Tensor(1.0))


def test_overwriting_a_saved_tensor_is_an_error() -> None:
    x = ndl.Tensor([1.0, 2.0])
    y = x * 1
    z = Cube.apply(y)
    y += 1
    with pytest.raises(GradientError, match="overwritten"):
        z.sum().backward()


def test_second_backward_through_a_freed_function_is_an_error() -> None:
    x = ndl.Tensor(2.0)
    y = Cube.apply(x)
    y.backward()
    with pytest.raises(GradientError, match="freed"):
        y.backward()


def test_function_leaves_no_cycle_behind() -> None:
    x = ndl.Tensor(np.ones(3))
    y, _ = ExpAndScaled.apply(x, 1.0)
    handle = weakref.ref(y)
    gc.disable()
    try:
        y.sum().backward()
        del y, _
        assert handle() is None
    finally:
        gc.enable()


# checkpoint


W = ndl.Tensor(np.random.default_rng(0).standard_normal((6, 6)))


def layers(x: ndl.Tensor) -> ndl.Tensor:
    return ((x @ W).tanh() @ W).sin()


def noisy(x: ndl.Tensor) -> ndl.Tensor:
    mask = (ndl.random.uniform(x.shape) > 0.5).astype(x.dtype)
    return layers(x * mask)


def nested(x: ndl.Tensor) -> ndl.Tensor:
    return layers(ndl.checkpoint(layers, x) * 0.5)


def gradients(function: Callable[[ndl.Tensor], ndl.Tensor], order: int) -> list[np.ndarray]:
    ndl.manual_seed(7)
    x = ndl.Tensor(np.random.default_rng(1).standard_normal((4, 6)))
    result = function(x * 1).sum()
    for _ in range(order - 1):
        (slope,) = ndl.grad(result, [x], create_graph=True)
        result = (slope * slope).sum()
    return [g.numpy() for g in ndl.grad(result, [x, W])]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("function", [layers, noisy, nested])
def test_checkpoint_has_the_gradients_of_the_plain_call(
    function: Callable[[ndl.Tensor], ndl.Tensor], order: int
) -> None:
    plain = gradients(function, order)
    again = gradients(lambda x: ndl.checkpoint(function, x), order)
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_checkpoint_takes_structures_and_keywords() -> None:
    def function(parts: dict[str, Any], *, scale: ndl.Tensor) -> list[ndl.Tensor]:
        return [parts["x"][0].exp() * scale, parts["n"] * scale]

    x, scale = ndl.Tensor(0.5), ndl.Tensor(2.0)
    one, two = ndl.checkpoint(function, {"x": (x * 1,), "n": 3}, scale=scale * 1)
    (one + two).backward()
    np.testing.assert_allclose(x.grad.item(), 2 * np.exp(0.5), rtol=1e-6)
    np.testing.assert_allclose(scale.grad.item(), np.exp(0.5) + 3, rtol=1e-6)


def test_checkpoint_holds_less_memory() -> None:
    x = ndl.Tensor(np.zeros(100_000))

    def deep(x: ndl.Tensor) -> ndl.Tensor:
        for _ in range(20):
            x = (x * 1.01).tanh()
        return x

    held = []
    tracemalloc.start()
    try:
        for function in (deep, lambda t: ndl.checkpoint(deep, t)):
            before = tracemalloc.get_traced_memory()[0]
            y = function(x * 1)
            held.append(tracemalloc.get_traced_memory()[0] - before)
            del y
    finally:
        tracemalloc.stop()
    assert held[1] < held[0] / 5


def test_checkpoint_notices_a_function_that_changes() -> None:
    calls = []

    def changing(x: ndl.Tensor) -> ndl.Tensor:
        calls.append(1)
        return x.exp() if len(calls) == 1 else x.exp().exp()

    y = ndl.checkpoint(changing, ndl.Tensor(1.0) * 1)
    with pytest.raises(GradientError, match="must do the same each time"):
        y.backward()


def test_checkpoint_notices_an_overwritten_argument() -> None:
    x = ndl.Tensor([1.0, 2.0]) * 1
    y = ndl.checkpoint(lambda t: t.exp().sin(), x)
    x += 1
    with pytest.raises(GradientError, match="overwritten"):
        y.sum().backward()


def test_checkpoint_under_no_grad_is_a_plain_call() -> None:
    with ndl.no_grad():
        assert not ndl.checkpoint(layers, ndl.ones((1, 6), dtype="float64")).requires_grad
