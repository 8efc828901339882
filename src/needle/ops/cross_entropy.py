"""Losses of classification: negative log-likelihood and cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import int64, is_float
from needle.errors import ArgumentError, DTypeError, OutOfRangeError, ShapeError
from needle.ops.comparison import where
from needle.ops.elementwise import TensorLike
from needle.ops.engine import as_float_tensor, as_tensor, widen
from needle.ops.label_cross_entropy import label_cross_entropy
from needle.ops.labels import class_axis, select_labels
from needle.ops.loss import check_reduction, reduced, torch_loss
from needle.ops.movement import broadcast_to, reshape
from needle.ops.precision import Precision
from needle.ops.record import composite
from needle.ops.reduce import sum
from needle.ops.samples import Sample, bad, integers, normal, uniform
from needle.ops.softmax import log_softmax

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor

_IGNORED = np.array([0, -100, 3, 2, -100])


def _label_samples() -> Iterable[Sample]:
    yield Sample((normal(5, 4), integers(0, 4, 5)))
    yield Sample((normal(5, 4), integers(0, 4, 5)), {"reduction": "sum"}, label="sum")
    yield Sample((normal(5, 4), integers(0, 4, 5)), {"reduction": "none"}, label="none")
    yield Sample((normal(2, 3, 4, 5), integers(0, 3, 2, 4, 5)), label="places")
    yield Sample((normal(4), np.array(2)), label="one example")
    yield Sample((normal(5, 4), _IGNORED), label="ignored")
    for reduction in ("mean", "sum", "none"):
        weighted = {"weight": [0.5, 2.0, 1.25, 1.0], "reduction": reduction}
        yield Sample((normal(5, 4), _IGNORED), weighted, label=f"weight, {reduction}")
    yield Sample(
        (normal(2, 3, 4), integers(0, 3, 2, 4)),
        {"weight": [0.5, 2.0, 1.25], "ignore_index": 1},
        label="ignored class",
    )
    yield Sample((normal(0, 4), integers(0, 4, 0)), {"reduction": "sum"}, label="empty")
    yield bad(ShapeError, "batch is empty", normal(0, 4), integers(0, 4, 0))
    yield bad(OutOfRangeError, r"label 4 at position \[1\]", normal(2, 4), np.array([0, 4]))
    yield bad(OutOfRangeError, "label -1 at position", normal(2, 4), np.array([0, -1]))
    yield bad(DTypeError, "must be integers", normal(2, 4), np.array([0.0, np.nan]))
    yield bad(ShapeError, "need labels of shape", normal(2, 4), integers(0, 4, 4))
    yield bad(ShapeError, "0-d", normal(), np.array(0))
    yield bad(ArgumentError, "reduction", normal(2, 4), integers(0, 4, 2), reduction="average")
    yield bad(ShapeError, "one weight for each", normal(2, 4), integers(0, 4, 2), weight=normal(3))


def _class_weights(weight: Any, x: Tensor, axis: int, name: str) -> Tensor:
    """Return ``weight`` [C] shaped to broadcast along the classes of ``x``."""
    w = as_float_tensor(weight).astype(x.dtype, copy=False)
    classes = x.shape[axis]
    if w.shape != (classes,):
        raise ShapeError(
            f"{name}: needs one weight for each of the {classes} classes, [{classes}]; got "
            f"{list(w.shape)}"
        )
    return reshape(w, tuple(classes if i == axis else 1 for i in range(x.ndim)))


def _counts(labels: Tensor, ignore_index: int) -> Tensor:
    # Labels may be of a dtype that does not hold `ignore_index`, such as uint8.
    kept: Tensor = labels.astype(int64, copy=False) != ignore_index
    return kept


def _weights_of_labels(
    weight: Tensor | None, scores: Tensor, target: Tensor, ignore_index: int
) -> Tensor:
    """Return the weight of each label's class, 0 where it is ignored."""
    if weight is None:
        return _counts(target, ignore_index).astype(scores.dtype)
    return select_labels(broadcast_to(weight, scores.shape), target, ignore_index)


