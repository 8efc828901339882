"""Layers that rearrange or combine blobs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from needle import ops
from needle.errors import ArgumentError
from needle.layerwise.blob import Blob
from needle.layerwise.layer import Layer, layer
from needle.layerwise.tensor_layer import TensorLayer
from needle.nn import functional as F
from needle.tensor import Tensor


@layer("Split")
class Split(Layer):
    """The bottom several times: the tops share its values, and their gradients are added."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        for blob in top:
            blob.reshape(*bottom[0].shape)

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        for blob in top:
            blob.share(bottom[0])

    def backward(
        self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]
    ) -> None:
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff
            for blob in top[1:]:
                bottom[0].diff[...] += blob.diff


@layer("Silence")
class Silence(Layer):
    """Takes blobs that nothing else takes."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        pass

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        pass

    def backward(
        self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]
    ) -> None:
        for blob, down in zip(bottom, propagate_down, strict=True):
            if down:
                blob.diff[...] = 0


@layer("Eltwise")
class Eltwise(TensorLayer):
    """Bottoms of one shape, combined element by element.

    Options: operation (SUM, PROD or MAX), coeff (factors of a sum).
    """

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        kind = self.option("operation", "SUM")
        factors = list(self.option("coeff", ())) or [1.0] * len(inputs)
        if len(factors) != len(inputs):
            raise ArgumentError(
                f"layer {self.spec.name!r}: {len(factors)} coeff for {len(inputs)} bottoms"
            )
        terms = [x if c == 1 else x * float(c) for x, c in zip(inputs, factors, strict=True)]
        combine = {"SUM": ops.add, "PROD": ops.multiply, "MAX": ops.maximum}.get(kind)
        if combine is None:
            raise ArgumentError(f"layer {self.spec.name!r}: there is no operation {kind!r}")
        result = (terms if kind == "SUM" else list(inputs))[0]
        for x in (terms if kind == "SUM" else list(inputs))[1:]:
            result = combine(result, x)
        return [result]


@layer("Concat")
class Concat(TensorLayer):
    """Bottoms side by side along ``axis``."""

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        axis = int(self.option("axis", self.option("concat_dim", 1)))
        return [ops.concat(list(inputs), axis=axis)]


@layer("Slice")
class Slice(TensorLayer):
    """The bottom cut along ``axis``: into equal parts, or at each ``slice_point``."""

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x, axis = inputs[0], int(self.option("axis", self.option("slice_dim", 1)))
        points = [int(p) for p in self.option("slice_point", ())]
        count = len(self.spec.top)
        if not points:
            if x.shape[axis] % max(count, 1):
                raise ArgumentError(
                    f"layer {self.spec.name!r}: {x.shape[axis]} elements do not make {count} equal "
                    "parts; give slice_point"
                )
            step = x.shape[axis] // count
            points = [i * step for i in range(1, count)]
        ends = [0, *points, x.shape[axis]]
        before = (slice(None),) * (axis % x.ndim)
        return [x[before + (slice(a, b),)] for a, b in pairwise(ends)]  # noqa: RUF005


@layer("Flatten")
class Flatten(TensorLayer):
    """Axes from ``axis`` to ``end_axis`` as one."""

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x = inputs[0]
        first = int(self.option("axis", 1)) % x.ndim
        last = int(self.option("end_axis", -1)) % x.ndim
        return [ops.reshape(x, (*x.shape[:first], -1, *x.shape[last + 1 :]))]


@layer("Reshape")
class Reshape(TensorLayer):
    """Another shape: 0 keeps an extent of the bottom, −1 is what is left.

    Options: shape ({"dim": [...]} or a list), axis, num_axes.
    """

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x = inputs[0]
        given = self.option("shape", ())
        extents = [int(n) for n in (given.get("dim", ()) if hasattr(given, "get") else given)]
        axis = int(self.option("axis", 0))
        first = axis if axis >= 0 else x.ndim + axis + 1
        count = int(self.option("num_axes", -1))
        last = x.ndim if count == -1 else first + count
        new = [x.shape[first + i] if n == 0 else n for i, n in enumerate(extents)]
        return [ops.reshape(x, (*x.shape[:first], *new, *x.shape[last:]))]


@layer("Softmax")
class Softmax(TensorLayer):
    """``e^xᵢ / Σ e^xⱼ`` along ``axis``."""

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        return [F.softmax(inputs[0], axis=int(self.option("axis", 1)))]


@layer("ArgMax")
class ArgMax(TensorLayer):
    """Where the largest element of each example stands, or along ``axis``."""

    fixed_bottoms = (0,)

    def compute(self, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
        x, axis = inputs[0], self.option("axis")
        if axis is None:
            flat = ops.reshape(x, (x.shape[0], -1))
            return [ops.reshape(ops.argmax(flat, axis=1), (x.shape[0], 1, 1)).astype(x.dtype)]
        return [ops.argmax(x, axis=int(axis), keepdims=True).astype(x.dtype)]
