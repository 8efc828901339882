"""Split long reductions: into chunks that threads share, and a reduction of the chunks' results.

Where the cut is depends on the reduced extents alone, not on what else there is or on threads. So
results stay what they are for any batch and any number of threads; and the error of a sum of n
elements grows with the length of a chunk and the number of chunks, not with n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from needle.compiler.rows import rows_in
from needle.dtypes import accumulation_dtype
from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.rewrite import apply
from needle.ops.copying import astype
from needle.ops.fold import Fold
from needle.ops.joining import concat
from needle.ops.movement import reshape
from needle.ops.record import Op
from needle.ops.slicing import strided_slice
from needle.shapes import Shape

#: Elements that are combined to one before a reduction counts as long.
LONG = 1 << 15
#: The same for columns along the first axis and others: their elements are far apart in memory, and
#: those of each element of the first axis are a chunk without its being cut.
LONG_COLUMNS = 1 << 7
#: Elements of a chunk, at least and at most.
SHORTEST, LONGEST = 512, 1 << 13


def split_folds(graph: Graph) -> Graph:
    """Return the graph with long reductions done in two steps or more."""

    def transform(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        fold = node.op.lower
        if not isinstance(fold, Fold) or fold.gives_place or not _is_long(node):
            return keep(node, inputs).results
        x = inputs[0]
        wide = accumulation_dtype(x.dtype) if x.dtype.kind not in "biu" else x.dtype
        if wide != x.dtype:
            x = _apply(node, astype.op, [x], dtype=wide)
        result = _split(node, x, node.attrs["axes"], node.attrs["keepdims"])
        if result.dtype != node.result.dtype:
            result = _apply(node, astype.op, [result], dtype=node.result.dtype)
        return (result,)

    return graph.rebuild(transform)


def _is_long(node: Node) -> bool:
    x, axes = node.inputs[0], node.attrs["axes"]
    extents = [x.shape[a] for a in axes]
    return not any(rows_in(n) for n in extents) and math.prod(extents) >= _long(x.shape, axes)


def _long(shape: Shape, axes: Sequence[int]) -> int:
    """Return from how many elements a reduction of ``shape`` along ``axes`` counts as long."""
    several = sum(shape[a] > 1 for a in axes) > 1
    return LONG_COLUMNS if several and 0 in axes and len(shape) - 1 not in axes else LONG


def _apply(origin: Node, op: Op, inputs: Sequence[Value], **attrs: object) -> Value:
    """Return the result of a new node in the place of ``origin``."""
    return apply(op, tuple(inputs), attrs, origin)


def _split(node: Node, x: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    """Return the reduction of ``x`` over ``axes``, in parts."""
    op = node.op
    wide = [a for a in axes if x.shape[a] > 1]
    while len(wide) > 1 and math.prod(x.shape[a] for a in wide) >= _long(x.shape, axes):
        # The last axes first: their elements are neighbours.
        inner, count = wide[-1:], x.shape[wide[-1]]
        for a in wide[-2:0:-1]:
            if count >= SHORTEST or count * x.shape[a] >= LONG:
                break
            inner, count = [a, *inner], count * x.shape[a]
        if count >= LONG:
            x = _chunked(node, x, inner[-1])
        else:
            x = _apply(node, op, [x], axes=tuple(inner), keepdims=True)
        wide = [a for a in axes if x.shape[a] > 1]
    while wide and math.prod(x.shape[a] for a in wide) >= LONG:
        x = _chunked(node, x, wide[-1])
        wide = [a for a in axes if x.shape[a] > 1]
    return _apply(node, op, [x], axes=axes, keepdims=keepdims)


def _chunked(node: Node, x: Value, axis: int) -> Value:
    """Return ``x`` with chunks along an axis reduced to one element each."""
    n = x.shape[axis]
    chunk = next((c for c in range(LONGEST, SHORTEST - 1, -1) if n % c == 0), 0)
    if chunk:
        return _reduced_chunks(node, x, axis, chunk)
    whole = n // LONGEST * LONGEST
    first = _reduced_chunks(node, _part(node, x, axis, 0, whole), axis, LONGEST)
    rest = _part(node, x, axis, whole, n)
    last = _apply(node, node.op, [rest], axes=(axis,), keepdims=True)
    return _apply(node, concat.op, [first, last], axis=axis)


def _part(node: Node, x: Value, axis: int, start: int, stop: int) -> Value:
    starts = tuple(start if a == axis else 0 for a in range(x.ndim))
    stops = tuple(stop if a == axis else n for a, n in enumerate(x.shape))
    steps = (1,) * x.ndim
    return _apply(node, strided_slice.op, [x], starts=starts, stops=stops, steps=steps)


def _reduced_chunks(node: Node, x: Value, axis: int, chunk: int) -> Value:
    shape = (*x.shape[:axis], x.shape[axis] // chunk, chunk, *x.shape[axis + 1 :])
    parts = _apply(node, reshape.op, [x], shape=shape)
    return _apply(node, node.op, [parts], axes=(axis + 1,), keepdims=False)
