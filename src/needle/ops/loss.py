"""Losses: how far predictions are from targets, for each element or reduced to one number.

Classification by labels is in `needle.ops.cross_entropy`. Targets have the shape of the
predictions, exactly: a batch of [N] against [N, 1] would broadcast to [N, N], a mistake that trains
without any error to a model that predicts the mean.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.errors import ArgumentError, ShapeError
from needle.ops.activation import softplus
from needle.ops.arithmetic import abs, square
from needle.ops.comparison import where
from needle.ops.elementwise import TensorLike
from needle.ops.engine import as_float_tensor, promoted, widen
from needle.ops.precision import Precision
from needle.ops.record import composite
from needle.ops.reduce import mean, sum
from needle.ops.samples import Sample, Samples, bad, bools, distinct, normal, uniform
from needle.ops.transcendental import exp, log
from needle.shapes import Shape, broadcast_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from needle.tensor import Tensor

REDUCTIONS = ("mean", "sum", "none")


def check_reduction(shape: Shape, reduction: str, name: str) -> None:
    """Raise unless losses of ``shape`` can be reduced by ``reduction``.

    Raises:
        ArgumentError: another ``reduction``.
        ShapeError: the mean of nothing.
    """
    if reduction not in REDUCTIONS:
        raise ArgumentError(f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if reduction == "mean" and 0 in shape:
        raise ShapeError(
            f"{name}: the batch is empty (losses of shape {list(shape)}), and the mean over "
            "nothing is undefined; skip empty batches, or use reduction='sum', which gives 0"
        )


def reduced(losses: Tensor, reduction: str, name: str) -> Tensor:
    """Return the mean or the sum of ``losses``, or the losses themselves for "none"."""
    check_reduction(losses.shape, reduction, name)
    return mean(losses) if reduction == "mean" else sum(losses) if reduction == "sum" else losses


def _pair(x: Any, target: Any, name: str) -> tuple[Tensor, Tensor]:
    """Return predictions and targets as floating tensors of one shape and one dtype."""
    a, b = promoted(as_float_tensor(x), target)
    if a.shape != b.shape:
        raise ShapeError(
            f"{name}: predictions {list(a.shape)} and targets {list(b.shape)} must have the same "
            "shape; broadcasting would compare elements that do not belong together (reshape, "
            "squeeze or expand_dims one of them)"
        )
    return a, b


def _loss_samples(first: Callable[..., Any], second: Callable[..., Any]) -> Samples:
    """Return samples of the reductions, of shapes and of the mistakes that all losses share."""

    def draw() -> Iterable[Sample]:
        yield Sample((first(4, 3), second(4, 3)))
        yield Sample((first(4, 3), second(4, 3)), {"reduction": "sum"}, label="sum")
        yield Sample((first(4, 3), second(4, 3)), {"reduction": "none"}, label="none")
        yield Sample((first(), second()), label="0-d")
        yield Sample((first(6, 4)[::2].T, second(4, 3)), label="strided")
        yield Sample((first(0, 3), second(0, 3)), {"reduction": "sum"}, label="empty")
        yield bad(ShapeError, "batch is empty", first(0, 3), second(0, 3))
        yield bad(ShapeError, "same shape", first(4, 1), second(4))
        yield bad(ArgumentError, "reduction", first(4), second(4), reduction="average")

    return draw


def _predicted(*shape: int) -> Any:
    return np.asarray(distinct(*shape))


def _wanted(*shape: int) -> Any:
    # Half a step away from all predictions: no difference lies at 0, where |x| has its kink.
    return np.asarray(distinct(*shape, seed=1) + 0.05)


_SIGNED = _loss_samples(_predicted, _wanted)


@composite(samples=_SIGNED, peer="nn.functional.mse_loss", precision=Precision.FULL)
def mse_loss(x: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """Squared error: ``(x − target)²``, averaged over all elements.

    Args:
        x: predictions of any shape. 16-bit floats are computed in float32.
        target: the same shape.
        reduction: "mean", "sum", or "none" for the loss of each element.

    Raises:
        ShapeError: the shapes differ; the mean over no elements.
        ArgumentError: another ``reduction``.

    Example:
        >>> ndl.mse_loss(ndl.asarray([1.0, 2.0]), ndl.asarray([1.0, 4.0]))
        Tensor(2.)
    """
    a, b = _pair(x, target, "mse_loss")
    losses = square(widen(a) - widen(b))
    return reduced(losses, reduction, "mse_loss").astype(a.dtype, copy=False)


@composite(samples=_SIGNED, peer="nn.functional.l1_loss", precision=Precision.FULL)
def l1_loss(x: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """Absolute error: ``|x − target|``, averaged over all elements.

    Args:
        x: predictions of any shape. 16-bit floats are computed in float32.
        target: the same shape.
        reduction: "mean", "sum", or "none" for the loss of each element.

    Raises:
        ShapeError: the shapes differ; the mean over no elements.
        ArgumentError: another ``reduction``.

    Example:
        >>> ndl.l1_loss(ndl.asarray([1.0, 2.0]), ndl.asarray([1.0, 4.0]))
        Tensor(1.)
    """
    a, b = _pair(x, target, "l1_loss")
    losses = abs(widen(a) - widen(b))
    return reduced(losses, reduction, "l1_loss").astype(a.dtype, copy=False)


def _huber_samples(keyword: str) -> Samples:
    def draw() -> Iterable[Sample]:
        yield from _SIGNED()
        yield Sample((_predicted(3, 4), _wanted(3, 4)), {keyword: 0.3}, label=keyword)
        yield bad(ArgumentError, keyword, normal(3), normal(3), **{keyword: -1.0})

    return draw


@composite(
    samples=_huber_samples("delta"), peer="nn.functional.huber_loss", precision=Precision.FULL
)
def huber_loss(
    x: TensorLike, target: TensorLike, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """Squared error near the target, linear far from it: with ``d = |x − target|``,
    ``d²/2`` where ``d ≤ δ``, else ``δ·(d − δ/2)``.

    Source: P. J. Huber, "Robust Estimation of a Location Parameter", 1964.

    Args:
        x: predictions of any shape. 16-bit floats are computed in float32.
        target: the same shape.
        reduction: "mean", "sum", or "none" for the loss of each element.
        delta: where the one turns into the other; positive.

    Raises:
        ShapeError: the shapes differ; the mean over no elements.
        ArgumentError: another ``reduction``; ``delta`` is not positive.

    Example:
        >>> ndl.huber_loss(ndl.asarray([0.5, 3.0]), ndl.zeros(2), reduction="none")
        Tensor([0.125, 2.5  ])
    """
    if not delta > 0:
        raise ArgumentError(f"huber_loss: delta must be positive, got {delta}")
    a, b = _pair(x, target, "huber_loss")
    d = abs(widen(a) - widen(b))
    losses = where(d <= delta, square(d) * 0.5, (d - 0.5 * delta) * delta)
    return reduced(losses, reduction, "huber_loss").astype(a.dtype, copy=False)


@composite(
    samples=_huber_samples("beta"), peer="nn.functional.smooth_l1_loss", precision=Precision.FULL
)
def smooth_l1_loss(
    x: TensorLike, target: TensorLike, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """Absolute error with its corner rounded: with ``d = |x − target|``, ``d²/2β`` where
    ``d < β``, else ``d − β/2``. It is `huber_loss` over β.

    Source: R. Girshick, "Fast R-CNN", 2015.

    Args:
        x: predictions of any shape. 16-bit floats are computed in float32.
        target: the same shape.
        reduction: "mean", "sum", or "none" for the loss of each element.
        beta: where the corner begins; 0 gives `l1_loss`.

    Raises:
        ShapeError: the shapes differ; the mean over no elements.
        ArgumentError: another ``reduction``; ``beta`` is negative.

    Example:
        >>> ndl.smooth_l1_loss(ndl.asarray([0.5, 3.0]), ndl.zeros(2), reduction="none")
        Tensor([0.125, 2.5  ])
    """
    if not beta >= 0:
        raise ArgumentError(f"smooth_l1_loss: beta must not be negative, got {beta}")
    if beta == 0:
        return l1_loss(x, target, reduction)
    a, b = _pair(x, target, "smooth_l1_loss")
    d = abs(widen(a) - widen(b))
    losses = where(d < beta, square(d) * (0.5 / beta), d - 0.5 * beta)
    return reduced(losses, reduction, "smooth_l1_loss").astype(a.dtype, copy=False)


def _bce_samples() -> Iterable[Sample]:
    yield from _loss_samples(normal, lambda *shape: uniform(0, 1, *shape))()
    weights = {"weight": [0.5, 2.0, 1.25], "pos_weight": [3.0, 0.25, 1.0]}
    yield Sample((normal(4, 3), uniform(0, 1, 4, 3)), weights, label="weights")
    yield Sample((np.array([200.0, -200.0]), np.array([0.0, 1.0])), label="large")
    yield Sample((normal(4), bools(4)), label="bools", has_peer=False)
    yield bad(
        ShapeError, "pos_weight", normal(4, 3), uniform(0, 1, 4, 3), pos_weight=uniform(0, 1, 4)
    )


def torch_loss(name: str) -> Callable[..., Any]:
    """Spell a loss in PyTorch, whose weights are tensors that cannot require gradients.

    Samples give weights as lists, which no test differentiates by.
    """

    def peer(torch: Any, x: Any, target: Any, **settings: Any) -> Any:
        for key, value in settings.items():
            if isinstance(value, list):
                settings[key] = torch.tensor(value, dtype=x.dtype)
        return getattr(torch.nn.functional, name)(x, target, **settings)

    return peer


@composite(
    samples=_bce_samples,
    peer=torch_loss("binary_cross_entropy_with_logits"),
    precision=Precision.FULL,
)
def binary_cross_entropy_with_logits(
    x: TensorLike,
    target: TensorLike,
    weight: TensorLike | None = None,
    reduction: str = "mean",
    pos_weight: TensorLike | None = None,
) -> Tensor:
    """Cross-entropy of independent yes/no predictions, without overflow:
    ``−w·(p·t·ln σ(x) + (1 − t)·ln(1 − σ(x)))``, σ the logistic sigmoid.

    Args:
        x: logits of any shape. 16-bit floats are computed in float32.
        target: probabilities of "yes", from 0 to 1, or bools; the same shape.
        weight: w, broadcast to that shape: what each element counts. The mean is over the number of
            elements, not over the weights.
        reduction: "mean", "sum", or "none" for the loss of each element.
        pos_weight: p, broadcast to that shape: what "yes" counts, to make up for its being rare.

    Raises:
        ShapeError: the shapes differ or weights do not broadcast; the mean over no elements.
        ArgumentError: another ``reduction``.

    Example:
        >>> ndl.binary_cross_entropy_with_logits(ndl.zeros(2), ndl.asarray([1.0, 0.0]))
        Tensor(0.693147)
    """
    name = "binary_cross_entropy_with_logits"
    a, b = _pair(x, target, name)
    logits, t = widen(a), widen(b)
    softly = softplus(-logits)  # −ln σ(x)
    if pos_weight is not None:
        softly = softly * (t * (_weights(pos_weight, a.shape, name, "pos_weight") - 1) + 1)
    losses = (1 - t) * logits + softly
    if weight is not None:
        losses = losses * _weights(weight, a.shape, name, "weight")
    return reduced(losses, reduction, name).astype(a.dtype, copy=False)


def _weights(value: Any, shape: Shape, op: str, name: str) -> Tensor:
    t = widen(as_float_tensor(value))
    if broadcast_shapes(t.shape, shape, op=f"{op}: {name}") != shape:
        raise ShapeError(
            f"{op}: {name} of shape {list(t.shape)} is larger than the losses' {list(shape)}"
        )
    return t


def _kl_samples() -> Iterable[Sample]:
    def log_uniform(*shape: int) -> Any:
        return np.asarray(np.log(uniform(0.1, 1, *shape)))

    def probabilities(*shape: int) -> Any:
        return uniform(0.1, 1, *shape, seed=1)

    yield from _loss_samples(log_uniform, probabilities)()
    both = (log_uniform(4, 3), probabilities(4, 3))
    yield Sample(both, {"reduction": "batchmean"}, label="batchmean")
    yield Sample((both[0], np.log(both[1])), {"log_target": True}, label="log_target")
    yield Sample(
        (both[0][0], np.array([0.0, 1.0, 0.0])),
        label="zero probability",
        is_smooth=False,
        has_peer=False,
    )


def _torch_kl(torch: Any, x: Any, target: Any, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises against its own default reduction
        return torch.nn.functional.kl_div(x, target, **settings)


@composite(samples=_kl_samples, peer=_torch_kl, precision=Precision.FULL)
def kl_div(
    x: TensorLike, target: TensorLike, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """Terms of the Kullback–Leibler divergence of predictions from targets:
    ``target · (ln target − x)``, 0 where the target is 0.

    Source: S. Kullback, R. A. Leibler, "On Information and Sufficiency", 1951.

    Args:
        x: logarithms of the predicted probabilities, as `log_softmax` gives them. 16-bit floats are
            computed in float32.
        target: probabilities, of the same shape.
        reduction: "batchmean" (the divergence: the sum over the extent of axis 0), "mean" (over all
            elements, which is not the divergence), "sum" or "none".
        log_target: whether ``target`` holds logarithms of probabilities.

    Raises:
        ShapeError: the shapes differ; the mean over no elements.
        ArgumentError: another ``reduction``.

    Example:
        >>> p = ndl.asarray([[0.5, 0.5]])
        >>> ndl.kl_div(p.log(), p, reduction="batchmean")
        Tensor(0.)
    """
    a, b = _pair(x, target, "kl_div")
    predicted, t = widen(a), widen(b)
    # The inner where keeps ln 0 = −∞ out of the derivative as well as out of the value.
    p, log_p = (exp(t), t) if log_target else (t, log(where(t > 0, t, 1.0)))
    losses = p * (log_p - predicted)
    if reduction == "batchmean" and losses.ndim:
        check_reduction(losses.shape[:1], "mean", "kl_div")
        result = sum(losses) / losses.shape[0]
    else:
        result = reduced(losses, "mean" if reduction == "batchmean" else reduction, "kl_div")
    return result.astype(a.dtype, copy=False)


__all__ = [
    "binary_cross_entropy_with_logits",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "smooth_l1_loss",
]
