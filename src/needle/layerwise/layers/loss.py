"""Losses, and Accuracy. Their labels are no part of what is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from needle import ops
from needle.creation import ones_like
from needle.errors import ArgumentError
from needle.layerwise.blob import Blob
from needle.layerwise.layer import layer
from needle.layerwise.tensor_layer import TensorLayer
from needle.nn import functional as F
from needle.tensor import Tensor


class Loss(TensorLayer):
    """A loss of predictions and labels: one number."""

    is_loss = True
    fixed_bottoms: ClassVar[tuple[int, ...]] = (1,)

    def normalizer(self, total: Tensor, kept: Any, batch: int, count: int, default: str) -> Tensor:
        """Return the sum of losses divided as the option ``normalization`` says."""
        kind = self.option("normalization")
        if kind is None:
            given = self.option("normalize")
            kind = default if given is None else "VALID" if given else "BATCH_SIZE"
        if kind == "NONE":
            return total
        if kind == "VALID" and kept is not None:
            return total / ops.maximum(kept, 1.0)
        divisors = {"VALID": count, "FULL": count, "BATCH_SIZE": batch}
        if kind not in divisors:
            raise ArgumentError(f"layer {self.spec.name!r}: there is no normalization {kind!r}")
        return total / float(max(divisors[kind], 1))


@layer("SoftmaxWithLoss", "SoftmaxLoss")
class SoftmaxWithLoss(Loss):
    """Cross-entropy of a softmax along ``axis``, with labels that are class numbers.

    Options: axis, ignore_label, normalization (VALID, FULL, BATCH_SIZE, NONE).
    """

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x, labels = inputs[0], inputs[1].astype("int64")
        axis = int(self.option("axis", 1)) % x.ndim
        order = (*(a for a in range(x.ndim) if a != axis), axis)
        rows = ops.reshape(ops.permute_dims(x, order), (-1, x.shape[axis]))
        target = ops.reshape(labels, (-1,))
        ignored = self.option("ignore_label")
        kept = None
        if ignored is None:
            total = F.cross_entropy(rows, target, reduction="sum")
        else:
            total = F.cross_entropy(rows, target, reduction="sum", ignore_index=int(ignored))
            kept = (target != int(ignored)).astype(x.dtype).sum()
        loss = self.normalizer(total, kept, x.shape[0], rows.shape[0], "VALID")
        return [loss, F.softmax(x, axis=axis)] if len(self.spec.top) > 1 else [loss]


@layer("EuclideanLoss")
class EuclideanLoss(Loss):
    """``Σ (x − y)² / 2N``; both bottoms have gradients."""

    fixed_bottoms = ()

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        difference = inputs[0] - inputs[1]
        return [(difference * difference).sum() / (2.0 * max(inputs[0].shape[0], 1))]


@layer("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(Loss):
    """Cross-entropy of ``1 / (1 + e⁻ˣ)`` with labels between 0 and 1, divided by the batch."""

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x, labels = inputs
        losses = F.binary_cross_entropy_with_logits(x, labels, reduction="none")
        ignored = self.option("ignore_label")
        kept = None
        if ignored is not None:
            valid = (labels != float(ignored)).astype(x.dtype)
            losses, kept = losses * valid, valid.sum()
        return [self.normalizer(losses.sum(), kept, x.shape[0], x.size, "BATCH_SIZE")]


@layer("HingeLoss")
class HingeLoss(Loss):
    """``Σ max(0, 1 − t·x)^p / N`` with t = 1 for the label and −1 else; norm L1 or L2."""

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x, labels = inputs[0], inputs[1].astype("int64")
        sign = 1 - 2 * F.one_hot(ops.reshape(labels, (-1,)), x.shape[1]).astype(x.dtype)
        margin = ops.maximum(ops.reshape(x, sign.shape) * sign + 1, 0.0)
        loss = margin * margin if self.option("norm", "L1") == "L2" else margin
        return [loss.sum() / float(max(x.shape[0], 1))]


@layer("Accuracy")
class Accuracy(TensorLayer):
    """How often the label is among the ``top_k`` highest scores; it has no gradient.

    Options: top_k, axis, ignore_label.
    """

    fixed_bottoms = (0, 1)

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x, labels = inputs[0], inputs[1].astype("int64")
        axis = int(self.option("axis", 1)) % x.ndim
        order = (*(a for a in range(x.ndim) if a != axis), axis)
        rows = ops.reshape(ops.permute_dims(x, order), (-1, x.shape[axis]))
        target = ops.reshape(labels, (-1, 1))
        ignored = self.option("ignore_label")
        valid = ones_like(target) if ignored is None else target != int(ignored)
        safe = ops.where(valid, target, 0) if ignored is not None else target
        # A label is among the first k if fewer than k scores are at least as high.
        own = ops.take_along_axis(rows, safe, axis=1)
        above = (rows > own).astype("int64").sum(axis=1, keepdims=True)
        right = (above < int(self.option("top_k", 1))).astype(x.dtype)
        weight = valid.astype(x.dtype)
        return [(right * weight).sum() / ops.maximum(weight.sum(), 1.0)]

    def backward(
        self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]
    ) -> None:
        for blob, down in zip(bottom, propagate_down, strict=True):
            if down:
                blob.diff[...] = 0
