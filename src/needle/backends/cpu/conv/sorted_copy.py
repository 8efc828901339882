"""Copies of images in which every tap sees its pixels side by side: zeros around, rows and columns
sorted by their remainders modulo the strides (`geometry.Slots`)."""

from __future__ import annotations

from collections.abc import Mapping

from needle import dtypes
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.dtypes import DType


class SortedCopy:
    """Emits the copy of what a band of rows sees of a group's channels.

    Args:
        f: where to emit.
        dtype: of the images.
        g: what the description says of extents: `depth`, `height`, `width`, `stride`, `across`,
            `first`, `slots`, `remainders`, `slot_rows`, `slot_columns`.
        slots: address of the table of remainders down.
        sides: address of the table of remainders across.
    """

    def __init__(
        self, f: Function, dtype: DType, g: Mapping[str, Operand], slots: str, sides: str
    ) -> None:
        self.f, self.dtype, self.g, self.slots, self.sides = f, dtype, g, slots, sides

    def emit(
        self,
        image: str,
        copy: str,
        band: Index,
        *,
        images: Index = 1,
        image_step: Index = 0,
        room: Index = 1,
    ) -> None:
        """Emit the copy of a group's channels.

        Args:
            image: address of the group's first channel.
            copy: address of the copy.
            band: the first row of the result that it serves.
            images: how many images stand one above the other in each plane of the copy.
            image_step: elements from one image to the next.
            room: for how many images the planes have room.
        """
        f, g = self.f, self.g
        height = f.mul_index(g["slot_rows"], g["slot_columns"])
        plane = f.mul_index(height, room)
        top = f.add_index(f.mul_index(band, g["stride"]), g["first"])
        channel_step = f.mul_index(g["height"], g["width"])

        # Everything in the order of memory: a row's last vector writes into the next row.
        def channel(c: Index, _: list[Operand]) -> None:
            source = f.pointer(image, f.mul_index(c, channel_step), self.dtype)

            def side(s: Index, _: list[Operand]) -> None:
                at = f.mul_index(s, 3)
                bounds = [f.load(self.sides, f.add_index(at, i), dtypes.int64) for i in range(3)]
                planes = f.add_index(f.mul_index(c, g["remainders"]), s)

                def slot(t: Index, _: list[Operand]) -> None:
                    remainder = f.load(self.slots, t, dtypes.int64)
                    place = f.add_index(f.mul_index(planes, g["slots"]), t)
                    target = f.pointer(copy, f.mul_index(place, plane), self.dtype)
                    start = f.add_index(top, remainder)

                    def one(m: Index, _: list[Operand]) -> None:
                        this = f.pointer(source, f.mul_index(m, image_step), self.dtype)
                        there = f.pointer(target, f.mul_index(m, height), self.dtype)

                        def row(r: Index, _: list[Operand]) -> None:
                            to = f.pointer(there, f.mul_index(r, g["slot_columns"]), self.dtype)
                            here = f.add_index(start, f.mul_index(r, g["stride"]))
                            self._row(this, f.operand(here), to, bounds)

                        f.loop(0, g["slot_rows"], 1, [], row)

                    f.loop(0, images, 1, [], one)

                f.loop(0, g["slots"], 1, [], slot)

            f.loop(0, g["remainders"], 1, [], side)

        f.loop(0, g["depth"], 1, [], channel)

    def _row(self, source: str, row: Operand, to: str, bounds: list[Operand]) -> None:
        """Emit the copy of one row: zeros, and over them what there is of the image."""
        f, g, lanes = self.f, self.g, self.f.target.lanes(self.dtype)
        begin, end, column = bounds
        zero = f.constant(0, self.dtype, lanes)
        f.loop(0, g["slot_columns"], lanes, [], lambda i, _: f.store(zero, to, i))
        exists = f.compare("ult", row, g["height"])

        def copy() -> None:
            place = f.add_index(f.mul_index(row, g["width"]), column)
            seen = f.pointer(source, place, self.dtype)
            target = f.pointer(to, begin, self.dtype)
            count = f.sub(end, begin)

            def neighbours() -> None:
                move_neighbours(f, self.dtype, count, seen, target)

            def strided() -> None:
                def one(i: Index, _: list[Operand]) -> None:
                    x = f.load(seen, f.mul_index(i, g["across"]), self.dtype)
                    f.store(x, target, i)

                f.loop(0, count, 1, [], one)

            f.branch(f.compare("eq", g["across"], f.operand(1)), neighbours, strided)

        f.branch(exists, copy)


def move_neighbours(f: Function, dtype: DType, count: Operand, source: str, target: str) -> None:
    """Emit the copy of ``count`` elements that lie next to each other."""
    lanes = f.target.lanes(dtype)
    whole = f.mul_index(f.floordiv_index(count, lanes), lanes)

    def vector(i: Index, _: list[Operand]) -> None:
        f.store(f.load(source, i, dtype, lanes), target, i)

    f.loop(0, whole, lanes, [], vector)

    def tail() -> None:
        mask = f.tail_mask(f.sub_index(count, whole), lanes)
        f.store(f.load(source, whole, dtype, lanes, mask), target, whole, mask)

    f.branch(f.compare("ult", f.operand(whole), count), tail)
