"""Arithmetic on indices that the loops of all forms share: parts of work, of axes, of sums."""

from __future__ import annotations

from collections.abc import Callable

from needle.backends.cpu.conv.phase import Line
from needle.backends.cpu.conv.sums_plan import Summed
from needle.backends.cpu.llvm import Function, Index, Operand


def share(f: Function, count: Index, part: Index, parts: int) -> tuple[Index, Index]:
    """Return which of ``count`` things are in one of ``parts`` equal parts: first, last + 1."""
    first, last = (
        f.floordiv_index(f.mul_index(count, f.add_index(part, i)), parts) for i in (0, 1)
    )
    return first, last


def each_part(
    f: Function,
    bounds: tuple[Index, Index],
    size: int,
    extent: int,
    visit: Callable[[Index, int], None],
) -> None:
    """Emit ``visit(start, size)`` for parts of a block of an axis: whole ones, and what is left at
    the end of the axis, where alone a block's extent is no multiple of the size."""
    start, stop = bounds
    if size == 1:
        f.loop(start, stop, 1, [], lambda i, _: visit(i, 1))
        return
    left = extent % size
    whole = f.sub_index(stop, f.mod_index(f.sub_index(stop, start), size))
    f.loop(start, whole, size, [], lambda i, _: visit(i, size))
    if left:
        f.loop(whole, stop, left, [], lambda i, _: visit(i, left))


def positive(f: Function, x: Index) -> Index:
    """Return x, or 0 if it is negative."""
    if isinstance(x, int):
        return max(x, 0)
    zero = f.operand(0)
    return f.select(f.compare("sgt", x, zero), x, zero)


def place_of(f: Function, number: Index, line: Line) -> Index:
    """Return where a result of a line stands in the image."""
    return f.add_index(f.mul_index(number, line.step), line.start)


def first_and_last(
    f: Function, blocks: Summed, images: int, image: Index, band: Index
) -> tuple[Operand, Operand]:
    """Return whether a block, given its first image and its band, is the first and the last."""
    following = f.operand(f.add_index(image, blocks.images))
    is_last = f.compare("sge", following, f.operand(images))
    ends = f.compare("eq", f.operand(band), f.operand(max(blocks.bands - 1, 0)))
    is_first = f.compare("eq", f.operand(image), f.operand(0))
    starts = f.compare("eq", f.operand(band), f.operand(0))
    return f.binary("and", is_first, starts), f.binary("and", is_last, ends)
