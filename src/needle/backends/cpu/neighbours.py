"""Neighbours that come from one computation: the words of a random block.

Where vectors run along the elements, the computation is done once for all elements of a block of
vectors, each lane for another group of neighbours, and the results are dealt out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from needle import dtypes
from needle.backends.cpu.emit import Cell, Emitter
from needle.backends.cpu.operands import Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.compiler import index as ix
from needle.graph.ir import Value


def neighbour(
    e: Emitter,
    value: Value,
    place: ix.Index,
    count: int,
    function: Callable[..., Any],
    cells: Sequence[Cell],
) -> Cell:
    """Return the element at ``place``; see `ElementBuilder.several`."""
    group = _group(e, place, count, cells)
    if group is not None:
        return group.element(value, function)
    number, which = (e.cell_of(i) for i in (place // count, place % count))

    def chosen(f: MathFunction, number: Operand, which: Operand, *operands: Operand) -> Operand:
        first, *others = function(f, number, *operands)
        for i, other in enumerate(others, 1):
            first = f.select(f.compare("eq", which, f.like(i, which)), other, first)
        result: Operand = first
        return result

    return e.combine(chosen, [number, which, *cells], value.dtype)


def _group(e: Emitter, place: ix.Index, count: int, cells: Sequence[Cell]) -> _Group | None:
    """Return how to compute elements for a whole block of vectors, if that can be."""
    block = e.block
    if block is None or e.vector is None or place.stride(e.vector) != 1 or e.lanes % count:
        return None
    rest = place.without(e.vector)
    if rest.constant % count or any(c % count for _, c in rest.terms):
        return None
    if isinstance(block.first.number, int) and block.first.number % count:
        return None
    if any(c.operand.lanes for c in cells):
        return None
    return _Group(e, place, count, cells)


@dataclass
class _Group:
    """The elements of a block of vectors."""

    e: Emitter
    place: ix.Index
    count: int
    cells: Sequence[Cell]

    def element(self, value: Value, function: Callable[..., Any]) -> Cell:
        """Return the current vector of the block; all are computed when the first is asked for."""
        e = self.e
        what = ("neighbours", value, self.place)
        found = e.find((what, e.slot))
        if found is None:
            for slot, cell in enumerate(self._compute(value, function)):
                e.keep((what, slot), cell, False)
            found = e.find((what, e.slot))
            assert found is not None
        return found

    def _compute(self, value: Value, function: Callable[..., Any]) -> list[Cell]:
        e, f, block = self.e, self.e.f, self.e.block
        assert block is not None
        assert e.vector is not None
        rest = e.scalar(self.place.without(e.vector))
        groups = e.lanes * block.slots // self.count
        level = max(rest.level, block.first.level)
        with e.at(level):
            start = f.add_index(rest.number, block.first.number)
            first = f.splat(f.operand(f.floordiv_index(start, self.count)), groups)
            numbers = f.add(first, f.iota(dtypes.int64, groups))
        parts: list[Operand] = []

        def compute(f: MathFunction, *operands: Operand) -> Operand:
            parts.extend(function(f, *operands))
            return parts[0]

        level = e.combine(compute, [Cell(numbers, level), *self.cells], value.dtype).level
        with e.at(level):
            return [Cell(x, level) for x in _dealt(f, parts, e.lanes, block.slots)]


def _dealt(f: MathFunction, parts: list[Operand], lanes: int, slots: int) -> list[Operand]:
    """Return vectors of the first lane of all parts, then the second of all, and so on.

    The number of parts is a power of two.
    """
    count = len(parts)
    while len(parts) > 1:
        width = parts[0].lanes
        half = len(parts) // 2
        # Part i and part i + half become neighbours: what was 0 1 2 3 is 0 2 | 1 3, then 0 1 2 3.
        merged = []
        for x, y in zip(parts[:half], parts[half:], strict=True):
            merged.append(f.shuffle(x, y, [k // 2 + k % 2 * width for k in range(2 * width)]))
        parts = merged
    assert parts[0].lanes == lanes * slots, count
    if slots == 1:
        return parts
    return [f.shuffle(parts[0], parts[0], range(s * lanes, (s + 1) * lanes)) for s in range(slots)]
