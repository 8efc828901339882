"""Control flow beside Python's own in PyTorch: the same values and gradients on the same data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl

torch = pytest.importorskip("torch")

Function = Callable[..., Any]


def data(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def compare(ours: Function, theirs: Function, *arrays: Any, numbers: tuple[int, ...] = ()) -> None:
    """Raise unless both give the same results and gradients, eagerly and compiled.

    Args:
        ours: from tensors, and 0-d tensors of the numbers, to a tensor or several.
        theirs: the same with PyTorch's, and Python's numbers.
        arrays: what gradients are wanted of.
        numbers: what decides.
    """

    def outcome(library: Any, function: Function, inputs: list[Any], rest: tuple[Any, ...]) -> Any:
        results = function(*inputs, *rest)
        results = results if isinstance(results, tuple) else (results,)
        loss = sum((library.sin(r) * (i + 1)).sum() for i, r in enumerate(results))
        loss.backward()
        found = [r.detach().numpy() for r in results]
        return found, [None if x.grad is None else x.grad.numpy() for x in inputs]

    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected, slopes = outcome(torch, theirs, tensors, numbers)
    for function in (ours, ndl.compile(ours)):
        inputs = [ndl.Tensor(a.copy(), requires_grad=True) for a in arrays]
        rest = tuple(ndl.asarray(n) for n in numbers)
        values, gradients = outcome(ndl, function, inputs, rest)
        for a, b in zip(values, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        for a, b in zip(gradients, slopes, strict=True):
            # A program does not know beforehand that the other branch would have used an input.
            a, b = (0.0 if g is None else g for g in (a, b))
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("flag", [0, 1])
def test_cond(flag: int) -> None:
    def ours(x: Any, w: Any, flag: Any) -> Any:
        return ndl.cond(flag, lambda x: ndl.tanh(x @ w), lambda x: x * x, x)

    def theirs(x: Any, w: Any, flag: int) -> Any:
        return torch.tanh(x @ w) if flag else x * x

    compare(ours, theirs, data(3, 4), data(4, 4), numbers=(flag,))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_switch(index: int) -> None:
    def ours(x: Any, i: Any) -> Any:
        return ndl.switch(i, [ndl.sin, lambda x: ndl.softmax(x, axis=-1), lambda x: x**3], x)

    def theirs(x: Any, i: int) -> Any:
        return [torch.sin, lambda x: torch.softmax(x, -1), lambda x: x**3][i](x)

    compare(ours, theirs, data(3, 5), numbers=(index,))


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_while_loop(scale: float) -> None:
    """The number of turns, none among them, depends on the values."""

    def ours(x: Any, w: Any) -> Any:
        return ndl.while_loop(
            lambda c: (c[0] * c[0]).sum() < 50,
            lambda c: (c[0] * 1.5 + ndl.sin(w), c[1] + c[0].sum()),
            (x, w[0]),
            max_steps=40,
        )

    def theirs(x: Any, w: Any) -> Any:
        total = w[0]
        while (x * x).sum() < 50:
            x, total = x * 1.5 + torch.sin(w), total + x.sum()
        return x, total

    compare(ours, theirs, data(4) * scale, data(4, seed=1))


@pytest.mark.parametrize("limit", [0, 1, 4])
def test_while_loop_that_is_stopped(limit: int) -> None:
    def ours(x: Any) -> Any:
        return ndl.while_loop(lambda x: x.sum() < 1e9, lambda x: x * x + 1, x, max_steps=limit)

    def theirs(x: Any) -> Any:
        x = x * 1
        for _ in range(limit):
            x = x * x + 1
        return x

    compare(ours, theirs, data(3) * 0.5)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse: bool) -> None:
    """A recurrent network with a gate."""

    def ours(h: Any, xs: Any, w: Any, u: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            gate = ndl.sigmoid(x @ u)
            h = gate * ndl.tanh(h @ w + x) + (1 - gate) * h
            return h, h * x

        return ndl.scan(step, h, xs, reverse=reverse)

    def theirs(h: Any, xs: Any, w: Any, u: Any) -> Any:
        outputs = [None] * len(xs)
        for i in reversed(range(len(xs))) if reverse else range(len(xs)):
            gate = torch.sigmoid(xs[i] @ u)
            h = gate * torch.tanh(h @ w + xs[i]) + (1 - gate) * h
            outputs[i] = h * xs[i]
        return h, torch.stack(outputs)

    compare(ours, theirs, data(2, 3), data(7, 2, 3), data(3, 3), data(3, 3, seed=1))


@pytest.mark.parametrize(("low", "high"), [(0, 5), (2, 3), (4, 2)])
def test_fori_loop(low: int, high: int) -> None:
    def ours(x: Any, w: Any) -> Any:
        return ndl.fori_loop(low, high, lambda i, y: ndl.sin(y * w) + i.astype("float64"), x * w)

    def theirs(x: Any, w: Any) -> Any:
        y = x * w
        for i in range(low, high):
            y = torch.sin(y * w) + i
        return y

    compare(ours, theirs, data(6), data(6, seed=1))


def test_nested() -> None:
    """A choice in a loop in a loop."""

    def ours(xs: Any, w: Any) -> Any:
        def turn(h: Any, x: Any) -> Any:
            h = ndl.fori_loop(
                0, 3, lambda i, h: ndl.cond(h.sum() > 0, lambda: h * 0.5, lambda: h * w - x), h
            )
            return h + x, h

        return ndl.scan(turn, w * 1, xs)

    def theirs(xs: Any, w: Any) -> Any:
        h, outputs = w * 1, []
        for x in xs:
            for _ in range(3):
                h = h * 0.5 if h.sum() > 0 else h * w - x
            outputs.append(h)
            h = h + x
        return h, torch.stack(outputs)

    compare(ours, theirs, data(6, 3), data(3, seed=1))
