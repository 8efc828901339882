"""Layers with weights: InnerProduct, Convolution, Deconvolution, Bias and Scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from needle import ops
from needle.errors import ArgumentError, ShapeError
from needle.layerwise.blob import Blob
from needle.layerwise.layer import layer
from needle.layerwise.tensor_layer import TensorLayer
from needle.nn import functional as F
from needle.tensor import Tensor


@layer("InnerProduct")
class InnerProduct(TensorLayer):
    """``top = bottom · Wᵀ + b``, with all axes from ``axis`` on flattened.

    Options: num_output, bias_term, weight_filler, bias_filler, axis, transpose. The weight is
    [num_output, inputs].
    """

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        axis = int(self.option("axis", 1))
        inputs = math.prod(bottom[0].shape[axis:])
        outputs = _required(self, "num_output")
        # The product reads the weight as [inputs, outputs]; so it lies in memory like that.
        is_turned = not self.option("transpose")
        shape = (outputs, inputs) if is_turned else (inputs, outputs)
        self.add_parameter(shape, self.option("weight_filler"), is_turned=is_turned)
        if self.option("bias_term", True):
            self.add_parameter((outputs,), self.option("bias_filler"))

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        (x,), weight = inputs, params[0]
        axis = int(self.option("axis", 1))
        rows = math.prod(x.shape[:axis])
        weight = weight if self.option("transpose") else weight.mT
        y = ops.reshape(x, (rows, weight.shape[0])) @ weight
        if len(params) > 1:
            y = y + params[1]
        return [ops.reshape(y, (*x.shape[:axis], weight.shape[1]))]


def pair(layer: Any, name: str, default: int, *, plain: str = "") -> tuple[int, int]:
    """Return an option for height and width: ``name_h`` and ``name_w``, or ``name``."""
    high, wide = layer.option(f"{plain or name}_h"), layer.option(f"{plain or name}_w")
    if high is not None or wide is not None:
        return int(high or default), int(wide or default)
    value = layer.option(name, default)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        return default, default
    return (int(values[0]), int(values[-1]))


def _required(layer: Any, name: str) -> int:
    value = layer.option(name)
    if value is None:
        raise ArgumentError(f"layer {layer.spec.name!r} ({layer.type}) needs the option {name}")
    return int(value)


class _Convolving(TensorLayer):
    """What convolutions have in common."""

    def geometry(self) -> dict[str, Any]:
        """Return the arguments of the convolution."""
        kernel = pair(self, "kernel_size", 0, plain="kernel")
        if 0 in kernel:
            raise ArgumentError(f"layer {self.spec.name!r} ({self.type}) needs a kernel_size")
        self.kernel = kernel
        return {
            "stride": pair(self, "stride", 1),
            "padding": pair(self, "pad", 0),
            "dilation": pair(self, "dilation", 1),
            "groups": int(self.option("group", 1)),
        }

    def weight_shape(self, channels: int, outputs: int, groups: int) -> tuple[int, int]:
        """Return the first two extents of the weight."""
        raise NotImplementedError  # abstract

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        if len(bottom[0].shape) != 4:
            raise ShapeError(
                f"layer {self.spec.name!r} ({self.type}) takes [N, C, H, W], and its bottom is "
                f"{list(bottom[0].shape)}"
            )
        self.arguments = self.geometry()
        outputs = _required(self, "num_output")
        shape = self.weight_shape(bottom[0].shape[1], outputs, self.arguments["groups"])
        self.add_parameter((*shape, *self.kernel), self.option("weight_filler"))
        if self.option("bias_term", True):
            self.add_parameter((outputs,), self.option("bias_filler"))


@layer("Convolution")
class Convolution(_Convolving):
    """Convolution in two dimensions; the weight is [num_output, channels / group, height, width].

    Options: num_output, kernel_size (or kernel_h, kernel_w), stride, pad, dilation, group,
    bias_term, weight_filler, bias_filler.
    """

    def weight_shape(self, channels: int, outputs: int, groups: int) -> tuple[int, int]:
        return outputs, channels // groups

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        bias = params[1] if len(params) > 1 else None
        return [ops.conv2d(x, params[0], bias, **self.arguments) for x in inputs]


@layer("Deconvolution")
class Deconvolution(_Convolving):
    """Transposed convolution; options as `Convolution`'s, the weight is [channels, num_output /
    group, height, width]."""

    def weight_shape(self, channels: int, outputs: int, groups: int) -> tuple[int, int]:
        return channels, outputs // groups

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        bias = params[1] if len(params) > 1 else None
        return [ops.conv_transpose2d(x, params[0], bias, **self.arguments) for x in inputs]


@layer("Scale", "Bias")
class Scale(TensorLayer):
    """Multiplies axes by a parameter, or by a second bottom, and adds a bias.

    Options: axis, num_axes, filler, bias_term, bias_filler. `Bias` only adds.
    """

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        if len(bottom) > 1 and not self.option("bias_term"):
            return
        axis, count = int(self.option("axis", 1)), int(self.option("num_axes", 1))
        shape = bottom[0].shape
        end = len(shape) if count == -1 else axis + count
        extents = bottom[1].shape if len(bottom) > 1 else shape[axis:end]
        if len(bottom) == 1:
            default = {"type": "constant", "value": float(self.type == "Scale")}
            self.add_parameter(extents, self.option("filler", default))
        if self.type == "Scale" and self.option("bias_term"):
            self.add_parameter(extents, self.option("bias_filler"))

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x, *rest = [*inputs, *params]
        axis = int(self.option("axis", 1))

        def along(factor: Tensor) -> Tensor:
            behind = x.ndim - axis - factor.ndim
            return ops.reshape(factor, (*(1,) * axis, *factor.shape, *(1,) * behind))

        y = x * along(rest[0]) if self.type == "Scale" else x + along(rest[0])
        return [y + along(rest[1]) if len(rest) > 1 else y]


@layer("Embed")
class Embed(TensorLayer):
    """Rows of a table [input_dim, num_output], by the numbers in the bottom.

    Options: num_output, input_dim, bias_term, weight_filler, bias_filler.
    """

    fixed_bottoms = (0,)

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        outputs = _required(self, "num_output")
        self.add_parameter((_required(self, "input_dim"), outputs), self.option("weight_filler"))
        if self.option("bias_term", True):
            self.add_parameter((outputs,), self.option("bias_filler"))

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        y = F.embedding(inputs[0].astype("int64"), params[0])
        return [y + params[1] if len(params) > 1 else y]
