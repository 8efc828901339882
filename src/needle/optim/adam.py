"""Adam, and AdamW, its form with decoupled weight decay."""

from __future__ import annotations

from typing import Any, NamedTuple

from needle.optim.decay import decayed
from needle.optim.foreach import Options, Values, overwrite
from needle.optim.optimizer import Optimizer, Params
from needle.optim.param_group import FRACTION, NON_NEGATIVE, Hyperparameters


class Adam(Optimizer):
    """Steps of about the size ``lr`` for each element, by moving averages of gradient and square.

    ::

        step ← step + 1
        grad ← grad + weight_decay · param                           (decoupled=False)
        param ← (1 − lr · weight_decay) · param                      (decoupled=True)
        exp_avg ← beta1 · exp_avg + (1 − beta1) · grad
        exp_avg_sq ← beta2 · exp_avg_sq + (1 − beta2) · grad²
        mean ← exp_avg / (1 − beta1^step)
        square ← exp_avg_sq / (1 − beta2^step)
        param ← param − lr · mean / (√square + eps)

    The averages start at zero; the divisions by ``1 − beta^step`` correct for that, and are left
    out with ``bias_correction=False``. With ``amsgrad`` the largest ``exp_avg_sq`` so far takes its
    place.

    Args:
        params: parameters, (name, parameter) pairs, or groups.
        lr: learning rate, at least 0.
        betas: how much of each average is kept in each step; each in [0, 1).
        eps: added to the root, so that a gradient of zero divides by no zero; at least 0.
        weight_decay: how strongly parameters are drawn to zero, at least 0.
        amsgrad: whether the second average never decreases.
        bias_correction: whether to correct for the start at zero.
        maximize: whether to climb instead.
        decoupled: whether the decay shrinks the parameter instead of joining the gradient.

    Raises:
        ArgumentError: a value out of its range, or no parameters.

    Source:
        Kingma and Ba, "Adam: a method for stochastic optimization" (ICLR 2015); ``amsgrad``: Reddi
        et al., "On the convergence of Adam and beyond" (ICLR 2018).

    Example:
        >>> w = ndl.Tensor([1.0, 1.0])
        >>> optimizer = ndl.optim.Adam([w], lr=0.25)
        >>> w.grad = ndl.asarray([100.0, -0.01])
        >>> optimizer.step()
        >>> (w.detach() * 100).round()
        Tensor([ 75., 125.])
    """

    hyperparameters = Hyperparameters(
        numbers={
            "lr": NON_NEGATIVE,
            "beta1": FRACTION,
            "beta2": FRACTION,
            "eps": NON_NEGATIVE,
            "weight_decay": NON_NEGATIVE,
        },
        pairs={"betas": ("beta1", "beta2")},
        switches=frozenset({"weight_decay"}),
        flags=frozenset({"amsgrad", "bias_correction", "maximize", "decoupled"}),
    )

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        maximize: bool = False,
        decoupled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "bias_correction": bias_correction,
            "maximize": maximize,
            "decoupled": decoupled,
        }
        super().__init__(params, defaults)

    def state_names(self, options: Options) -> tuple[str, ...]:
        """Return the two averages, and the largest second one for ``amsgrad``."""
        names = ("exp_avg", "exp_avg_sq")
        return (*names, "max_exp_avg_sq") if "amsgrad" in options else names

    class Coefficients(NamedTuple):
        """What all parameters share."""

        beta1: Values
        fresh1: Values
        beta2: Values
        fresh2: Values
        rate: Values
        eps: Values
        weight_decay: Values
        shrink: Values

    def coefficients(self, xp: Any, options: Options, **n: Values) -> Coefficients:
        """Return the numbers, with the bias corrections folded into learning rate and eps.

        With r = √(1 − beta2^step), lr · mean / (√square + eps) is
        (lr · r / (1 − beta1^step)) · exp_avg / (√exp_avg_sq + r · eps): one pass over the elements
        less.
        """
        rate, eps = n["lr"], n["eps"]
        if "bias_correction" in options:
            root = xp.sqrt(1 - xp.pow(n["beta2"], n["step"]))
            rate = rate * root / (1 - xp.pow(n["beta1"], n["step"]))
            eps = eps * root
        return self.Coefficients(
            beta1=n["beta1"],
            fresh1=1 - n["beta1"],
            beta2=n["beta2"],
            fresh2=1 - n["beta2"],
            rate=rate,
            eps=eps,
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
        exp_avg: Values = None,
        exp_avg_sq: Values = None,
        max_exp_avg_sq: Values = None,
        **_: Values,
    ) -> None:
        """Take a step; the formula is the class's."""
        grad = decayed(options, c, param, grad)
        exp_avg *= c.beta1
        exp_avg += c.fresh1 * grad
        exp_avg_sq *= c.beta2
        square = grad * grad
        square *= c.fresh2
        exp_avg_sq += square
        if max_exp_avg_sq is not None:
            overwrite(max_exp_avg_sq, xp.maximum(max_exp_avg_sq, exp_avg_sq))
            exp_avg_sq = max_exp_avg_sq
        divisor = xp.sqrt(exp_avg_sq)
        divisor += c.eps
        change = exp_avg / divisor
        change *= c.rate
        param -= change


class AdamW(Adam):
    """Adam with decoupled weight decay: `Adam` with ``decoupled=True`` and another default decay.

    Args:
        params: parameters, (name, parameter) pairs, or groups.
        lr: learning rate, at least 0.
        betas: how much of each average is kept in each step; each in [0, 1).
        eps: added to the root, at least 0.
        weight_decay: a step multiplies parameters by ``1 − lr · weight_decay``; at least 0.
        amsgrad: whether the second average never decreases.
        bias_correction: whether to correct for the start at zero.
        maximize: whether to climb instead.

    Raises:
        ArgumentError: a value out of its range, or no parameters.

    Source:
        Loshchilov and Hutter, "Decoupled weight decay regularization" (ICLR 2019).

    Example:
        >>> w = ndl.Tensor([1.0])
        >>> optimizer = ndl.optim.AdamW([w], lr=0.5, weight_decay=0.5)
        >>> w.grad = ndl.asarray([0.0])
        >>> optimizer.step()
        >>> w
        Tensor([0.75], requires_grad=True)
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            bias_correction=bias_correction,
            maximize=maximize,
            decoupled=True,
        )
