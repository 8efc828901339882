"""The array API standard's questions about dtypes: limits, kinds, promotion."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from needle import dtypes
from needle.dtypes import DType, as_dtype, is_float, is_integer, promote, scalar_dtype
from needle.errors import ArgumentError, DTypeError


def _dtype_of(x: Any) -> DType:
    return as_dtype(getattr(x, "dtype", x))


def finfo(dtype: Any) -> Any:
    """Return the limits of a floating dtype.

    Args:
        dtype: a floating dtype, or a tensor of one.

    Returns:
        An object with ``bits``, ``eps``, ``max``, ``min``, ``smallest_normal`` and ``dtype``.

    Raises:
        DTypeError: it is not floating.

    Example:
        >>> ndl.finfo(ndl.bfloat16).bits
        16
    """
    target = _dtype_of(dtype)
    if not is_float(target):
        raise DTypeError(f"finfo: {target.name} is not floating; use iinfo for integers")
    limits: Any = ml_dtypes.finfo  # has no annotations
    return limits(target)


def iinfo(dtype: Any) -> Any:
    """Return the limits of an integer dtype.

    Args:
        dtype: an integer dtype, or a tensor of one.

    Returns:
        An object with ``bits``, ``max``, ``min`` and ``dtype``.

    Raises:
        DTypeError: it is not an integer.

    Example:
        >>> ndl.iinfo("int8").max
        127
    """
    target = _dtype_of(dtype)
    if not is_integer(target):
        raise DTypeError(f"iinfo: {target.name} is no integer; use finfo for floats")
    return np.iinfo(target)


_KINDS: dict[str, tuple[DType, ...]] = {
    "bool": (dtypes.bool,),
    "signed integer": dtypes.SIGNED,
    "unsigned integer": dtypes.UNSIGNED,
    "integral": dtypes.INTEGERS,
    "real floating": dtypes.FLOATS,
    "complex floating": (),
    "numeric": dtypes.INTEGERS + dtypes.FLOATS,
}


def isdtype(dtype: Any, kind: Any) -> bool:
    """Return whether a dtype is of a kind.

    Args:
        dtype: the dtype.
        kind: a dtype; "bool", "signed integer", "unsigned integer", "integral", "real floating",
            "complex floating" or "numeric"; or a tuple of those, any of which will do.

    Raises:
        ArgumentError: there is no such kind.

    Example:
        >>> ndl.isdtype(ndl.float32, ("integral", "real floating"))
        True
    """
    target = as_dtype(dtype)
    if isinstance(kind, tuple):
        return any(isdtype(target, k) for k in kind)
    if isinstance(kind, str):
        if kind not in _KINDS:
            raise ArgumentError(f"isdtype: {kind!r} is no kind; there are {', '.join(_KINDS)}")
        return target in _KINDS[kind]
    return target == as_dtype(kind)


def result_type(*arrays_and_dtypes: Any) -> DType:
    """Return the dtype that tensors, dtypes and Python numbers are promoted to together.

    Args:
        arrays_and_dtypes: tensors or dtypes, and numbers, which are weak.

    Raises:
        ArgumentError: neither a tensor nor a dtype is among them.

    Example:
        >>> ndl.result_type(ndl.int32, ndl.ones(1, dtype="float16"), 2.5)
        dtype('float16')
    """
    numbers = [x for x in arrays_and_dtypes if isinstance(x, (bool, int, float))]
    strong = [_dtype_of(x) for x in arrays_and_dtypes if not isinstance(x, (bool, int, float))]
    if not strong:
        raise ArgumentError("result_type: needs at least one tensor or dtype")
    result = strong[0]
    for dtype in strong[1:]:
        result = promote(result, dtype)
    for number in numbers:
        result = scalar_dtype(number, result)
    return result


def can_cast(from_: Any, to: Any) -> bool:
    """Return whether promotion may convert one dtype to another, so that nothing is lost.

    Args:
        from_: a dtype, or a tensor.
        to: a dtype.

    Example:
        >>> ndl.can_cast(ndl.int8, ndl.int16), ndl.can_cast(ndl.float32, ndl.int64)
        (True, False)
    """
    source, target = _dtype_of(from_), as_dtype(to)
    try:
        return promote(source, target) == target
    except DTypeError:
        return False
