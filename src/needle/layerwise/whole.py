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
from needle.tensor import Tensor, wrap_shared

if TYPE_CHECKING:
    from needle.layerwise.net import Net


#: For how many shapes of its inputs a net is compiled.
BUDGET = 16


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
        outputs = [net.blobs[name] for name in net.outputs]
        lossy = [blob for blob, _ in net.losses]
        self.outputs = list({id(b): b for b in (*outputs, *lossy)}.values())
        self._run = compile_function(self.compute, budget=BUDGET)
        self._brought = [wrap_shared(b.data) for b in self.inputs]
        self._given: list[Tensor] = []
        self._results: Sequence[Tensor] = ()

    def parameters(self) -> list[list[Tensor]]:
        """Return the parameters of each layer as they lie in memory; those that are trained get
        gradients."""
        found: list[list[Tensor]] = []
        for step in self.steps:
            layer = step.layer
            found.append(layer.stored() if isinstance(layer, TensorLayer) else [])
            for tensor, blob in zip(found[-1], layer.blobs, strict=True):
                tensor.requires_grad = blob.lr_mult != 0
        return found

    def compute(
        self, inputs: list[Tensor], params: list[list[Tensor]]
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return the outputs, and what layers make of parameters that they change themselves."""
        known = {id(b): t for b, t in zip(self.inputs, inputs, strict=True)}
        changed = []
        for step, own in zip(self.steps, params, strict=True):
            layer, bottoms = step.layer, [known[id(b)] for b in step.bottom]
            tops: Sequence[Tensor]
            if isinstance(layer, TensorLayer):
                values = layer.turned(own)
                new = [t.detach() for t in layer.state([b.detach() for b in bottoms], values)]
                changed.append(layer.turned(new))
                tops = layer.compute(bottoms, new or values)
            else:
                changed.append([])
                tops = [bottoms[0]] * len(step.top)
            known |= {id(b): t for b, t in zip(step.top, tops, strict=False)}
        return [known[id(b)] for b in self.outputs], changed

    def bring(self) -> list[Tensor]:
        """Let the layers that bring data in run; return what they bring."""
        for step in self.sources:
            step.layer.reshape(step.bottom, step.top)
            step.layer.forward(step.bottom, step.top)
        for i, (blob, tensor) in enumerate(zip(self.inputs, self._brought, strict=True)):
            if tensor._data is not blob.data:
                self._brought[i] = wrap_shared(blob.data)
        return self._brought

    def give(self, results: Sequence[Tensor]) -> None:
        """Fill the outputs."""
        for blob, value in zip(self.outputs, results, strict=True):
            array = value._data
            if array.shape != blob.shape:
                blob.reshape(*array.shape)
            blob.data[...] = array

    def forward(self) -> None:
        """Compute the outputs."""
        params = self.parameters()
        inputs = self.bring()
        for tensor, blob in zip(inputs, self.inputs, strict=True):
            tensor.requires_grad = is_float(tensor.dtype) and self.net.is_wanted(blob)
        with enable_grad():
            self._results, changed = self._run(inputs, params)
        self._given = [*inputs, *(t for own in params for t in own)]
        self.give(self._results)
        for step, new in zip(self.steps, changed, strict=True):
            for blob, value in zip(step.layer.blobs, new, strict=False):
                blob.stored[...] = value.numpy()

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
                blob.as_stored(blob.diff)[...] += grad.numpy()