@composite(samples=_label_samples, peer=torch_loss("nll_loss"), precision=Precision.FULL)
def nll_loss(
    x: TensorLike,
    target: TensorLike,
    weight: TensorLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of class labels: ``−w[target] · x[target]``.

    Args:
        x: log-probabilities [N, C, …], or [C] for one example, as `log_softmax` gives them. 16-bit
            floats are computed in float32.
        target: class labels [N, …], or 0-d: integers from 0 to C − 1.
        weight: [C]: what each class counts; 1 if not given.
        ignore_index: label of the places that do not count.
        reduction: "mean" (weighted, so over ``Σ w[target]``; NaN where nothing counts), "sum", or
            "none" for the loss of each label.

    Returns:
        0-d, or the shape of ``target`` for "none".

    Raises:
        OutOfRangeError: a label that is no class, and where it is.
        DTypeError: labels that are not integers.
        ShapeError: shapes that do not fit; the mean over an empty batch.
        ArgumentError: another ``reduction``.

    Example:
        >>> ndl.nll_loss(ndl.asarray([[-0.5, -1.0]]), ndl.asarray([1]))
        Tensor(1.)
    """
    t, labels = as_float_tensor(x), as_tensor(target)
    scores = widen(t)
    axis = class_axis(t.shape, "nll_loss")
    check_reduction(labels.shape, reduction, "nll_loss")
    losses = -select_labels(scores, labels, ignore_index)
    if weight is None and reduction != "mean":
        return reduced(losses, reduction, "nll_loss").astype(t.dtype, copy=False)
    w = None if weight is None else _class_weights(weight, scores, axis, "nll_loss")
    counts = _weights_of_labels(w, scores, labels, ignore_index)
    if weight is not None:
        losses = losses * counts
    result = sum(losses) / sum(counts) if reduction == "mean" else losses
    if reduction == "sum":
        result = sum(losses)
    return result.astype(t.dtype, copy=False)


def _cross_entropy_samples() -> Iterable[Sample]:
    yield from _label_samples()
    for reduction in ("mean", "sum", "none"):
        settings: dict[str, Any] = {"label_smoothing": 0.1, "reduction": reduction}
        yield Sample((normal(5, 4), _IGNORED), settings, label=f"smoothing, {reduction}")
        both = settings | {"weight": [0.5, 2.0, 1.25, 1.0]}
        yield Sample((normal(5, 4), _IGNORED), both, label=f"smoothing and weight, {reduction}")
        probabilities = uniform(0, 1, 2, 3, 4)
        both = settings | {"weight": [0.5, 2.0, 1.25]}
        yield Sample((normal(2, 3, 4), probabilities), both, label=f"probabilities, {reduction}")
    yield Sample((normal(5, 4), uniform(0, 1, 5, 4)), label="probabilities")
    yield Sample((normal(4), uniform(0, 1, 4)), label="probabilities of one example")
    yield Sample(
        (np.array([[1024.0, -1024.0], [0.0, 1024.0]]), np.array([1, 1])),
        label="large",
        is_smooth=False,
    )
    yield Sample(
        (np.array([[0.5, -np.inf, 1.0]]), np.array([0])), label="minus infinity", is_smooth=False
    )
    labels = integers(0, 4, 2)
    yield bad(ArgumentError, "label_smoothing", normal(2, 4), labels, label_smoothing=1.5)


@composite(
    samples=_cross_entropy_samples, peer=torch_loss("cross_entropy"), precision=Precision.FULL
)
def cross_entropy(
    x: TensorLike,
    target: TensorLike,
    weight: TensorLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of class predictions: ``−w[target] · ln softmax(x)[target]``, or
    ``−Σ_c w[c] · target[c] · ln softmax(x)[c]`` for probabilities.

    Label smoothing (C. Szegedy et al., "Rethinking the Inception Architecture", 2016) moves the
    share ε of the target's probability to all C classes alike.

    Args:
        x: logits [N, C, …], or [C] for one example. 16-bit floats are computed in float32.
        target: class labels [N, …], or 0-d: integers from 0 to C − 1; or class probabilities:
            floats of the shape of ``x``.
        weight: [C]: what each class counts; 1 if not given.
        ignore_index: label of the places that do not count.
        reduction: "mean" (over the labels that count, by weight; over the examples for
            probabilities; NaN where nothing counts), "sum", or "none" for each label's loss.
        label_smoothing: ε, from 0 to 1.

    Returns:
        0-d, or the shape of ``x`` without its classes for "none".

    Raises:
        OutOfRangeError: a label that is no class, and where it is.
        DTypeError: labels that are not integers.
        ShapeError: shapes that do not fit; the mean over an empty batch.
        ArgumentError: another ``reduction``; ``label_smoothing`` outside of [0, 1].

    Example:
        >>> logits = ndl.asarray([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
        >>> ndl.cross_entropy(logits, ndl.asarray([0, 1]))
        Tensor(1.667234)
    """
    t, labels = as_float_tensor(x), as_tensor(target)
    if not 0 <= label_smoothing <= 1:
        raise ArgumentError(
            f"cross_entropy: label_smoothing must be from 0 to 1, got {label_smoothing}"
        )
    has_probabilities = is_float(labels.dtype) and labels.shape == t.shape
    if weight is None and not label_smoothing and not has_probabilities:
        return label_cross_entropy(t, labels, reduction, ignore_index)

    axis = class_axis(t.shape, "cross_entropy")
    classes = t.shape[axis]
    scores = log_softmax(widen(t), axis)
    w = None if weight is None else _class_weights(weight, scores, axis, "cross_entropy")
    weighted = scores if w is None else scores * w
    if has_probabilities:
        p = labels.astype(scores.dtype, copy=False)
        if label_smoothing:
            p = p * (1 - label_smoothing) + label_smoothing / classes
        losses = -sum(p * weighted, axis)
        return reduced(losses, reduction, "cross_entropy").astype(t.dtype, copy=False)

    check_reduction(labels.shape, reduction, "cross_entropy")
    losses = -select_labels(weighted, labels, ignore_index)
    if label_smoothing:
        spread = where(_counts(labels, ignore_index), -sum(weighted, axis), 0.0)
        losses = losses * (1 - label_smoothing) + spread * (label_smoothing / classes)
    if reduction == "none":
        return losses.astype(t.dtype, copy=False)
    total = sum(losses)
    if reduction == "mean":
        total = total / sum(_weights_of_labels(w, scores, labels, ignore_index))
    return total.astype(t.dtype, copy=False)


__all__ = ["cross_entropy", "nll_loss"]
