"""Functions with branches on values, for the tests of branches="specialise"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import needle as ndl
import needle.nn.functional as F


class Case(NamedTuple):
    """A function with branches.

    Attributes:
        function: takes one tensor.
        inputs: values that reach all paths.
        paths: how many paths there are.
    """

    function: Callable[[Any], Any]
    inputs: Sequence[Any]
    paths: int

    @property
    def name(self) -> str:
        """What tests call it."""
        return self.function.__name__


def two_sides(x):
    if x.sum() > 0:
        return x * 2
    return x.exp()


def nested(x):
    y = x * x
    if y.sum() > 4:
        if x[0] > 0:
            y = y / 2 if x[1] > 0 else y + x
        elif x[1] < 9:
            y = y.sin()
    elif x.max() > 0.5:
        y = y.exp()
    return y * x


def halved(x):
    while (x * x).sum() > 1:
        x = x * 0.5
    return x


def loop_with_branch(x):
    steps = 0
    while (x * x).sum() > 1 and steps < 4:
        x = x[::-1] * 0.75 if x[0] > 1.25 * x[1] else x * 0.625 + 0.125
        steps += 1
    return x * steps


def both_after(x):
    y = x.exp() if x[0] > 0 else x * 3
    return y + 1 if y.sum() > 5 else y - 1


def asked_twice(x):
    positive = x.sum() > 0
    y = x * 2 if positive else x * 3
    z = y.exp() if positive else y
    return z if x.sum() > 0 else z + 1


def short_circuits(x):
    if (x[0] > 0 and x[1] > 0) or not x[2] > 0:
        return x * x
    return x + x


def counted(x):
    n = int(ndl.abs(x).max())
    for _ in range(n):
        x = x * 0.9
    return x


def picked(x):
    rules = [ndl.exp, ndl.sin, lambda t: t * 2]
    return rules[ndl.argmax(x)](x)


def item_of_an_integer(x):
    return x * (x > 0).sum().item()


def truth_of_a_float(x):
    return x * 2 if x[0] else x * 3


def other_structures(x):
    if x.sum() > 0:
        return {"a": x * 2, "b": (x, 3)}
    return x.sum()


def element_in(x):
    return x.exp() if 3.0 in x else x


def results_of_the_guard(x):
    loss = (x * x).sum()
    if loss > 1:
        return loss, loss, x / loss
    return loss, x


def through_attention(x):
    y = x.reshape(1, 3) * ndl.ones((3, 1))
    weights = F.softmax(y @ y.mT, axis=-1)
    if x[0] > 0 and weights[0, 0] > 0.3:
        return (weights @ y).sum(axis=0)
    return weights.sum(axis=0) * x


def gradient_inside(x):
    y = (x * x * x).sum()
    slope = ndl.grad(y, x, create_graph=True)
    if (slope * slope).sum() > 9:
        return (slope * 2).sum() + y
    return y * slope.sum()


def after_a_loop(x):
    total, _ = ndl.scan(lambda carry, t: (carry * 0.5 + t * t, carry), ndl.zeros(()), x)
    if total > 1:
        return total * x
    return total + x


def derivative_of_a_loop_on_one_side(x):
    total, _ = ndl.scan(lambda carry, t: (carry * 0.5 + t * t, carry), ndl.zeros(()), x)
    if total > 4:
        return ndl.grad(total, x) * 3 + x.detach().sum()
    if total > 1:
        return total.detach() + x.detach()
    return (x.detach() * total.detach()).exp()


def derivatives_of_a_loop(x):
    w = ndl.tanh(x.mean())

    def turn(carry, t):
        return carry * w + ndl.sin(t) * t, carry.exp()

    total, stack = ndl.scan(turn, ndl.zeros(()), x)
    if total > 1:
        return ndl.grad(total, w).detach() * x
    if total > 0.53:
        return ndl.grad(total, x).detach() * x
    if total > 0.2:
        return ndl.grad(stack.sum(), [x, w])[0].detach() + x
    return total * x


def of_a_constant(x):
    if ndl.zeros(3).sum() > 0:
        return x
    return x * 2 if ndl.asarray(True) else x


def checkpointed_inside(x):
    def part(t):
        y = t.exp()
        return y * t if y.sum() > 4 else y + t

    return ndl.grad(ndl.checkpoint(part, x).sum(), x) + x


def checkpointed(x):
    def part(t):
        y = t.exp()
        return y * t if y.sum() > 4 else y + t

    return ndl.checkpoint(part, x).sum()


SIGNS = [[a, b, c] for a in (-2.0, 1.5) for b in (-1.25, 3.0) for c in (-0.5, 0.75)]
SMALL = [[0.1, 0.2, 0.3], [0.1, 0.2, 0.75], [-0.1, -0.2, -0.3]]

CASES = [
    Case(two_sides, SIGNS, 2),
    Case(nested, SIGNS + SMALL, 5),
    Case(halved, [[2.0**n, 0.0, 0.1] for n in range(-1, 6)], 7),
    Case(loop_with_branch, SIGNS + SMALL, 4),
    Case(both_after, SIGNS + SMALL, 4),
    Case(asked_twice, SIGNS, 2),
    Case(short_circuits, SIGNS, 5),
    Case(counted, [[0.5, 0.0, 0.0], [1.5, 0.0, 0.0], [0.0, -3.25, 0.0], [1.75, 1.0, 1.0]], 3),
    Case(picked, [[3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]], 3),
    Case(item_of_an_integer, SIGNS, 4),
    Case(truth_of_a_float, [[0.0, 1.0, 1.0], [2.0, 1.0, 1.0], [float("nan"), 1.0, 1.0]], 2),
    Case(other_structures, SIGNS, 2),
    Case(element_in, SIGNS, 2),
    Case(results_of_the_guard, SIGNS + SMALL, 2),
    Case(through_attention, SIGNS + SMALL, 2),
    Case(gradient_inside, SIGNS + SMALL, 2),
    Case(after_a_loop, SIGNS + SMALL, 2),
    Case(derivative_of_a_loop_on_one_side, SIGNS + SMALL, 3),
    Case(derivative_of_a_loop_on_one_side, SMALL + SIGNS, 3),
    Case(derivatives_of_a_loop, SIGNS + SMALL, 4),
    Case(derivatives_of_a_loop, (SMALL + SIGNS)[::-1], 4),
    Case(checkpointed_inside, SIGNS + SMALL, 2),
    Case(of_a_constant, SMALL, 1),
    Case(checkpointed, SIGNS + SMALL, 2),
]


def run(function: Callable[..., Any], values: Any) -> tuple[Any, Any]:
    """Return the results of a function, and the gradient of the sum of all of them."""
    x = ndl.Tensor(np.array(values, np.float32))
    leaves, structure = ndl.tree.flatten(function(x))
    tensors = [t for t in leaves if isinstance(t, ndl.Tensor)]
    total = sum((t.sum() for t in tensors[1:]), tensors[0].sum())
    if total.requires_grad:
        total.backward()
    found = [t.detach().numpy() if isinstance(t, ndl.Tensor) else t for t in leaves]
    return (structure, found), None if x.grad is None else x.grad.numpy()
