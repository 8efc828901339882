"""Shapes: what an op knows of a tensor before any value is computed.

`Spec` is all that `infer` rules see and return. The functions here normalise axes and shapes and
raise the errors that teach; they know nothing of tensors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from needle.dtypes import DType
from needle.errors import ArgumentError, ArgumentTypeError, AxisError, ShapeError
from needle.extents import Extent, is_single, is_varying

Shape = tuple[int, ...]
Axis = int | Sequence[int] | None


class Spec(NamedTuple):
    """Shape and dtype of a tensor."""

    shape: Shape
    dtype: DType

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


# A Spec that strays into a NumPy function is an error, not an array of objects.
Spec.__array_ufunc__ = None  # type: ignore[attr-defined]


def as_index(value: Any, what: str) -> int:
    """Return ``value`` as an int, or raise an error that calls it ``what``."""
    if type(value) is Extent:
        return value  # type: ignore[return-value]  # it counts as one
    try:
        return operator.index(value)
    except TypeError:
        raise ArgumentTypeError(f"{what} must be an integer, got {value!r}") from None


def as_shape(shape: Any, op: str) -> Shape:
    """Return ``shape`` (an int or a sequence of ints) as a tuple of non-negative ints."""
    if isinstance(shape, tuple | list):
        dims = tuple(as_index(n, f"{op}: each extent of the shape") for n in shape)
    elif hasattr(shape, "__index__"):
        dims = (as_index(shape, f"{op}: shape"),)
    else:
        raise ArgumentTypeError(f"{op}: shape must be an int or a tuple of ints, got {shape!r}")
    if any(n < 0 for n in dims):
        raise ShapeError(f"{op}: negative extent in shape {list(dims)}")
    return dims


def normalize_axis(axis: Any, ndim: int, op: str) -> int:
    """Return ``axis`` counted from the front, in ``range(ndim)``.

    Raises:
        AxisError: the axis does not exist.
    """
    index = as_index(axis, f"{op}: axis")
    if not -ndim <= index < ndim:
        valid = f"valid are {-ndim} to {ndim - 1}" if ndim else "it has none (0-d)"
        raise AxisError(f"{op}: axis {index} does not exist in a tensor of {ndim} axes; {valid}")
    return index % ndim


def normalize_axes(axis: Axis, ndim: int, op: str) -> tuple[int, ...]:
    """Return the axes as sorted non-negative ints; ``None`` means all.

    Raises:
        AxisError: an axis does not exist or is given twice.
    """
    if axis is None:
        return tuple(range(ndim))
    if axis.__class__ is int and 0 <= axis < ndim:
        return (axis,)
    if not isinstance(axis, tuple | list):
        return (normalize_axis(axis, ndim, op),)
    axes = tuple(normalize_axis(a, ndim, op) for a in axis)
    if len(set(axes)) != len(axes):
        raise AxisError(f"{op}: the same axis is given twice in {tuple(axis)}")
    return tuple(sorted(axes))


def reduced_shape(shape: Shape, axes: Iterable[int], keepdims: bool) -> Shape:
    """Return ``shape`` with ``axes`` removed, or of extent 1 when ``keepdims``."""
    gone = set(axes)
    if keepdims:
        return tuple(1 if i in gone else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in gone)


def broadcast_shapes(*shapes: Shape, op: str = "broadcast") -> Shape:
    """Return the shape to which all ``shapes`` broadcast.

    Raises:
        ShapeError: two extents differ and neither is 1.

    Example:
        >>> from needle.shapes import broadcast_shapes
        >>> broadcast_shapes((3, 1), (4,))
        (3, 4)
    """
    result: list[int] = [1] * max((len(s) for s in shapes), default=0)
    for shape in shapes:
        offset = len(result) - len(shape)
        for i, n in enumerate(shape):
            if is_single(n):
                continue
            if not is_single(result[offset + i]) and n != result[offset + i]:
                listed = " and ".join(str(list(s)) for s in shapes)
                raise ShapeError(
                    f"{op}: shapes {listed} do not broadcast: on axis "
                    f"{offset + i - len(result)} they have {result[offset + i]} and {n}; extents "
                    "must be equal or 1 (reshape or expand_dims can insert axes of extent 1)"
                )
            result[offset + i] = n
    return tuple(result)


def infer_reshape(old: Shape, new: Any, op: str = "reshape") -> Shape:
    """Return ``new`` with a single ``-1`` replaced by the extent that keeps the size."""
    dims = [
        as_index(n, f"{op}: each extent of the shape")
        for n in (new if isinstance(new, tuple | list) else (new,))
    ]
    size = math.prod(old)
    unknown = [i for i, n in enumerate(dims) if n == -1]
    if len(unknown) > 1:
        raise ShapeError(f"{op}: only one extent can be -1, got {dims}")
    if any(n < -1 for n in dims):
        raise ShapeError(f"{op}: negative extent in shape {dims}")
    rest = math.prod(n for n in dims if n != -1)
    if unknown:
        if rest == 0 or size % rest:
            raise ShapeError(
                f"{op}: {list(old)} ({size} elements) does not divide into {dims}: "
                f"{rest} does not divide {size}"
            )
        dims[unknown[0]] = size // rest
    elif rest != size:
        raise ShapeError(
            f"{op}: {list(old)} has {size} elements, {dims} has {rest}; the sizes must be equal "
            "(one extent may be -1 to have it computed)"
        )
    return tuple(dims)


def slice_bounds(part: slice, extent: Any) -> tuple[int, int, int]:
    """Return start, stop and step of a slice of an axis, as ``part.indices(extent)`` does.

    Of an axis whose extent varies, what is taken may be all, or begin and end at fixed places.
    """
    if not is_varying(extent):
        return part.indices(extent)
    start, stop = part.start or 0, extent if part.stop is None else part.stop
    if part.step not in (None, 1) or start < 0 or stop < 0:
        extent.symbol.refuse(f"a slice counts from the end of {extent}, or goes in steps")
    return start, min(stop, extent), 1


def steps_in(start: Any, stop: Any, step: int) -> int:
    """Return how many indices a slice takes: the length of ``range(start, stop, step)``."""
    if not (is_varying(start) or is_varying(stop)):
        return len(range(start, stop, step))
    count: Any = stop - start
    if step != 1 or count.__class__ is not Extent:
        symbol = (stop if is_varying(stop) else start).symbol
        symbol.refuse(f"{count} elements are taken, which is no multiple of {symbol.name},")
    return count


def as_pair(value: Any, what: str, *, minimum: int = 0) -> tuple[int, int]:
    """Return ``value`` (an int or two ints) as two ints of at least ``minimum``."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise ArgumentError(f"{what} must be an int or two ints, got {value!r}")
    first, second = (as_index(n, what) for n in pair)
    if first < minimum or second < minimum:
        raise ArgumentError(f"{what} must be at least {minimum}, got {value!r}")
    return first, second


