"""Joining tensors, and cutting them into pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.errors import ArgumentError, AxisError, ShapeError
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor, promoted
from needle.ops.movement import expand_dims, flatten, reshape
from needle.ops.ordered import Joined
from needle.ops.record import Kind, composite, op
from needle.ops.samples import Sample, bad, integers, normal
from needle.ops.slicing import strided_slice
from needle.shapes import (
    Shape,
    Spec,
    as_index,
    normalize_axis,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _infer_concat(*xs: Spec, axis: int) -> Spec:
    first = xs[0]
    for i, x in enumerate(xs):
        same = x.ndim == first.ndim and all(
            n == m for a, (n, m) in enumerate(zip(x.shape, first.shape, strict=True)) if a != axis
        )
        if not same:
            raise ShapeError(
                f"concat: shapes must be equal but for axis {axis}; the first tensor has "
                f"{list(first.shape)}, number {i} has {list(x.shape)}"
            )
    shape = list(first.shape)
    shape[axis] = sum(x.shape[axis] for x in xs)
    return Spec(tuple(shape), first.dtype)


def _concat_vjp(g: Tensor, i: int, xs_shape: Sequence[Shape], axis: int) -> Tensor:
    start = sum(s[axis] for s in xs_shape[:i])
    starts, stops = [0] * g.ndim, list(g.shape)
    starts[axis], stops[axis] = start, start + xs_shape[i][axis]
    return strided_slice(g, starts, stops, [1] * g.ndim)


def _concat_samples() -> Iterable[Sample]:
    yield Sample(([normal(2, 3), normal(1, 3)],))
    yield Sample(([normal(2, 3), normal(2, 1), normal(2, 0)],), {"axis": 1}, label="axis 1")
    yield Sample(([normal(2), integers(0, 5, 3)],), label="promotion")
    yield bad(ShapeError, "equal but for axis", [normal(2, 3), normal(2, 2)])
    yield bad(ArgumentError, "at least one", [])


def _lower_concat(b: Any, index: Any, *xs: Any, axis: int) -> Any:
    def part(k: int, start: int) -> Any:
        x = xs[k]
        source = (*index[:axis], index[axis] - start, *index[axis + 1 :])
        if k == len(xs) - 1:
            return x(source)
        stop = x.shape[axis]
        inside = [(source[axis], 0 if k == 0 else -start, stop)]
        return b.where(inside, lambda: x(source), lambda: part(k + 1, start + stop))

    return part(0, 0)


@op(
    kind=Kind.MOVEMENT,
    infer=_infer_concat,
    reference=lambda *xs, axis: np.concatenate(xs, axis=axis),
    lower=Joined(_lower_concat),
    vjp={"xs": _concat_vjp},
    per_axis=(),
    samples=_concat_samples,
    aliases=("cat", "concatenate"),
    is_method=False,
    peer=lambda torch, xs, axis=0: torch.cat(xs, axis),
)
def concat(xs: Sequence[TensorLike], axis: int | None = 0) -> Tensor:
    """Join tensors along an existing axis.

    Args:
        xs: tensors of shapes that are equal but for that axis; dtypes are promoted.
        axis: the axis; None flattens all first.

    Raises:
        ShapeError: the shapes differ in another axis.
        ArgumentError: no tensors.

    Example:
        >>> ndl.concat([ndl.arange(2), ndl.arange(3)])
        Tensor([0, 1, 0, 1, 2], dtype=int64)
    """
    if not len(xs):
        raise ArgumentError("concat: needs at least one tensor")
    tensors = promoted(*xs)
    if axis is None:
        tensors = tuple(flatten(t) for t in tensors)
        axis = 0
    if tensors[0].ndim == 0:
        raise ShapeError("concat: 0-d tensors have no axis to join along; use stack")
    place = normalize_axis(axis, tensors[0].ndim, "concat")
    return apply(concat, *tensors, axis=place)


def _stack_samples() -> Iterable[Sample]:
    yield Sample(([normal(2, 3), normal(2, 3, seed=1)],))
    yield Sample(([normal(2), normal(2)],), {"axis": -1}, label="last")
    yield Sample(([normal(2, 3), normal(2, 3, seed=1)],), {"axis": 1}, label="between")
    yield Sample(([normal(0, 3), normal(0, 3)],), {"axis": 1}, label="empty")
    yield Sample(([normal(), normal()],), label="0-d")
    yield bad(ShapeError, "equal shapes", [normal(2), normal(3)])
    yield bad(AxisError, "axis 2", [normal(2), normal(2)], axis=2)


@composite(samples=_stack_samples, peer=lambda torch, xs, axis=0: torch.stack(xs, axis))
def stack(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis.

    Args:
        xs: tensors of equal shapes; dtypes are promoted.
        axis: place of the new axis in the result.

    Raises:
        ShapeError: the shapes differ.
        AxisError: there is no such place.
        ArgumentError: no tensors.

    Example:
        >>> ndl.stack([ndl.arange(2), ndl.arange(2)], axis=1)
        Tensor([[0, 0],
                [1, 1]], dtype=int64)
    """
    if not len(xs):
        raise ArgumentError("stack: needs at least one tensor")
    tensors = promoted(*xs)
    for i, t in enumerate(tensors):
        if t.shape != tensors[0].shape:
            raise ShapeError(
                f"stack: needs equal shapes; the first tensor has {list(tensors[0].shape)}, "
                f"number {i} has {list(t.shape)}"
            )
    ndim = tensors[0].ndim
    place = normalize_axis(axis, ndim + 1, "stack")
    if place == ndim:
        return concat([expand_dims(t, place) for t in tensors], place)
    # Two ops, however many the tensors: one after the other along an axis, the parts lie as they
    # do along a new axis before it.
    shape = tensors[0].shape
    joined = concat(tensors, place)
    return reshape(joined, (*shape[:place], len(tensors), *shape[place:]))


