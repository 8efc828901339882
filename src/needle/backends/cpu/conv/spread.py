"""The copy of part of an image for groups of several channels: channels spread over the lanes."""

from __future__ import annotations

from dataclasses import dataclass

from needle.backends.cpu.conv.phase import Correlations
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.dtypes import DType

ARGUMENTS = {
    "image": "ptr",
    "target": "ptr noalias",
    "number": "i64",
    "top": "i64",
    "rows": "i64",
    "channel": "i64",
}


@dataclass(frozen=True)
class SpreadCopy:
    """Copies, for each pixel, what a vector of results is multiplied with.

    These are vectors, one for each channel of a group: the group's channel, in the lanes of all
    results of the group. Outside of the image they are zeros. A group has as many channels as
    results, and its lanes are neighbours: so the vectors are permutations of one.

    Attributes:
        work: what is read.
        lanes: of a vector.
        tail: how many of them exist; 0 for all.
        dtype: of all.
    """

    work: Correlations
    lanes: int
    tail: int
    dtype: DType

    def call(
        self, f: Function, target: str, number: Index, top: Index, rows: Index, channel: Index
    ) -> None:
        """Emit the copy of rows of an image from ``top`` on, which may lie outside, for the vector
        that begins with a channel."""
        work = self.work
        key = ("spread copy", work.source[1:], work.across, work.groups, self.lanes, self.tail)
        name = f.module.memo.get((key, self.dtype))
        if name is None:
            name = f.module.memo[key, self.dtype] = self._emit(f.module)
        given = ", ".join(f.operand(x).typed for x in (number, top, rows, channel))
        f.emit(f"call void @{name}(ptr %image, ptr {target}, {given})")

    def _emit(self, module: Module) -> str:
        f = Function(module, module.unique("copy_spread"), ARGUMENTS, inline="noinline")
        work, dtype, lanes = self.work, self.dtype, self.lanes
        _, height, width, channels = work.source
        depth, seen = work.depth, work.across
        length = seen.length(seen.extent)
        begin, end = (min(max(0, x), width) for x in (seen.low, seen.high))
        left = min(max(begin - seen.low, 0), length)
        right = left + max(end - begin, 0)
        mask = f.tail_mask(self.tail, lanes) if self.tail else None
        zero = f.constant(0, dtype, lanes)
        image = f.mul_index(f.argument("number"), height * width * channels)
        image = f.add_index(image, f.argument("channel"))

        def zeros(to: str, first: int, last: int) -> None:
            f.loop(
                first * depth, last * depth, 1, [],
                lambda i, _: f.store(zero, to, f.mul_index(i, lanes)),
            )  # fmt: skip

        def row(i: Index, _: list[Operand]) -> None:
            to = f.pointer("%target", f.mul_index(i, length * depth * lanes), dtype)
            here = f.operand(f.add_index(f.argument("top"), i))

            def exists() -> None:
                zeros(to, 0, left)
                start = f.add_index(image, f.mul_index(here, width * channels))
                source = f.pointer("%image", start, dtype)

                def pixel(c: Index, _: list[Operand]) -> None:
                    column = f.add_index(c, begin - left)
                    x = f.load(source, f.mul_index(column, channels), dtype, lanes, mask)
                    for j in range(depth):
                        spread = f.shuffle(x, x, [k // depth * depth + j for k in range(lanes)])
                        place = f.mul_index(f.add_index(f.mul_index(c, depth), j), lanes)
                        f.store(spread, to, place)

                f.loop(left, right, 1, [], pixel)
                zeros(to, right, length)

            outside = f.compare("uge", here, f.operand(height))
            f.branch(outside, lambda: zeros(to, 0, length), exists)

        f.loop(0, f.argument("rows"), 1, [], row)
        return f.end()
