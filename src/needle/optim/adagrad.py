"""Adagrad: gradients divided by the root of the sum of all their squares."""

from __future__ import annotations

from typing import Any, NamedTuple

from needle.optim.decay import decayed
from needle.optim.foreach import Options, Values
from needle.optim.optimizer import Optimizer, Params
from needle.optim.param_group import NON_NEGATIVE, Hyperparameters, ParamGroup


class Adagrad(Optimizer):
    """Gradients divided by the root of the sum of all their squares so far.

    ::

        step ← step + 1
        grad ← grad + weight_decay · param                           (decoupled=False)
        param ← (1 − rate · weight_decay) · param                    (decoupled=True)
        rate ← lr / (1 + (step − 1) · lr_decay)
        sum ← sum + grad²                                            (initial_accumulator_value at
        first) param ← param − rate · grad / (√sum + eps)

    Args:
        params: parameters, (name, parameter) pairs, or groups.
        lr: learning rate, at least 0.
        lr_decay: how fast the learning rate falls, at least 0.
        weight_decay: how strongly parameters are drawn to zero, at least 0.
        initial_accumulator_value: what ``sum`` starts with, at least 0.
        eps: added to the root, at least 0.
        maximize: whether to climb instead.
        decoupled: whether the decay shrinks the parameter instead of joining the gradient.

    Raises:
        ArgumentError: a value out of its range, or no parameters.

    Source:
        Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and stochastic
        optimization" (JMLR 2011).

    Example:
        >>> w = ndl.Tensor([1.0])
        >>> optimizer = ndl.optim.Adagrad([w], lr=0.5)
        >>> w.grad = ndl.asarray([8.0])
        >>> optimizer.step()
        >>> w
        Tensor([0.5], requires_grad=True)
    """

    hyperparameters = Hyperparameters(
        numbers={
            "lr": NON_NEGATIVE,
            "lr_decay": NON_NEGATIVE,
            "weight_decay": NON_NEGATIVE,
            "initial_accumulator_value": NON_NEGATIVE,
            "eps": NON_NEGATIVE,
        },
        switches=frozenset({"weight_decay"}),
        flags=frozenset({"maximize", "decoupled"}),
    )

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        decoupled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "maximize": maximize,
            "decoupled": decoupled,
        }
        super().__init__(params, defaults)

    def state_names(self, options: Options) -> tuple[str, ...]:
        """Return the sum of squares."""
        return ("sum",)

    def initial_value(self, group: ParamGroup) -> float:
        """Return what the sum of squares starts with."""
        return float(group["initial_accumulator_value"])

    class Coefficients(NamedTuple):
        """What all parameters share."""

        rate: Values
        eps: Values
        weight_decay: Values
        shrink: Values

    def coefficients(self, xp: Any, options: Options, **n: Values) -> Coefficients:
        """Return the learning rate of this step, and the numbers."""
        rate = n["lr"] / (1 + (n["step"] - 1) * n["lr_decay"])
        return self.Coefficients(
            rate=rate,
            eps=n["eps"],
            weight_decay=n["weight_decay"],
            shrink=1 - rate * n["weight_decay"],
        )

    def update(
        self,
        xp: Any,
        options: Options,
        c: Any,
        param: Values,
        grad: Values,
        sum: Values = None,
        **_: Values,
    ) -> None:
        """Take a step; the formula is the class's."""
        grad = decayed(options, c, param, grad)
        sum += grad * grad
        divisor = xp.sqrt(sum)
        divisor += c.eps
        change = grad / divisor
        change *= c.rate
        param -= change
