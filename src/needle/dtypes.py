"""Data types and their promotion.

A dtype is a ``numpy.dtype`` instance, so ``x.dtype`` compares and converts as NumPy users expect.
Promotion follows the Python array API standard 2024.12 and, where the standard is silent, PyTorch:
a tensor of floats keeps its dtype when it meets a tensor of integers, and Python numbers are weak.
"""

from __future__ import annotations

import builtins
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from needle.errors import DTypeError

DType = np.dtype[Any]

bool: DType = np.dtype(np.bool_)
int8: DType = np.dtype(np.int8)
int16: DType = np.dtype(np.int16)
int32: DType = np.dtype(np.int32)
int64: DType = np.dtype(np.int64)
uint8: DType = np.dtype(np.uint8)
uint16: DType = np.dtype(np.uint16)
uint32: DType = np.dtype(np.uint32)
uint64: DType = np.dtype(np.uint64)
float16: DType = np.dtype(np.float16)
bfloat16: DType = np.dtype(ml_dtypes.bfloat16)
float32: DType = np.dtype(np.float32)
float64: DType = np.dtype(np.float64)

SIGNED: tuple[DType, ...] = (int8, int16, int32, int64)
UNSIGNED: tuple[DType, ...] = (uint8, uint16, uint32, uint64)
INTEGERS: tuple[DType, ...] = SIGNED + UNSIGNED
# Sixteen-bit floats first: `FLOATS.index` orders by how much a dtype can hold.
FLOATS: tuple[DType, ...] = (float16, bfloat16, float32, float64)
ALL: tuple[DType, ...] = (bool, *INTEGERS, *FLOATS)

#: What Python floats become, and what float-valued functions of integers return.
DEFAULT_FLOAT: DType = float32
#: What Python integers become, and the dtype of indices.
DEFAULT_INT: DType = int64

_BY_NAME: dict[str, DType] = {d.name: d for d in ALL}
NAMES: tuple[str, ...] = tuple(_BY_NAME)
_BY_DTYPE: dict[DType, DType] = {d: d for d in ALL}
#: For tests in hot paths.
FLOAT_SET = frozenset(FLOATS)
INTEGER_SET = frozenset(INTEGERS)


def as_dtype(dtype: Any) -> DType:
    """Return the dtype that ``dtype`` names.

    Args:
        dtype: a dtype, its name, or a NumPy or Python scalar type (``float`` is float32, ``int``
            int64).

    Raises:
        DTypeError: it names nothing that needle computes with.

    Example:
        >>> import needle as ndl
        >>> ndl.dtypes.as_dtype("bfloat16") is ndl.bfloat16
        True
    """
    if isinstance(dtype, np.dtype) and dtype in _BY_DTYPE:
        return _BY_DTYPE[dtype]  # the usual case: asking a dtype for its name takes 5 µs
    if dtype is float:
        return DEFAULT_FLOAT
    if dtype is int:
        return DEFAULT_INT
    if dtype is not None:
        try:
            name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        except TypeError:
            name = repr(dtype)
        if name in _BY_NAME:
            return _BY_NAME[name]
    else:
        name = "None"
    raise DTypeError(
        f"{name} is not a dtype of needle; it has {', '.join(_BY_NAME)} "
        "(complex numbers, strings and objects are not tensors)"
    )


def is_float(dtype: DType) -> builtins.bool:
    """Whether ``dtype`` is a floating type, the only ones that can require gradients."""
    return dtype in FLOAT_SET


def is_integer(dtype: DType) -> builtins.bool:
    """Whether ``dtype`` is a signed or unsigned integer (bool is not)."""
    return dtype in INTEGER_SET


def accumulation_dtype(dtype: DType) -> DType:
    """Return the dtype in which long sums of ``dtype`` are held: 16-bit floats in float32."""
    return float32 if dtype in (float16, bfloat16) else dtype


def float_dtype(dtype: DType) -> DType:
    """Return ``dtype`` if it is floating, else the default float: what ``exp`` of it returns."""
    return dtype if dtype in FLOAT_SET else DEFAULT_FLOAT


def scalar_dtype(value: int | float, dtype: DType) -> DType:
    """Return the dtype of ``tensor <op> value`` for a Python number and a tensor of ``dtype``.

    Python numbers are weak: they take the tensor's dtype unless they are of a higher kind
    (bool < int < float), in which case the default dtype of their kind is used.

    Example:
        >>> import needle as ndl
        >>> (ndl.ones(2, dtype=ndl.bfloat16) * 0.5).dtype, (ndl.arange(3) * 0.5).dtype
        (dtype(bfloat16), dtype('float32'))
    """
    if dtype in FLOAT_SET:
        return dtype
    if isinstance(value, float):
        return DEFAULT_FLOAT
    if dtype == bool and not isinstance(value, builtins.bool):
        return DEFAULT_INT
    return dtype


@cache
def promote(a: DType, b: DType) -> DType:
    """Return the dtype to which both ``a`` and ``b`` convert without losing their kind.

    Raises:
        DTypeError: uint64 with a signed integer: no integer holds both.

    Example:
        >>> import needle as ndl
        >>> ndl.dtypes.promote(ndl.int64, ndl.float16), ndl.dtypes.promote(ndl.uint8, ndl.int8)
        (dtype('float16'), dtype('int16'))
    """
    if a == b:
        return a
    if a in FLOAT_SET and b in FLOAT_SET:
        if {a, b} == {float16, bfloat16}:
            return float32
        return max(a, b, key=FLOATS.index)
    for one, other in ((a, b), (b, a)):
        if one in FLOAT_SET or other == bool:
            return one
    if (a in SIGNED) == (b in SIGNED):
        return a if a.itemsize >= b.itemsize else b
    signed, unsigned = (a, b) if a in SIGNED else (b, a)
    if signed.itemsize > unsigned.itemsize:
        return signed
    if unsigned == uint64:
        raise DTypeError(
            f"no integer dtype holds both {a.name} and {b.name}; "
            "convert one of them with astype() to say which is meant"
        )
    return SIGNED[UNSIGNED.index(unsigned) + 1]
