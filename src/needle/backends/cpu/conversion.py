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
        x = _widened(b, x)
        zero = b.like(0, x)
        return b.compare("une" if x.is_float else "ne", x, zero)
    to_float = dtypes.is_float(dtype)
    if x.is_float and to_float:
        return _convert_float(b, x, dtype)
    if x.is_float:
        return _float_to_int(b, _widened(b, x), dtype)
    if to_float:
        # Sixteen-bit floats by way of float32, as NumPy does.
        wide = dtypes.accumulation_dtype(dtype)
        name = "sitofp" if x.is_signed else "uitofp"
        return _convert_float(b, _cast(b, name, x, wide), dtype)
    bits = 1 if x.dtype == dtypes.bool else x.dtype.itemsize * 8
    wanted = dtype.itemsize * 8
    if bits == wanted:
        return Operand(x.text, dtype, x.lanes)
    return _cast(b, "trunc" if wanted < bits else "sext" if x.is_signed else "zext", x, dtype)


def narrow(b: Function, x: Operand, dtype: DType) -> Operand:
    """Return x in a dtype that holds its value, such as one that was converted from it."""
    if x.dtype == dtypes.float32 and dtype == dtypes.bfloat16:
        bits = b.bitcast(x, dtypes.uint32)
        upper = _cast(b, "trunc", b.binary("lshr", bits, b.like(16, bits)), dtypes.uint16)
        return b.bitcast(upper, dtype)
    return convert(b, x, dtype)


def _cast(b: Function, instruction: str, x: Operand, dtype: DType) -> Operand:
    target = vector_type(scalar_type(dtype), x.lanes)
    return Operand(b.value(f"{instruction} {x.typed} to {target}"), dtype, x.lanes)


def _float_to_int(b: Function, x: Operand, dtype: DType) -> Operand:
    name = "fptosi" if dtype.kind == "i" else "fptoui"
    suffix = f"v{x.lanes}" if x.lanes else ""
    target = vector_type(scalar_type(dtype), x.lanes)
    full = f"llvm.{name}.sat.{suffix}{scalar_type(dtype)}.{suffix}{SUFFIX[x.scalar_type]}"
    b.module.declare(full, target, [x.type])
    return Operand(b.value(f"call {target} @{full}({x.typed})"), dtype, x.lanes)


def _convert_float(b: Function, x: Operand, dtype: DType) -> Operand:
    x = _widened(b, x)
    if dtype == x.dtype:
        return x
    if dtype == dtypes.float64:
        return _cast(b, "fpext", x, dtype)
    if dtype == dtypes.float32:
        return _cast(b, "fptrunc", x, dtype)
    if dtype == dtypes.bfloat16:
        # From float64 by way of float32, as ml_dtypes does.
        return _to_bfloat(b, convert(b, x, dtypes.float32))
    return _to_half(b, _to_odd(b, x) if x.dtype == dtypes.float64 else x)


def _widened(b: Function, x: Operand) -> Operand:
    # A sixteen-bit float as float32, which is exact.
    if x.dtype == dtypes.bfloat16:
        wide = _cast(b, "zext", b.bitcast(x, dtypes.uint16), dtypes.uint32)
        return b.bitcast(b.binary("shl", wide, b.like(16, wide)), dtypes.float32)
    if x.dtype == dtypes.float16:
        return _cast(b, "fpext", x, dtypes.float32) if b.target.half else _from_half(b, x)
    return x


def _to_bfloat(b: Function, x: Operand) -> Operand:
    # AVX-512's own instruction takes subnormal numbers for zeros.
    bits = b.bitcast(x, dtypes.uint32)
    upper = b.binary("lshr", bits, b.like(16, bits))
    odd = b.binary("and", upper, b.like(1, bits))
    rounded = b.add(b.add(bits, b.like(0x7FFF, bits)), odd)
    rounded = b.binary("lshr", rounded, b.like(16, bits))
    # NaN keeps its sign only: its rounded bits might be those of an infinity.
    sign = b.binary("and", upper, b.like(0x8000, bits))
    nan = b.binary("or", sign, b.like(0x7FC0, bits))
    result = b.select(b.compare("uno", x, x), nan, rounded)
    return b.bitcast(_cast(b, "trunc", result, dtypes.uint16), dtypes.bfloat16)


def _to_odd(b: Function, x: Operand) -> Operand:
    # float64 to float32 such that rounding once more gives what rounding once had given: towards
    # zero, the last bit set if anything is lost.
    near = _cast(b, "fptrunc", x, dtypes.float32)
    back = _cast(b, "fpext", near, dtypes.float64)
    bits = b.bitcast(near, dtypes.int32)
    lost = b.compare("one", back, x)
    above = b.compare("ogt", b.intrinsic("fabs", back), b.intrinsic("fabs", x))
    bits = b.select(above, b.sub(bits, b.like(1, bits)), bits)
    bits = b.select(lost, b.binary("or", bits, b.like(1, bits)), bits)
    return b.bitcast(bits, dtypes.float32)


def _to_half(b: Function, x: Operand) -> Operand:
    if b.target.half:
        return _cast(b, "fptrunc", x, dtypes.float16)
    bits = b.bitcast(x, dtypes.uint32)
    size = b.binary("and", bits, b.like(0x7FFFFFFF, bits))
    sign = b.binary("and", b.binary("lshr", bits, b.like(16, bits)), b.like(0x8000, bits))
    # Normal results: the exponent's bias is 112 less, 13 bits of the mantissa are rounded away.
    odd = b.binary("and", b.binary("lshr", size, b.like(13, bits)), b.like(1, bits))
    normal = b.add(b.add(size, b.like(0xFFF - (112 << 23), bits)), odd)
    normal = b.binary("lshr", normal, b.like(13, bits))
    # Subnormal ones: next to ½ floats are 2⁻²⁴ apart, as they are.
    half = b.constant(0.5, dtypes.float32, x.lanes)
    moved = b.bitcast(b.add(b.intrinsic("fabs", x), half), dtypes.uint32)
    small = b.sub(moved, b.bitcast(half, dtypes.uint32))
    result = b.select(b.compare("ult", size, b.like(113 << 23, bits)), small, normal)
    infinite = b.compare("uge", size, b.like(143 << 23, bits))
    result = b.select(infinite, b.like(0x7C00, bits), result)
    payload = b.binary("and", b.binary("lshr", size, b.like(13, bits)), b.like(0x3FF, bits))
    nan = b.binary("or", payload, b.like(0x7E00, bits))
    result = b.select(b.compare("uno", x, x), nan, result)
    result = b.binary("or", result, sign)
    return b.bitcast(_cast(b, "trunc", result, dtypes.uint16), dtypes.float16)


def _from_half(b: Function, x: Operand) -> Operand:
    wide = _cast(b, "zext", b.bitcast(x, dtypes.uint16), dtypes.uint32)
    size = b.binary("and", wide, b.like(0x7FFF, wide))
    sign = b.binary("shl", b.sub(wide, size), b.like(16, wide))
    moved = b.bitcast(b.binary("shl", size, b.like(13, wide)), dtypes.float32)
    # The difference of the biases, by a product that is exact for subnormal numbers too.
    bits = b.bitcast(b.mul(moved, b.like(2.0**112, moved)), dtypes.uint32)
    special = b.binary("or", bits, b.like(0x7F800000, bits))
    bits = b.select(b.compare("uge", size, b.like(0x7C00, wide)), special, bits)
    return b.bitcast(b.binary("or", bits, sign), dtypes.float32)
