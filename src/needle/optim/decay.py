"""Weight decay, the same for all optimizers.

Coupled, it is the gradient of an L2 penalty ``weight_decay / 2 · ‖param‖²``, and is then scaled as
the optimizer scales gradients. Decoupled, it shrinks the parameter by ``lr · weight_decay``
whatever the gradients are (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR
2019).
"""

from __future__ import annotations

from typing import Any

from needle.optim.foreach import Options, Values


def decayed(options: Options, c: Any, param: Values, grad: Values) -> Values:
    """Return the gradient of what is minimised, with coupled decay in it; do decoupled decay.

    Args:
        options: `maximize`, `weight_decay` and `decoupled` count.
        c: coefficients, `weight_decay` and `shrink` among them.
        param: the parameter.
        grad: its gradient; not overwritten.
    """
    if "maximize" in options:
        grad = -grad
    if "weight_decay" in options:
        if "decoupled" in options:
            param *= c.shrink
        else:
            grad = grad + c.weight_decay * param
    return grad
