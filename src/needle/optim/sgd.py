"""Stochastic gradient descent, with momentum and Nesterov's form of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from needle.errors import ArgumentError
from needle.optim.decay import decayed
from needle.optim.foreach import Options, Values
from needle.optim.optimizer import Optimizer, Params
from needle.optim.param_group import FRACTION, NON_NEGATIVE, UNIT, Hyperparameters, ParamGroup


class SGD(Optimizer):
    """Stochastic gradient descent.

    With a moving average of the gradients, ``momentum_buffer`` (from zero on), for ``momentum`` >
    0::

        grad ← grad + weight_decay · param                           (decoupled=False)
        param ← (1 − lr · weight_decay) · param                      (decoupled=True)
        momentum_buffer ← momentum · momentum_buffer + (1 − dampening) · grad
        direction ← momentum_buffer
        direction ← momentum · momentum_buffer + (1 − dampening) · grad       (nesterov)
        param ← param − lr · direction

    ``dampening=None`` is ``momentum``: the buffer is an average, so that the size of a step depends
    on ``lr`` only. ``dampening=0`` sums up, as PyTorch does, with steps ``1 / (1 − momentum)``
    times as large. Without momentum, ``direction`` is ``grad``.

    Args:
        params: parameters, (name, parameter) pairs, or groups.
        lr: learning rate, at least 0.
        momentum: how much of the average is kept in each step, in [0, 1).
        dampening: how much of the gradient is left out, in [0, 1]; ``momentum`` if None.
        weight_decay: how strongly parameters are drawn to zero, at least 0.
        nesterov: whether to look ahead: the average is moved on once more before it is used.
        maximize: whether to climb instead.
        decoupled: whether the decay shrinks the parameter instead of joining the gradient.

    Raises:
        ArgumentError: a value out of its range, ``nesterov`` without momentum, no parameters.

    Source:
        Polyak, "Some methods of speeding up the convergence of iteration methods" (1964);
        Sutskever et al., "On the importance of initialization and momentum in deep learning"
        (2013).

    Example:
        >>> w = ndl.Tensor([1.0])
        >>> optimizer = ndl.optim.SGD([w], lr=0.5, momentum=0.5)
        >>> for _ in range(2):
        ...     w.grad = ndl.asarray([1.0])
        ...     optimizer.step()
        >>> w
        Tensor([0.375], requires_grad=True)
    """

    hyperparameters = Hyperparameters(
        numbers={
            "lr": NON_NEGATIVE,
            "momentum": FRACTION,
            "dampening": UNIT,
            "weight_decay": NON_NEGATIVE,
        },
        switches=frozenset({"momentum", "weight_decay"}),
        optional=frozenset({"dampening"}),
        flags=frozenset({"nesterov", "maximize", "decoupled"}),
    )
    counts_steps = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float | None = None,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        decoupled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "decoupled": decoupled,
        }
        super().__init__(params, defaults)

    def check_group(self, group: ParamGroup) -> None:
        """Raise for ``nesterov`` without momentum."""
        if group["nesterov"] and "momentum" not in group.options:
            raise ArgumentError("SGD: nesterov needs a momentum above 0")

    def state_names(self, options: Options) -> tuple[str, ...]:
        """Return the average of gradients, if there is momentum."""
        return ("momentum_buffer",) if "momentum" in options else ()

    class Coefficients(NamedTuple):
        """What all parameters share."""

        lr: Values
        momentum: Values
        fresh: Values
        weight_decay: Values
        shrink: Values

    def coefficients(self, xp: Any, options: Options, **n: Values) -> Coefficients:
        """Return the numbers, how much of a gradient counts, and how decay shrinks a parameter."""
        return self.Coefficients(
            lr=n["lr"],
            momentum=n["momentum"],
            fresh=1 - n["dampening" if "dampening" in options else "momentum"],
            weight_decay=n["weight_decay"],
            shrink=1 - n["lr"] * n["weight_decay"],
        )

    def update(
        self,
        xp: Any,
        options: Options,
        c: Any,
        param: Values,
        grad: Values,
        momentum_buffer: Values = None,
        **_: Values,
    ) -> None:
        """Take a step; the formula is the class's."""
        grad = decayed(options, c, param, grad)
        if momentum_buffer is None:
            param -= c.lr * grad
            return
        grad = c.fresh * grad
        momentum_buffer *= c.momentum
        momentum_buffer += grad
        if "nesterov" in options:
            direction = c.momentum * momentum_buffer
            direction += grad
            direction *= c.lr
        else:
            direction = c.lr * momentum_buffer
        param -= direction
