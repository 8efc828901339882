"""RMSprop: gradients divided by the root of a moving average of their squares."""

from __future__ import annotations

from typing import Any, NamedTuple

from needle.optim.decay import decayed
from needle.optim.foreach import Options, Values
from needle.optim.optimizer import Optimizer, Params
from needle.optim.param_group import FRACTION, NON_NEGATIVE, Hyperparameters


class RMSprop(Optimizer):
    """Gradients divided by the root of a moving average of their squares.

    ::

        grad ← grad + weight_decay · param                           (decoupled=False)
        param ← (1 − lr · weight_decay) · param                      (decoupled=True)
        square_avg ← alpha · square_avg + (1 − alpha) · grad²
        variance ← square_avg
        grad_avg ← alpha · grad_avg + (1 − alpha) · grad             (centered)
        variance ← square_avg − grad_avg²                            (centered)
        direction ← grad / (√variance + eps)
        momentum_buffer ← momentum · momentum_buffer + direction     (momentum > 0)
        direction ← momentum_buffer                                  (momentum > 0)
        param ← param − lr · direction

    Args:
        params: parameters, (name, parameter) pairs, or groups.
        lr: learning rate, at least 0.
        alpha: how much of the averages is kept in each step, in [0, 1).
        eps: added to the root, at least 0.
        weight_decay: how strongly parameters are drawn to zero, at least 0.
        momentum: how much of earlier directions is added, in [0, 1). This buffer is a sum, as in
            the source, not an average as in `SGD`.
        centered: whether to divide by an estimate of the standard deviation instead.
        maximize: whether to climb instead.
        decoupled: whether the decay shrinks the parameter instead of joining the gradient.

    Raises:
        ArgumentError: a value out of its range, or no parameters.

    Source:
        Hinton, "Neural networks for machine learning", lecture 6e (2012); ``centered``: Graves,
        "Generating sequences with recurrent neural networks" (2013).

    Example:
        >>> w = ndl.Tensor([1.0])
        >>> optimizer = ndl.optim.RMSprop([w], lr=0.25, alpha=0.75)
        >>> w.grad = ndl.asarray([8.0])
        >>> optimizer.step()
        >>> w
        Tensor([0.5], requires_grad=True)
    """

    hyperparameters = Hyperparameters(
        numbers={
            "lr": NON_NEGATIVE,
            "alpha": FRACTION,
            "eps": NON_NEGATIVE,
            "weight_decay": NON_NEGATIVE,
            "momentum": FRACTION,
        },
        switches=frozenset({"momentum", "weight_decay"}),
        flags=frozenset({"centered", "maximize", "decoupled"}),
    )
    counts_steps = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        decoupled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
            "decoupled": decoupled,
        }
        super().__init__(params, defaults)

    def state_names(self, options: Options) -> tuple[str, ...]:
        """Return the average of squares, and what ``centered`` and ``momentum`` need."""
        centered = ("grad_avg",) if "centered" in options else ()
        momentum = ("momentum_buffer",) if "momentum" in options else ()
        return ("square_avg", *centered, *momentum)

    class Coefficients(NamedTuple):
        """What all parameters share."""

        lr: Values
        alpha: Values
        fresh: Values
        eps: Values
        momentum: Values
        weight_decay: Values
        shrink: Values

    def coefficients(self, xp: Any, options: Options, **n: Values) -> Coefficients:
        """Return the numbers, and how much of a gradient and of a parameter is kept."""
        return self.Coefficients(
            lr=n["lr"],
            alpha=n["alpha"],
            fresh=1 - n["alpha"],
            eps=n["eps"],
            momentum=n["momentum"],
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
        square_avg: Values = None,
        grad_avg: Values = None,
        momentum_buffer: Values = None,
        **_: Values,
    ) -> None:
        """Take a step; the formula is the class's."""
        grad = decayed(options, c, param, grad)
        square = grad * grad
        square *= c.fresh
        square_avg *= c.alpha
        square_avg += square
        variance = square_avg
        if grad_avg is not None:
            grad_avg *= c.alpha
            grad_avg += c.fresh * grad
            variance = square_avg - grad_avg * grad_avg
        divisor = xp.sqrt(variance)
        divisor += c.eps
        direction = grad / divisor
        if momentum_buffer is not None:
            momentum_buffer *= c.momentum
            momentum_buffer += direction
            direction = c.lr * momentum_buffer
        else:
            direction *= c.lr
        param -= direction
