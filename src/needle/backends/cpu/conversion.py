"""Conversions between dtypes, in instructions that every target has: never a call of a library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from needle import dtypes
from needle.backends.cpu.operands import SUFFIX, Operand, scalar_type, vector_type
from needle.dtypes import DType

if TYPE_CHECKING:
    from needle.backends.cpu.llvm import Function


def convert(b: Function, x: Operand, dtype: DType) -> Operand:
    """Return x in another dtype: floats round to nearest, float to int truncates and saturates
    (NaN becomes 0), to bool is ``x ≠ 0``."""
    if x.dtype == dtype:
        return x
    if dtype == dtypes.bool:
        zero = b.like(0, x)
        return b.compare("une" if x.is_float else "ne", x, zero)
    target = vector_type(scalar_type(dtype), x.lanes)
    to_float = dtypes.is_float(dtype)
    if x.is_float and to_float:
        return _convert_float(b, x, dtype)
    if x.is_float:
        return _float_to_int(b, x, dtype)
    if to_float:
        name = "sitofp" if x.is_signed else "uitofp"
    else:
        bits = 1 if x.dtype == dtypes.bool else x.dtype.itemsize * 8
        wanted = dtype.itemsize * 8
        if bits == wanted:
            return Operand(x.text, dtype, x.lanes)
        name = "trunc" if wanted < bits else "sext" if x.is_signed else "zext"
    return Operand(b.value(f"{name} {x.typed} to {target}"), dtype, x.lanes)


def _convert_float(b: Function, x: Operand, dtype: DType) -> Operand:
    # There is no instruction from half to bfloat or back: by way of float, which is exact.
    if x.dtype.itemsize == 2 and dtype.itemsize == 2:
        return convert(b, convert(b, x, dtypes.float32), dtype)
    # Rounding double to bfloat or half directly rounds once.
    name = "fptrunc" if dtype.itemsize < x.dtype.itemsize else "fpext"
    target = vector_type(scalar_type(dtype), x.lanes)
    return Operand(b.value(f"{name} {x.typed} to {target}"), dtype, x.lanes)


def _float_to_int(b: Function, x: Operand, dtype: DType) -> Operand:
    name = "fptosi" if dtype.kind == "i" else "fptoui"
    suffix = f"v{x.lanes}" if x.lanes else ""
    target = vector_type(scalar_type(dtype), x.lanes)
    full = f"llvm.{name}.sat.{suffix}{scalar_type(dtype)}.{suffix}{SUFFIX[x.scalar_type]}"
    b.module.declare(full, target, [x.type])
    return Operand(b.value(f"call {target} @{full}({x.typed})"), dtype, x.lanes)
