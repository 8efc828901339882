"""Storing an element that was computed, or a vector of them."""

from __future__ import annotations

from needle.backends.cpu.emit import Emitter
from needle.backends.cpu.operands import Operand
from needle.compiler import index as ix
from needle.compiler.fusion import Piece


def write(e: Emitter, pointer: str, piece: Piece, x: Operand) -> None:
    """Store the current element of ``piece`` where it lies in memory."""
    value, at = piece.target
    write_to(e, pointer, ix.ravel(at, value.shape), x)


def write_to(e: Emitter, pointer: str, offset: ix.Index, x: Operand) -> None:
    """Store ``x``, or the lanes of it that exist, at an offset."""
    f = e.f
    if e.vector is None or e.vector not in offset.variables:
        f.store(x, pointer, e.scalar(offset).number)
        return
    x = f.splat(x, e.lanes)
    if offset.stride(e.vector) == 1:
        f.store(x, pointer, e.scalar(offset).number, e.mask)
        return
    f.scatter(x, pointer, e.lane_indices(offset).operand, e.mask)
