"""Layers that change each element by itself; Dropout, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from needle import ops
from needle.layerwise.blob import Blob
from needle.layerwise.layer import CATALOGUE, TEST, layer
from needle.layerwise.tensor_layer import TensorLayer
from needle.nn import functional as F
from needle.tensor import Tensor


class Elementwise(TensorLayer):
    """A function of each element."""

    def function(self, x: Tensor) -> Tensor:
        """Return the top."""
        raise NotImplementedError  # abstract

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        return [self.function(inputs[0])]


@layer("ReLU")
class ReLU(Elementwise):
    """``max(x, 0) + negative_slope · min(x, 0)``."""

    def function(self, x: Tensor) -> Tensor:
        slope = float(self.option("negative_slope", 0.0))
        return F.leaky_relu(x, slope) if slope else F.relu(x)


@layer("Power")
class Power(Elementwise):
    """``(shift + scale · x) ^ power``."""

    def function(self, x: Tensor) -> Tensor:
        y = x * float(self.option("scale", 1.0)) + float(self.option("shift", 0.0))
        power = float(self.option("power", 1.0))
        return y if power == 1 else y**power


@layer("ELU")
class ELU(Elementwise):
    """``x`` above 0, ``alpha · (eˣ − 1)`` below."""

    def function(self, x: Tensor) -> Tensor:
        below = ops.expm1(ops.minimum(x, 0.0)) * float(self.option("alpha", 1.0))
        return ops.where(x > 0, x, below)


@layer("Exp")
class Exp(Elementwise):
    """``base ^ (shift + scale · x)``; base −1 stands for e."""

    def function(self, x: Tensor) -> Tensor:
        y = x * float(self.option("scale", 1.0)) + float(self.option("shift", 0.0))
        base = float(self.option("base", -1.0))
        return ops.exp(y) if base == -1 else ops.pow(base, y)


@layer("PReLU")
class PReLU(TensorLayer):
    """``max(x, 0) + a · min(x, 0)`` with a learnt slope for each channel, or channel_shared."""

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        count = 1 if self.option("channel_shared") else bottom[0].shape[1]
        self.add_parameter((count,), self.option("filler", {"type": "constant", "value": 0.25}))

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        (x,), (slope,) = inputs, params
        along = ops.reshape(slope, (1, -1, *(1,) * (x.ndim - 2)))
        return [ops.maximum(x, 0.0) + along * ops.minimum(x, 0.0)]


@layer("Dropout")
class Dropout(TensorLayer):
    """Drops elements with probability ``dropout_ratio`` in training, and scales up the others."""

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        ratio = float(self.option("dropout_ratio", 0.5))
        return [F.dropout(inputs[0], ratio, training=self.phase != TEST)]


def _simple(name: str, function: Callable[[Tensor], Any], formula: str) -> None:
    """Register a layer without options."""

    def call(self: Elementwise, x: Tensor) -> Tensor:
        result: Tensor = function(x)
        return result

    members = {"function": call, "__doc__": f"``{formula}``", "__module__": __name__}
    CATALOGUE[name] = type(name, (Elementwise,), members)


_simple("Sigmoid", ops.sigmoid, "1 / (1 + e⁻ˣ)")
_simple("TanH", ops.tanh, "tanh x")
_simple("AbsVal", ops.abs, "|x|")
_simple("Log", ops.log, "ln x")
_simple("BNLL", F.softplus, "ln(1 + eˣ)")
