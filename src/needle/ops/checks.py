"""Checks of values while a program runs: where labels and indices are looked at.

A check is an op like any other, which returns its input and refuses bad values. So it can stand in
a graph: a compound op that looks at labels or indices decomposes into a check, and ops that take
them as good. Compiled code cannot raise; it notes the first value that is refused and goes on, and
the record's `fault` makes the exception from it after the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import bool as bool_, is_integer
from needle.errors import DTypeError, OutOfRangeError
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor
from needle.ops.record import Kind, op
from needle.ops.samples import Array, Sample, bad, integers, normal
from needle.shapes import Shape, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _require_integers(x: Spec | Tensor) -> None:
    if not is_integer(x.dtype):
        raise DTypeError(f"expect_range: takes integer tensors, got {x.dtype.name}")


def _infer(x: Spec, *, low: int, high: int, message: str) -> Spec:
    _require_integers(x)
    return x


def _fault(value: int, place: Shape, *, low: int, high: int, message: str) -> OutOfRangeError:
    where = f" at position {list(place)}" if place else ""
    long = f" (at position {list(place)} of the indices)" if place else ""
    valid = f"valid are {low} to {high - 1}" if low < high else "it has no elements"
    return OutOfRangeError(message.format(value=value, where=where, place=long, valid=valid))


def _expect_range(x: Array, *, low: int, high: int, message: str) -> Array:
    outside = (x < low) | (x >= high)
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        raise _fault(int(x[place]), place, low=low, high=high, message=message)
    return x.copy()


def _lower(b: Any, x: Any, *, low: int, high: int, message: str) -> Any:
    limits = np.iinfo(x.dtype)
    if high <= max(low, limits.min):
        b.refuse(b.constant(True, bool_, x.lanes), x)
        return x
    bad = []
    if low > limits.min:
        bad.append(b.less(x, b.like(low, x)))
    if high <= limits.max:
        bad.append(b.less(b.like(high - 1, x), x))
    if bad:
        b.refuse(b.binary("or", *bad) if len(bad) == 2 else bad[0], x)
    return x


def _samples() -> Iterable[Sample]:
    yield Sample((integers(0, 4, 3, 4), 0, 4))
    yield Sample((integers(-4, 4, 5), -4, 4), label="negative")
    yield Sample((np.array(3), 3, 4), label="0-d")
    yield Sample((np.zeros((0, 2), np.int64), 0, 0), label="empty")
    yield Sample((integers(0, 9, 3).astype(np.uint8), -1, 300), label="beyond the dtype")
    yield bad(OutOfRangeError, r"4 at position \[1\] is out of range", np.array([0, 4]), 0, 4)
    yield bad(OutOfRangeError, "-1 is out of range", np.array(-1), 0, 4)
    yield bad(DTypeError, "takes integer", normal(3), 0, 4)


@op(
    kind=Kind.ELEMENTWISE,
    infer=_infer,
    reference=_expect_range,
    lower=_lower,
    fault=_fault,
    samples=_samples,
    is_method=False,
)
def expect_range(
    x: TensorLike, low: int, high: int, message: str = "{value}{where} is out of range; {valid}"
) -> Tensor:
    """Return ``x`` as it is, or raise unless ``low ≤ x < high`` everywhere.

    Args:
        x: integers of any shape.
        low: the smallest value allowed.
        high: the end of the range, the first value that is not allowed any more.
        message: of the error; ``{value}`` stands for the first bad value, ``{where}`` for its
            position (``{place}``, in more words), ``{valid}`` for the range.

    Raises:
        OutOfRangeError: a value outside of the range.
        DTypeError: ``x`` is not integer.

    Example:
        >>> ndl.expect_range(ndl.asarray([0, 2]), 0, 3)
        Tensor([0, 2], dtype=int64)
    """
    t = as_tensor(x)
    _require_integers(t)
    return apply(expect_range, t, low=low, high=high, message=message)


__all__ = ["expect_range"]
