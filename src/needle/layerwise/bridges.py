"""Bridges: layers as differentiable functions of tensors, modules and functions as layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from needle.creation import asarray
from needle.errors import ArgumentTypeError
from needle.function import Function
from needle.layerwise.blob import Blob, Blobs
from needle.layerwise.layer import Layer
from needle.layerwise.tensor_layer import TensorLayer
from needle.nn import Module, Parameter
from needle.tensor import Tensor


class _LayerModule(Module):
    """A layer as a module: its parameters are the layer's blobs."""

    def __init__(self, layer: Layer, tops: int) -> None:
        super().__init__()
        self._layer, self._tops = layer, tops
        self._is_ready = False
        self.weights: list[Parameter] = []

    def forward(self, *inputs: Tensor) -> Any:
        bottom = [Blob.of(np.array(t.detach().numpy(), order="C")) for t in inputs]
        if not self._is_ready:
            self._layer.setup(bottom, [Blob() for _ in range(self._tops)])
            self._is_ready = True
            self.weights = [_parameter(blob) for blob in self._layer.blobs]
        return _Call.apply(self._layer, self._tops, len(inputs), *inputs, *self.weights)


def _parameter(blob: Blob) -> Parameter:
    parameter = Parameter(np.array(blob.data, order="C"))
    blob.share(Blob.of(parameter.detach().numpy()))
    return parameter


class _Call(Function):
    """Runs a layer's forward, and its backward when gradients are asked for."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, tops: int, count: int, *tensors: Tensor) -> Any:
        bottom = [Blob.of(np.array(t.detach().numpy(), order="C")) for t in tensors[:count]]
        top = [Blob() for _ in range(tops)]
        layer.reshape(bottom, top)
        layer.forward(bottom, top)
        ctx.layer, ctx.bottom, ctx.top = layer, bottom, top
        results = tuple(asarray(blob.data.copy()) for blob in top)
        return results if tops > 1 else results[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        layer, bottom, top = ctx.layer, ctx.bottom, ctx.top
        for blob, gradient in zip(top, gradients, strict=True):
            blob.diff[...] = gradient.detach().numpy()
        before = [blob.diff.copy() for blob in layer.blobs]
        for blob in (*bottom, *layer.blobs):
            blob.diff[...] = 0
        down = [i not in layer.fixed_bottoms for i in range(len(bottom))]
        layer.backward(top, down, bottom)
        found = [asarray(blob.diff.copy()) for blob in (*bottom, *layer.blobs)]
        for blob, diff in zip(layer.blobs, before, strict=True):
            blob.diff[...] = diff
        return (None, None, None, *found)


def as_function(layer: Layer, tops: int = 1) -> Module:
    """Return a layer as a module over tensors, differentiable by the layer's own backward.

    Its parameters share their memory with the layer's blobs.

    Args:
        layer: what runs; set up by the first call.
        tops: how many tops it has.

    Example:
        >>> from needle.layerwise import Layer, as_function
        >>> class Square(Layer):
        ...     def reshape(self, bottom, top):
        ...         top[0].reshape(*bottom[0].shape)
        ...     def forward(self, bottom, top):
        ...         top[0].data[...] = bottom[0].data ** 2
        ...     def backward(self, top, propagate_down, bottom):
        ...         bottom[0].diff[...] = 2 * bottom[0].data * top[0].diff
        >>> x = ndl.Tensor([1.0, 2.0])
        >>> as_function(Square())(x).sum().backward()
        >>> x.grad
        Tensor([2., 4.])
    """
    return _LayerModule(layer, tops)


class _FunctionLayer(TensorLayer):
    """A function over tensors, or a module, as a layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.own: list[Tensor] = []
        if isinstance(function, Module):
            self.own = list(function.parameters())
        self.blobs = Blobs(Blob.of(p.detach().numpy()) for p in self.own)

    def stored(self) -> list[Tensor]:
        return self.own

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        value = self.function(*inputs)
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def as_layer(function: Callable[..., Any]) -> Layer:
    """Return a module, or any function over tensors, as a layer for a `Net`.

    A module's parameters are the layer's blobs: they share their memory.

    Args:
        function: from the bottoms to a top, or a tuple of tops.

    Raises:
        ArgumentTypeError: it cannot be called.

    Example:
        >>> from needle.layerwise import LayerSpec, Net, as_layer
        >>> linear = ndl.nn.Linear(3, 2)
        >>> net = Net([
        ...     LayerSpec("in", "Input", top=["x"], options={"shape": [4, 3]}),
        ...     LayerSpec("fc", bottom=["x"], top=["y"], make=lambda: as_layer(linear)),
        ... ])
        >>> net.forward()["y"].shape, [b.shape for b in net.params["fc"]]
        ((4, 2), [(3, 2), (2,)])
    """
    if not callable(function):
        raise ArgumentTypeError(f"as_layer: needs a module or a function, got {function!r}")
    return _FunctionLayer(function)
