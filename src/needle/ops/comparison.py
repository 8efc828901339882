"""Comparisons, logic and selection, element by element. Their results carry no gradients, but
`where`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from needle.dtypes import bool as bool_
from needle.errors import DTypeError
from needle.ops.elementwise import TensorLike, elementwise
from needle.ops.engine import apply, as_tensor, promoted
from needle.ops.record import Kind, op
from needle.ops.samples import Sample, bad, binary_samples, bools, integers, normal
from needle.shapes import Spec, broadcast_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _comparison_samples() -> Iterable[Sample]:
    yield from binary_samples()()
    yield Sample((integers(0, 3, 3, 4), integers(0, 3, 4)), label="integers")
    yield Sample((bools(3, 4), bools(4)), label="bool")


@elementwise(
    np.equal,
    commutes=True,
    result=bool_,
    peer="eq",
    samples=_comparison_samples,
    lower=lambda b, x, y: b.equal(x, y),
)
def equal(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether elements are equal: ``x == y``; NaN equals nothing.

    Args:
        x: any shape and dtype.
        y: a shape that broadcasts with ``x``.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.equal(ndl.arange(3), 1)
        Tensor([False,  True, False], dtype=bool)
    """


@elementwise(
    np.not_equal,
    commutes=True,
    result=bool_,
    peer="ne",
    samples=_comparison_samples,
    lower=lambda b, x, y: b.not_equal(x, y),
)
def not_equal(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether elements differ: ``x != y``; NaN differs from all.

    Args:
        x: any shape and dtype.
        y: a shape that broadcasts with ``x``.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.not_equal(ndl.arange(3), 1)
        Tensor([ True, False,  True], dtype=bool)
    """


@elementwise(
    np.less,
    result=bool_,
    samples=_comparison_samples,
    lower=lambda b, x, y: b.less(x, y),
)
def less(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether ``x < y``; false where one is NaN.

    Args:
        x: any shape and dtype.
        y: a shape that broadcasts with ``x``.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.less(ndl.arange(3), 1)
        Tensor([ True, False, False], dtype=bool)
    """


@elementwise(
    np.less_equal,
    result=bool_,
    samples=_comparison_samples,
    lower=lambda b, x, y: b.less_equal(x, y),
)
def less_equal(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether ``x ≤ y``; false where one is NaN.

    Args:
        x: any shape and dtype.
        y: a shape that broadcasts with ``x``.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.less_equal(ndl.arange(3), 1)
        Tensor([ True,  True, False], dtype=bool)
    """


@elementwise(
    np.greater,
    result=bool_,
    samples=_comparison_samples,
    lower=lambda b, x, y: b.less(y, x),
)
def greater(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether ``x > y``; false where one is NaN.

    Args:
        x: any shape and dtype.
        y: a shape that broadcasts with ``x``.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.greater(ndl.arange(3), 1)
        Tensor([False, False,  True], dtype=bool)
    """


@elementwise(
    np.greater_equal,
    result=bool_,
    samples=_comparison_samples,
    lower=lambda b, x, y: b.less_equal(y, x),
)
def greater_equal(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether ``x ≥ y``; false where one is NaN.

    Args:
        x: any shape and dtype.
        y: a shape that broadcasts with ``x``.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.greater_equal(ndl.arange(3), 1)
        Tensor([False,  True,  True], dtype=bool)
    """


def _logic_samples() -> Iterable[Sample]:
    yield Sample((bools(3, 4), bools(4, seed=1)))
    yield Sample((bools(3, 4), True), label="Python bool", has_peer=False)
    yield bad(DTypeError, "takes bool", normal(3), normal(3))


@elementwise(
    np.logical_and,
    takes=("bool",),
    result=bool_,
    commutes=True,
    samples=_logic_samples,
    lower=lambda b, x, y: b.bit_and(x, y),
)
def logical_and(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether both are true.

    Args:
        x: bools of any shape.
        y: a shape that broadcasts with ``x``.

    Raises:
        DTypeError: an operand is not bool (compare with 0 first).

    Example:
        >>> ndl.logical_and(ndl.asarray([True, False]), True)
        Tensor([ True, False], dtype=bool)
    """


@elementwise(
    np.logical_or,
    takes=("bool",),
    result=bool_,
    commutes=True,
    samples=_logic_samples,
    lower=lambda b, x, y: b.bit_or(x, y),
)
def logical_or(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether at least one is true.

    Args:
        x: bools of any shape.
        y: a shape that broadcasts with ``x``.

    Raises:
        DTypeError: an operand is not bool (compare with 0 first).

    Example:
        >>> ndl.logical_or(ndl.asarray([True, False]), False)
        Tensor([ True, False], dtype=bool)
    """


@elementwise(
    np.logical_xor,
    takes=("bool",),
    result=bool_,
    commutes=True,
    samples=_logic_samples,
    lower=lambda b, x, y: b.bit_xor(x, y),
)
def logical_xor(x: TensorLike, y: TensorLike) -> Tensor:
    """Whether exactly one is true.

    Args:
        x: bools of any shape.
        y: a shape that broadcasts with ``x``.

    Raises:
        DTypeError: an operand is not bool (compare with 0 first).

    Example:
        >>> ndl.logical_xor(ndl.asarray([True, False]), True)
        Tensor([False,  True], dtype=bool)
    """


@elementwise(
    np.logical_not,
    takes=("bool",),
    result=bool_,
    samples=lambda: [Sample((bools(3, 4),)), bad(DTypeError, "takes bool", normal(3))],
    lower=lambda b, x: b.invert(x),
)
def logical_not(x: TensorLike) -> Tensor:
    """Negation of bools.

    Args:
        x: bools of any shape.

    Raises:
        DTypeError: the operand is not bool (compare with 0 instead).

    Example:
        >>> ndl.logical_not(ndl.asarray([True, False]))
        Tensor([False,  True], dtype=bool)
    """


@elementwise(
    np.isnan,
    to_float=True,
    result=bool_,
    lower=lambda b, x: b.not_equal(x, x),
)
def isnan(x: TensorLike) -> Tensor:
    """Whether each element is NaN.

    Args:
        x: any shape and dtype.

    Example:
        >>> ndl.isnan(ndl.asarray([1.0, float("nan")]))
        Tensor([False,  True], dtype=bool)
    """


@elementwise(
    np.isinf,
    to_float=True,
    result=bool_,
    lower=lambda b, x: b.is_infinite(x),
)
def isinf(x: TensorLike) -> Tensor:
    """Whether each element is +∞ or −∞.

    Args:
        x: any shape and dtype.

    Example:
        >>> ndl.isinf(ndl.asarray([1.0, float("inf")]))
        Tensor([False,  True], dtype=bool)
    """


@elementwise(
    np.isfinite,
    to_float=True,
    result=bool_,
    lower=lambda b, x: b.is_finite(x),
)
def isfinite(x: TensorLike) -> Tensor:
    """Whether each element is neither NaN nor infinite.

    Args:
        x: any shape and dtype.

    Example:
        >>> ndl.isfinite(ndl.asarray([1.0, float("inf")]))
        Tensor([ True, False], dtype=bool)
    """


def _require_bool(condition: Tensor | Spec) -> None:
    if condition.dtype != bool_:
        raise DTypeError(
            f"where: the condition must be bool, got {condition.dtype.name}; compare with 0 first"
        )


def _infer_where(condition: Spec, x: Spec, y: Spec) -> Spec:
    _require_bool(condition)
    return Spec(broadcast_shapes(condition.shape, x.shape, y.shape, op="where"), x.dtype)


def _chosen(g: Tensor, condition: Tensor) -> Tensor:
    return where(condition, g, 0.0)


def _not_chosen(g: Tensor, condition: Tensor) -> Tensor:
    return where(condition, 0.0, g)


def _where_samples() -> Iterable[Sample]:
    yield Sample((bools(3, 4), normal(3, 4), normal(3, 4, seed=1)))
    yield Sample((bools(3, 1), normal(4), normal()), label="broadcast")
    yield Sample((bools(3, 4), normal(3, 4), 0.0), label="Python number")
    yield Sample((bools(0, 4), normal(0, 4), 1.0), label="empty")
    yield Sample((bools(3), integers(0, 9, 3), normal(3)), label="promotion")
    yield bad(DTypeError, "must be bool", normal(3), normal(3), normal(3))


@op(
    kind=Kind.ELEMENTWISE,
    infer=_infer_where,
    reference=np.where,
    vjp={"x": _chosen, "y": _not_chosen},
    samples=_where_samples,
    is_method=False,
    peer="where",
    lower=lambda b, condition, x, y: b.select(condition, x, y),
    exact=True,
    chooses=True,
)
def where(condition: TensorLike, x: TensorLike, y: TensorLike) -> Tensor:
    """Choose element by element: ``x`` where the condition holds, else ``y``.

    Args:
        condition: bools.
        x: values where true; broadcasts with the others.
        y: values where false; broadcasts with the others.

    Raises:
        DTypeError: the condition is not bool.
        ShapeError: the shapes do not broadcast.

    Example:
        >>> x = ndl.asarray([-1.0, 2.0])
        >>> ndl.where(x > 0, x, 0.0)
        Tensor([0., 2.])
    """
    mask = as_tensor(condition)
    _require_bool(mask)  # NumPy would take any number
    chosen, other = promoted(x, y)
    return apply(where, mask, chosen, other)


__all__ = [
    "equal",
    "greater",
    "greater_equal",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "less_equal",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "not_equal",
    "where",
]
