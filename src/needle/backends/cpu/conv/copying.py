"""The copy of images into the workspace, with zeros around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from needle.backends.cpu.conv.phase import Seen
from needle.backends.cpu.conv.spec import Place, Prologue
from needle.backends.cpu.gemm.plan import uses_masks
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType

#: Vectors that are copied in one turn of a loop.
UNROLLED = 4

ARGUMENTS = {
    "image": "ptr",
    "extra": "ptr",
    "target": "ptr noalias",
    "number": "i64",
    "top": "i64",
    "rows": "i64",
    "channel": "i64",
}


@dataclass(frozen=True)
class PaddedCopy:
    """Copies rows of an image, with what is read outside of it as zeros.

    Attributes:
        shape: of the images.
        across: what is read of a row.
        channels: how many are copied.
        dtype: of elements.
        prologue: computes the elements.
        shared: how many of the zeros between two rows are those of both.
    """

    shape: tuple[int, ...]
    across: Seen
    channels: int
    dtype: DType
    prologue: Prologue | None
    shared: int = 0

    def call(
        self,
        f: Function,
        target: str,
        number: Index,
        top: Index,
        rows: Index,
        channel: Index = 0,
        images: str = "%image",
    ) -> None:
        """Emit the copy of rows of one of the images, from ``top`` on, which may lie outside, and
        of channels from ``channel`` on."""
        key = ("padded copy", self.shape[1:], self.across, self.channels, self.dtype, self.shared)
        prologue = self.prologue.key if self.prologue else None
        name = f.module.memo.get((key, prologue))
        if name is None:
            name = f.module.memo[key, prologue] = self._emit(f.module)
        places = ", ".join(f.operand(x).typed for x in (number, top, rows, channel))
        f.emit(f"call void @{name}(ptr {images}, ptr %extra, ptr {target}, {places})")

    def _emit(self, module: Module) -> str:
        f = MathFunction(module, module.unique("copy_padded"), ARGUMENTS, inline="noinline")
        _, height, width, every = self.shape
        channels = self.channels
        seen = self.across
        length = seen.length(seen.extent)
        begin, end = (min(max(0, x), width) for x in (seen.low, seen.high))
        end = max(begin, end)
        left = (begin - seen.low) * channels if end > begin else length * channels
        inside = (end - begin) * channels
        pitch = (length - self.shared) * channels
        right = length * channels - left - inside
        number, top = f.argument("number"), f.argument("top")
        channel: Index = f.argument("channel") if channels < every else 0
        source = f.add_index(f.mul_index(number, height * width * every), channel)
        state = self.prologue.begin(f) if self.prologue and self.prologue.begin else None

        def zeros(start: str, count: int) -> None:
            def put(at: Index, lanes: int) -> None:
                f.store(f.constant(0, self.dtype, lanes), start, at)

            each_vector(f, self.dtype, count, put)

        def row(i: Index, _: list[Operand]) -> None:
            to = f.pointer("%target", f.mul_index(i, pitch), self.dtype)
            here = f.operand(f.add_index(top, i))

            def exists() -> None:
                zeros(to, left)
                middle = f.pointer(to, left, self.dtype)
                place = f.add_index(source, f.mul_index(here, width * every))
                row = f.pointer("%image", f.add_index(place, begin * every), self.dtype)
                if self.prologue is not None:
                    self._computed(f, state, (here, channel), (begin, end), middle)
                elif channels == every:
                    self._copy(f, row, middle, inside)
                else:
                    self._some(f, row, middle, end - begin)
                zeros(f.pointer(middle, inside, self.dtype), right)

            outside = f.compare("uge", here, f.operand(height))
            f.branch(outside, lambda: zeros(to, length * channels), exists)

        f.loop(0, f.argument("rows"), 1, [], row)
        return f.end()

    def _copy(self, f: Function, source: str, target: str, count: int) -> None:
        def copy(at: Index, lanes: int) -> None:
            f.store(f.load(source, at, self.dtype, lanes), target, at)

        each_vector(f, self.dtype, count, copy)

    def _some(self, f: Function, source: str, target: str, pixels: int) -> None:
        """Emit the copy of some channels of neighbouring pixels."""

        def pixel(j: Index, _: list[Operand]) -> None:
            here = f.pointer(source, f.mul_index(j, self.shape[3]), self.dtype)
            to = f.pointer(target, f.mul_index(j, self.channels), self.dtype)
            self._copy(f, here, to, self.channels)

        f.loop(0, pixels, 1, [], pixel)

    def _computed(
        self,
        f: Function,
        state: Any,
        start: tuple[Operand, Index],
        columns: tuple[int, int],
        target: str,
    ) -> None:
        """Emit the computation of a row, pixel by pixel; ``start`` is its row and first channel."""
        prologue = self.prologue
        assert prologue is not None
        row, channel = start
        channels, dtype = self.channels, self.dtype
        lanes = f.target.lanes(dtype)
        masks = uses_masks(f.target, dtype)
        whole = channels // lanes * lanes

        def pixel(j: Index, _: list[Operand]) -> None:
            to = f.pointer(target, f.mul_index(f.sub_index(j, columns[0]), channels), dtype)

            def vector(c: Index, lanes: int, mask: Operand | None = None) -> None:
                at = f.add_index(channel, c)
                place = Place(f.argument("number"), row, j, at, lanes, mask)
                f.store(prologue.load(f, place, state), to, c, mask)

            f.loop(0, whole, lanes, [], lambda c, _: vector(c, lanes))
            if whole < channels and masks:
                vector(whole, lanes, f.tail_mask(channels - whole, lanes))
            elif whole < channels:
                f.loop(whole, channels, 1, [], lambda c, _: vector(c, 0))

        f.loop(*columns, 1, [], pixel)


def each_vector(f: Function, dtype: DType, count: int, visit: Callable[[Index, int], None]) -> None:
    """Emit ``visit(at, lanes)`` for vectors that cover ``count`` elements exactly: several in each
    turn of a loop, then one after the other, then narrower ones, and scalars."""
    lanes = f.target.lanes(dtype)
    turn = UNROLLED * lanes
    whole = count // turn * turn

    def several(i: Index, _: list[Operand]) -> None:
        for v in range(UNROLLED):
            visit(f.add_index(i, v * lanes), lanes)

    f.loop(0, whole, turn, [], several)
    at, width = whole, lanes
    while at < count:
        if count - at >= width:
            visit(at, width if width > 1 else 0)
            at += width
        else:
            width //= 2