def window_extent(
    n: int, size: int, stride: int, dilation: int, padding: tuple[int, int], op: str, what: str
) -> int:
    """Return how many windows fit: ``(n + padding − dilation·(size − 1) − 1) // stride + 1``.

    Raises:
        ShapeError: the window is larger than the padded extent.
    """
    reach = dilation * (size - 1) + 1
    padded = n + padding[0] + padding[1]
    if padded < reach:
        raise ShapeError(
            f"{op}: the window of {reach} (kernel {size}, dilation {dilation}) is larger than the "
            f"{what} of {padded} ({n} plus padding {padding[0]} + {padding[1]})"
        )
    return (padded - reach) // stride + 1


def expect_axis(shape: Shape, axis: int, extent: int, meaning: str) -> None:
    """Raise unless ``shape[axis] == extent``; the message gives the extent its ``meaning``."""
    if -len(shape) <= axis < len(shape) and shape[axis] == extent:
        return
    place = {-1: "last axis", 1: "axis 1"}.get(axis, f"axis {axis}")
    if not -len(shape) <= axis < len(shape):
        raise ShapeError(
            f"expected {place} of {extent} ({meaning}), got a tensor of shape {list(shape)}"
        )
    raise ShapeError(
        f"expected {place} {extent} ({meaning}), got {shape[axis]} in shape {list(shape)}"
    )
