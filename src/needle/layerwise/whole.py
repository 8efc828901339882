"""A whole net as one function over tensors, for the compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from needle import autograd
from needle.compiled import compile as compile_function
from needle.config import enable_grad
from needle.creation import asarray
from needle.dtypes import is_float
from needle.errors import CompileError
from needle.layerwise.layers.data import Source
from needle.layerwise.layers.structure import Silence, Split
from needle.layerwise.tensor_layer import TensorLayer
from needle.tensor import Tensor

if TYPE_CHECKING:
    from needle.layerwise.net import Net


class Whole:
    """Runs a net as one compiled function, and backward through it.

    Layers that bring data in run by themselves, before. Of the blobs, those that are outputs or
    part of the loss get values.

    Args:
        net: whose layers are functions over tensors.

    Raises:
        CompileError: a layer is not.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self.sources = [s for s in net.steps if isinstance(s.layer, Source)]
        self.steps = [s for s in net.steps if not isinstance(s.layer, Source)]
        for step in self.steps:
            if not isinstance(step.layer, (TensorLayer, Split, Silence)):
                raise CompileError(
                    f"layer {step.name!r} ({step.layer.type}) computes in NumPy, which cannot be "
                    "compiled: write it as a function over tensors (as_layer), or run the net "
                    "layer by layer"
                )
        self.inputs = [b for s in self.sources for b in s.top]
        lossy = [b for s in net.steps for b, w in zip(s.top, s.loss_weight, strict=True) if w]
        outputs = [net.blobs[name] for name in net.outputs]
        self.outputs = list({id(b): b for b in (*outputs, *lossy)}.values())
        self._run = compile_function(self._compute, budget=16)
        self._given: list[Tensor] = []
        self._results: Sequence[Tensor] = ()

    def _params(self) -> list[list[Tensor]]:
        """Return the parameters of each layer."""
        layers = [s.layer for s in self.steps]
        return [x.parameters() if isinstance(x, TensorLayer) else [] for x in layers]

    def _compute(
        self, inputs: list[Tensor], params: list[list[Tensor]]
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return the outputs, and what layers make of parameters that they change themselves."""
        known = {id(b): t for b, t in zip(self.inputs, inputs, strict=True)}
        changed = []
        for step, own in zip(self.steps, params, strict=True):
            layer, bottoms = step.layer, [known[id(b)] for b in step.bottom]
            tops: Sequence[Tensor]
            if isinstance(layer, TensorLayer):
                new = [t.detach() for t in layer.state([b.detach() for b in bottoms], own)]
                changed.append(new)
                tops = layer.compute(bottoms, new or own)
            else:
                changed.append([])
                tops = [bottoms[0]] * len(step.top)
            known |= {id(b): t for b, t in zip(step.top, tops, strict=False)}
        return [known[id(b)] for b in self.outputs], changed

    def forward(self) -> None:
        """Fill the outputs."""
        for step in self.sources:
            step.layer.reshape(step.bottom, step.top)
            step.layer.forward(step.bottom, step.top)
        params = self._params()
        inputs = [asarray(b.data) for b in self.inputs]
        wanted = [*zip(inputs, self.inputs, strict=True)]
        for tensor, blob in wanted:
            tensor.requires_grad = is_float(tensor.dtype) and self.net.is_wanted(blob)
        for step, own in zip(self.steps, params, strict=True):
            for tensor, blob in zip(own, step.layer.blobs, strict=True):
                tensor.requires_grad = blob.lr_mult != 0
        with enable_grad():
            self._results, changed = self._run(inputs, params)
        self._given = [*inputs, *(t for own in params for t in own)]
        for blob, value in zip(self.outputs, self._results, strict=True):
            blob.reshape(*value.shape)
            blob.data[...] = value.detach().numpy()
        for step, new in zip(self.steps, changed, strict=True):
            for blob, value in zip(step.layer.blobs, new, strict=False):
                blob.data[...] = value.numpy()

    def backward(self) -> None:
        """Add to the gradients of parameters, and fill those of the inputs."""
        pairs = [
            (r, b) for r, b in zip(self._results, self.outputs, strict=True) if r.requires_grad
        ]
        blobs = [*self.inputs, *(b for s in self.steps for b in s.layer.blobs)]
        wanted = [(t, b) for t, b in zip(self._given, blobs, strict=True) if t.requires_grad]
        if not pairs or not wanted:
            return
        found = autograd.grad(
            [r for r, _ in pairs],
            [t for t, _ in wanted],
            [asarray(b.diff.copy()) for _, b in pairs],
            retain_graph=True,
            allow_unused=True,
        )
        inputs = {id(b) for b in self.inputs}
        for (_, blob), grad in zip(wanted, found, strict=True):
            if id(blob) in inputs:
                blob.diff[...] = 0 if grad is None else grad.numpy()
            elif grad is not None:
                blob.diff[...] += grad.numpy()
