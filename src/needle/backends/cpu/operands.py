"""Operands: what the builder of LLVM IR computes with, and how LLVM spells types and constants."""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

import numpy as np

from needle import dtypes
from needle.dtypes import DType

#: By dtype, not by name: NumPy takes 3 µs to tell the name, and types are written very often.
_SCALARS = {
    dtypes.bool: "i1",
    dtypes.int8: "i8",
    dtypes.uint8: "i8",
    dtypes.int16: "i16",
    dtypes.uint16: "i16",
    dtypes.int32: "i32",
    dtypes.uint32: "i32",
    dtypes.int64: "i64",
    dtypes.uint64: "i64",
    dtypes.float16: "half",
    # Only moved and converted, by its bits: LLVM moves its own type by way of float32, which on
    # some processors calls a library.
    dtypes.bfloat16: "i16",
    dtypes.float32: "float",
    dtypes.float64: "double",
}
#: How intrinsics' names spell the floating types.
SUFFIX = {"half": "f16", "float": "f32", "double": "f64"}


class Operand(NamedTuple):
    """A value in a register, or a constant: its text, its dtype and its number of lanes.

    ``lanes`` 0 is a scalar; n ≥ 1 is a vector of n lanes.
    """

    text: str
    dtype: DType
    lanes: int = 0

    @property
    def scalar_type(self) -> str:
        """The LLVM type of one lane."""
        return _SCALARS[self.dtype]

    @property
    def type(self) -> str:
        """The LLVM type."""
        return vector_type(self.scalar_type, self.lanes)

    @property
    def typed(self) -> str:
        """Type and text, as an instruction's argument is written."""
        return f"{self.type} {self.text}"

    @property
    def is_float(self) -> bool:
        """Whether it is floating."""
        return dtypes.is_float(self.dtype)

    @property
    def is_signed(self) -> bool:
        """Whether it is a signed integer."""
        return self.dtype.kind == "i"


#: An index or an extent: known now, or an int64 operand.
Index: TypeAlias = "int | Operand"
#: Lines of a function, with places among them that are filled later.
Segment: TypeAlias = "list[str | Segment]"


def vector_type(scalar: str, lanes: int) -> str:
    """Return the LLVM type of ``lanes`` scalars; of one scalar for 0."""
    return f"<{lanes} x {scalar}>" if lanes else scalar


def scalar_type(dtype: DType) -> str:
    """Return the LLVM type of a value of ``dtype`` in a register."""
    return _SCALARS[dtype]


def memory_type(dtype: DType) -> str:
    """Return the LLVM type of an element of ``dtype`` in memory."""
    return "i8" if dtype == dtypes.bool else _SCALARS[dtype]


def mangled(dtype: DType, lanes: int) -> str:
    """Return how intrinsics' names spell a vector in memory."""
    element = memory_type(dtype)
    return f"v{lanes}{SUFFIX.get(element, element)}"


def literal(value: float | int | bool, dtype: DType) -> str:
    """Return the text of a scalar constant, exact to the last bit."""
    if dtype == dtypes.bool:
        return "1" if value else "0"
    if not dtypes.is_float(dtype):
        return str(int(value))
    if dtype == dtypes.float64 or dtype == dtypes.float32:
        # LLVM writes float constants as the bits of the double of the same value.
        with np.errstate(over="ignore"):
            rounded = float(dtype.type(value))
        return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"
    bits = int(np.asarray(value).astype(dtype).view(np.uint16))
    return f"0xH{bits:04X}" if dtype == dtypes.float16 else str(bits)
