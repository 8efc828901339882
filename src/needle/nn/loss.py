"""Losses as modules: tensors in, a scalar out, so that several objectives add up with ``+``."""

from __future__ import annotations

from typing import Any

from needle.errors import ArgumentError
from needle.nn.arguments import as_probability
from needle.nn.module import Module
from needle.nn.parameter import Buffer
from needle.ops import loss
from needle.ops.cross_entropy import cross_entropy, nll_loss
from needle.tensor import Tensor


class _Loss(Module):
    """What all losses share: how the losses of the elements become one number."""

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in ("mean", "sum", "none"):
            raise ArgumentError(
                f"{type(self).__name__}: reduction must be 'mean', 'sum' or 'none', "
                f"got {reduction!r}"
            )
        self.reduction = reduction

    def extra_repr(self) -> str:
        """Return the reduction, if it is not the mean."""
        return "" if self.reduction == "mean" else f"reduction={self.reduction!r}"


def _buffer(weight: Any) -> Buffer | None:
    return None if weight is None else Buffer(weight, persistent=False)


class MSELoss(_Loss):
    """Mean squared error: mean of ``(x − target)²``; see `needle.mse_loss`.

    Args:
        reduction: "mean", "sum", or "none" for the loss of each element.

    Raises:
        ArgumentError: another ``reduction``.

    Example:
        >>> ndl.nn.MSELoss()(ndl.asarray([1.0, 2.0]), ndl.asarray([1.0, 4.0]))
        Tensor(2.)
    """

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            x: predictions of any shape.
            target: the same shape.

        Raises:
            ShapeError: the shapes differ.
        """
        return loss.mse_loss(x, target, self.reduction)


class L1Loss(_Loss):
    """Mean absolute error: mean of ``|x − target|``; see `needle.l1_loss`.

    Args:
        reduction: "mean", "sum", or "none" for the loss of each element.

    Raises:
        ArgumentError: another ``reduction``.

    Example:
        >>> ndl.nn.L1Loss()(ndl.asarray([1.0, 2.0]), ndl.asarray([1.0, 4.0]))
        Tensor(1.)
    """

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            x: predictions of any shape.
            target: the same shape.

        Raises:
            ShapeError: the shapes differ.
        """
        return loss.l1_loss(x, target, self.reduction)


class HuberLoss(_Loss):
    """Squared error near 0, absolute error far from it; see `needle.huber_loss`.

    Args:
        reduction: "mean", "sum", or "none" for the loss of each element.
        delta: where the one turns into the other; positive.

    Raises:
        ArgumentError: another ``reduction``; ``delta`` is not positive.

    Example:
        >>> ndl.nn.HuberLoss()(ndl.asarray([0.0]), ndl.asarray([3.0]))
        Tensor(2.5)
    """

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if not delta > 0:
            raise ArgumentError(f"HuberLoss: delta must be positive, got {delta}")
        self.delta = delta

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            x: predictions of any shape.
            target: the same shape.

        Raises:
            ShapeError: the shapes differ.
        """
        return loss.huber_loss(x, target, self.reduction, self.delta)


class BCEWithLogitsLoss(_Loss):
    """Binary cross-entropy of logits; see `needle.binary_cross_entropy_with_logits`.

    Args:
        weight: factor for the loss of each element; broadcasts.
        reduction: "mean", "sum", or "none" for the loss of each element.
        pos_weight: factor for positive targets; broadcasts.

    Raises:
        ArgumentError: another ``reduction``.

    Example:
        >>> round(ndl.nn.BCEWithLogitsLoss()(ndl.zeros(3), ndl.ones(3)).item(), 4)
        0.6931
    """

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction)
        self.weight = _buffer(weight)
        self.pos_weight = _buffer(pos_weight)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            x: logits of any shape.
            target: probabilities of the same shape.

        Raises:
            ShapeError: the shapes differ.
        """
        return loss.binary_cross_entropy_with_logits(
            x, target, self.weight, self.reduction, self.pos_weight
        )


class NLLLoss(_Loss):
    """Negative log-likelihood of log-probabilities; see `needle.nll_loss`.

    Args:
        weight: a factor for each class, [classes].
        ignore_index: label of examples that do not count.
        reduction: "mean", "sum", or "none" for the loss of each example.

    Raises:
        ArgumentError: another ``reduction``.

    Example:
        >>> scores = ndl.nn.LogSoftmax()(ndl.zeros((3, 4)))
        >>> round(ndl.nn.NLLLoss()(scores, ndl.asarray([0, 1, 3])).item(), 4)
        1.3863
    """

    def __init__(
        self, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.weight = _buffer(weight)
        self.ignore_index = ignore_index

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            x: log-probabilities, [batch, classes, ...].
            target: integer labels, [batch, ...].

        Raises:
            ShapeError: the shapes do not fit.
            OutOfRangeError: a label is no class.
        """
        return nll_loss(x, target, self.weight, self.ignore_index, self.reduction)


class CrossEntropyLoss(_Loss):
    """Cross-entropy of logits with labels or probabilities; see `needle.cross_entropy`.

    `SoftmaxLoss` is another name for it.

    Args:
        weight: a factor for each class, [classes].
        ignore_index: label of examples that do not count.
        reduction: "mean", "sum", or "none" for the loss of each example.
        label_smoothing: share of each label that is spread over all classes, 0 to 1.

    Raises:
        ArgumentError: another ``reduction``; ``label_smoothing`` outside of 0 … 1.

    Example:
        >>> loss = ndl.nn.CrossEntropyLoss()
        >>> round(loss(ndl.zeros((3, 4)), ndl.asarray([0, 1, 3])).item(), 4)
        1.3863
    """

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction)
        self.weight = _buffer(weight)
        self.ignore_index = ignore_index
        self.label_smoothing = as_probability(
            label_smoothing, f"{type(self).__name__}: label_smoothing"
        )

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            x: logits, [batch, classes, ...].
            target: integer labels, [batch, ...], or probabilities, of the shape of ``x``.

        Raises:
            ShapeError: the shapes do not fit.
            OutOfRangeError: a label is no class.
        """
        return cross_entropy(
            x, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing
        )


SoftmaxLoss = CrossEntropyLoss
