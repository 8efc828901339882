"""BatchNorm and MVN."""

from __future__ import annotations

from collections.abc import Sequence

from needle import ops
from needle.layerwise.blob import Blob
from needle.layerwise.layer import TEST, layer
from needle.layerwise.tensor_layer import TensorLayer
from needle.tensor import Tensor


@layer("BatchNorm")
class BatchNorm(TensorLayer):
    """``(x − mean) / √(variance + eps)`` for each channel; a `Scale` layer usually follows.

    Options: use_global_stats (by default in the phase TEST), moving_average_fraction, eps. The
    blobs are sums of means and variances and the number that they are to be divided by.
    """

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        channels = bottom[0].shape[1] if len(bottom[0].shape) > 1 else 1
        for shape in ((channels,), (channels,), (1,)):
            blob = self.add_parameter(shape, None)
            blob.lr_mult = blob.decay_mult = 0.0

    @property
    def is_fixed(self) -> bool:
        """Whether the statistics are those of the blobs."""
        return bool(self.option("use_global_stats", self.phase == TEST))

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        eps = float(self.option("eps", 1e-5))
        if not self.is_fixed:
            return [ops.batch_norm(inputs[0], None, None, training=True, eps=eps)]
        factor = ops.where(params[2] == 0, 0.0, 1 / params[2])
        mean, variance = ((p * factor).detach() for p in params[:2])
        return [ops.batch_norm(inputs[0], mean, variance, eps=eps)]

    def state(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.is_fixed:
            return ()
        x = inputs[0]
        axes = tuple(a for a in range(x.ndim) if a != 1)
        count = x.size // max(x.shape[1], 1)
        fraction = float(self.option("moving_average_fraction", 0.999))
        correction = 1 if count > 1 else 0
        new = ops.mean(x, axis=axes), ops.var(x, axis=axes, correction=correction)
        sums = [p * fraction + value for p, value in zip(params, new, strict=False)]
        return [*sums, params[2] * fraction + 1.0]


@layer("MVN")
class MVN(TensorLayer):
    """Mean 0 and variance 1 for each channel of each example.

    Options: normalize_variance, across_channels, eps.
    """

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x = inputs[0]
        axes = tuple(range(1 if self.option("across_channels") else 2, x.ndim))
        y = x - ops.mean(x, axis=axes, keepdims=True)
        if not self.option("normalize_variance", True):
            return [y]
        deviation = ops.sqrt(ops.mean(y * y, axis=axes, keepdims=True))
        return [y / (deviation + float(self.option("eps", 1e-9)))]
