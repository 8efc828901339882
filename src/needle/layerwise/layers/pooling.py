"""Pooling, and LRN."""

from __future__ import annotations

from collections.abc import Sequence

from needle import ops
from needle.errors import ArgumentError
from needle.layerwise.layer import layer
from needle.layerwise.layers.linear import pair
from needle.layerwise.tensor_layer import TensorLayer
from needle.tensor import Tensor


@layer("Pooling")
class Pooling(TensorLayer):
    """Maximum or mean over windows. The last window may reach beyond the image, as Caffe has it.

    Options: pool (MAX or AVE), kernel_size, stride, pad, global_pooling.
    """

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x = inputs[0]
        kind = self.option("pool", "MAX")
        if kind not in ("MAX", "AVE"):
            raise ArgumentError(f"layer {self.spec.name!r}: pool must be MAX or AVE, got {kind}")
        if self.option("global_pooling"):
            reduce = ops.max if kind == "MAX" else ops.mean
            return [reduce(x, axis=(2, 3), keepdims=True)]
        kernel = pair(self, "kernel_size", 0, plain="kernel")
        if 0 in kernel:
            raise ArgumentError(f"layer {self.spec.name!r} (Pooling) needs a kernel_size")
        pool = ops.max_pool2d if kind == "MAX" else ops.avg_pool2d
        stride, pad = pair(self, "stride", 1), pair(self, "pad", 0)
        return [pool(x, kernel, stride, pad, ceil_mode=True)]


@layer("LRN")
class LRN(TensorLayer):
    """``x / (k + alpha / n · Σ x²)^beta`` over n neighbouring channels, or over n × n neighbours.

    Options: local_size, alpha, beta, k, norm_region (ACROSS_CHANNELS or WITHIN_CHANNEL).

    Source: A. Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks",
    2012, section 3.3.
    """

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x = inputs[0]
        size = int(self.option("local_size", 5))
        alpha, beta = float(self.option("alpha", 1.0)), float(self.option("beta", 0.75))
        if size % 2 == 0:
            raise ArgumentError(f"layer {self.spec.name!r}: local_size must be odd, got {size}")
        square, reach = x * x, size // 2
        if self.option("norm_region", "ACROSS_CHANNELS") == "WITHIN_CHANNEL":
            mean = ops.avg_pool2d(square, size, 1, reach)
            return [x * (mean * alpha + 1.0) ** -beta]
        padded = ops.pad(square, ((0, 0), (reach, reach), (0, 0), (0, 0)))
        total = padded[:, : x.shape[1]]
        for i in range(1, size):
            total = total + padded[:, i : i + x.shape[1]]
        k = float(self.option("k", 1.0))
        return [x * (total * (alpha / size) + k) ** -beta]
