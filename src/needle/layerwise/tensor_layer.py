"""Layers written as functions over tensors: backward is what autograd makes of forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from needle import autograd
from needle.config import enable_grad, no_grad
from needle.creation import asarray
from needle.dtypes import float32, is_float
from needle.errors import ShapeError
from needle.graph import trace
from needle.layerwise.blob import Blob
from needle.layerwise.fillers import fill
from needle.layerwise.layer import Layer
from needle.ops import permute_dims
from needle.shapes import Spec
from needle.tensor import Tensor, wrap, wrap_shared


class TensorLayer(Layer):
    """A layer whose subclass says in `compute` what its tops are, as tensors.

    `forward` keeps the graph that `compute` leaves, and `backward` goes back through it. The same
    `compute` is what `Net.compile` compiles.
    """

    _shaped_for: Any = None
    _shapes: Sequence[tuple[int, ...]] = ()
    _outputs: Sequence[Tensor] = ()
    _inputs: Sequence[Tensor] = ()
    _params: Sequence[Tensor] = ()

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the tops, of the bottoms and the parameters."""
        raise NotImplementedError  # abstract

    def state(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the new values of the parameters, for a layer that changes them in `forward`."""
        return ()

    def shapes(self, bottom: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the shapes of the tops: those that `compute` gives in a trace."""
        inputs = [wrap(Spec(tuple(shape), float32)) for shape in bottom]
        params = self.turned(self.stored())
        with no_grad():
            traced = trace(lambda *x: list(self.compute(x, params)), *inputs)
        found = [r.argument if r.output is None else r.output for r in traced.results]
        values = traced.graph.inputs if None in [r.output for r in traced.results] else []
        return [
            (traced.graph.outputs[place] if r.output is not None else values[place]).shape
            for r, place in zip(traced.results, found, strict=True)
            if place is not None
        ]

    def stored(self) -> list[Tensor]:
        """Return the parameters as tensors, with axes in the order of the memory."""
        return [wrap_shared(b.stored) for b in self.blobs]

    def turned(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return what `stored` gives with axes in the order of the blobs, or the reverse."""
        pairs = zip(tensors, self.blobs, strict=False)
        return [permute_dims(t, range(t.ndim)[::-1]) if b.is_turned else t for t, b in pairs]

    def add_parameter(
        self, shape: tuple[int, ...], filler: Any, *, is_turned: bool = False
    ) -> Blob:
        """Add a parameter and fill it."""
        blob = self.blobs.add_blob(*shape, is_turned=is_turned)
        fill(blob.data, filler)
        return blob

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        given = [b.shape for b in (*bottom, *self.blobs)], self.phase
        if given != self._shaped_for:  # a net reshapes before each forward pass
            self._shapes, self._shaped_for = self.shapes([b.shape for b in bottom]), given
        shapes = self._shapes
        if len(shapes) < len(top):
            raise ShapeError(
                f"layer {self.spec.name!r} ({self.type}) has {len(shapes)} tops, and the net names "
                f"{len(top)}"
            )
        for blob, shape in zip(top, shapes, strict=False):
            blob.reshape(*shape)

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        # A layer that writes where it reads keeps what it has read.
        own = {id(blob) for blob in top}
        self._inputs = [asarray(b.data.copy() if id(b) in own else b.data) for b in bottom]
        self._params = self.stored()
        for i, tensor in enumerate(self._inputs):
            tensor.requires_grad = is_float(tensor.dtype) and i not in self.fixed_bottoms
        for tensor in self._params:
            tensor.requires_grad = True
        with no_grad():
            new = self.state(self._inputs, self.turned(self._params))
            for blob, value in zip(self.blobs, new, strict=False):
                blob.data[...] = value.numpy()
        with enable_grad():
            self._outputs = self.compute(self._inputs, self.turned(self._params))
        for blob, value in zip(top, self._outputs, strict=False):
            blob.data[...] = value.detach().numpy()

    def backward(
        self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]
    ) -> None:
        outputs, cotangents = [], []
        for blob, value in zip(top, self._outputs, strict=False):
            if value.requires_grad:
                outputs.append(value)
                cotangents.append(asarray(blob.diff.copy()))
        wanted = [
            (t, b, False)
            for t, b, down in zip(self._inputs, bottom, propagate_down, strict=True)
            if down and t.requires_grad
        ]
        wanted += [(t, b, True) for t, b in zip(self._params, self.blobs, strict=True) if b.lr_mult]
        if not outputs or not wanted:
            return
        found = autograd.grad(
            outputs, [t for t, _, _ in wanted], cotangents, retain_graph=True, allow_unused=True
        )
        for (_, blob, is_param), grad in zip(wanted, found, strict=True):
            if is_param:
                if grad is not None:
                    diff = blob.as_stored(blob.diff)
                    diff += grad.numpy()
            else:
                blob.diff[...] = 0 if grad is None else grad.numpy()