def _split_samples() -> Iterable[Sample]:
    yield Sample((normal(6, 2), 3))
    yield Sample((normal(2, 7), 3), {"axis": 1}, label="rest")
    yield Sample((normal(2, 7), [2, 5]), {"axis": -1}, label="sizes")
    yield bad(ShapeError, "add up", normal(7), [2, 4])
    yield bad(ArgumentError, "positive", normal(7), 0)


@composite(
    samples=_split_samples,
    is_method=True,
    peer=lambda torch, x, size, axis=0: torch.split(x, size, axis),
)
def split(x: TensorLike, size: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
    """Cut into pieces along an axis (PyTorch's convention).

    Args:
        x: any shape with at least one axis.
        size: extent of each piece, the last being smaller if it does not divide; or the list of
            extents.
        axis: the axis to cut.

    Raises:
        ShapeError: the extents do not add up to that of ``x``.
        ArgumentError: an extent is not positive.

    Example:
        >>> [piece.tolist() for piece in ndl.split(ndl.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """
    t = as_tensor(x)
    place = normalize_axis(axis, t.ndim, "split")
    extent = t.shape[place]
    if isinstance(size, int):
        if size <= 0:
            raise ArgumentError(f"split: the size of a piece must be positive, got {size}")
        sizes = [min(size, extent - start) for start in range(0, extent, size)] or [0]
    else:
        sizes = [as_index(n, "split: size") for n in size]
        if sum(sizes) != extent or any(n < 0 for n in sizes):
            raise ShapeError(f"split: sizes {sizes} do not add up to {extent}, the axis' extent")
    pieces = []
    start = 0
    for n in sizes:
        starts, stops = [0] * t.ndim, list(t.shape)
        starts[place], stops[place] = start, start + n
        pieces.append(strided_slice(t, starts, stops, [1] * t.ndim))
        start += n
    return tuple(pieces)


def _chunk_samples() -> Iterable[Sample]:
    yield Sample((normal(6, 2), 3))
    yield Sample((normal(2, 7), 3), {"axis": 1}, label="rest")
    yield bad(ArgumentError, "positive", normal(7), 0)


@composite(
    samples=_chunk_samples,
    is_method=True,
    peer=lambda torch, x, n, axis=0: torch.chunk(x, n, axis),
)
def chunk(x: TensorLike, chunks: int, axis: int = 0) -> tuple[Tensor, ...]:
    """Cut into at most ``chunks`` pieces of equal extent along an axis, the last maybe smaller.

    Args:
        x: any shape with at least one axis.
        chunks: how many pieces.
        axis: the axis to cut.

    Raises:
        ArgumentError: ``chunks`` is not positive.

    Example:
        >>> [piece.tolist() for piece in ndl.chunk(ndl.arange(5), 2)]
        [[0, 1, 2], [3, 4]]
    """
    t = as_tensor(x)
    if chunks <= 0:
        raise ArgumentError(f"chunk: the number of pieces must be positive, got {chunks}")
    extent = t.shape[normalize_axis(axis, t.ndim, "chunk")]
    return split(t, max(1, -(-extent // chunks)), axis)


__all__ = [
    "chunk",
    "concat",
    "split",
    "stack",
]
