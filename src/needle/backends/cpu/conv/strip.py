"""Convolutions channel by channel: strips of neighbouring results in registers, channels in lanes.

Where a group has few channels, a vector of results takes a vector of what is read and a vector of
weights, lane by lane. A vector that is read once is used for all results of the strip that see it.
What is read outside of an image is zeros: rows come from a row of zeros then, and columns, which
are known when the code is made, are constants.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from needle import dtypes
from needle.backends.cpu.conv.finish import Finish, Resumed, call_function
from needle.backends.cpu.conv.phase import Line
from needle.backends.cpu.gemm.plan import split
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType

#: Multiply-adds that are emitted one after the other; more are run in a loop over kernel rows.
INLINE = 160


@dataclass(frozen=True)
class Strip:
    """Neighbouring results of a row.

    Attributes:
        size: how many.
        begin, end: which of the columns that they read are inside of the image, counted from the
            one that the first tap of the first result reads.
    """

    size: int
    begin: int
    end: int


def strips(line: Line, most: int, width: int | None) -> list[tuple[Strip, int, int]]:
    """Cut a row of results into near-equal strips.

    Args:
        line: the row.
        most: results of a strip.
        width: of the image; None if all that is read exists.

    Returns:
        The kinds of strips, and for each the first result and how many strips of it follow.
    """
    found: list[tuple[Strip, int, int]] = []
    at = 0
    for size, count in split(line.extent, most):
        for _ in range(count):
            base = at * line.stride + line.offset
            length = (size - 1) * line.stride + (line.taps - 1) * line.dilation + 1
            begin, end = 0, length
            if width is not None:
                begin = min(max(0, -base), length)
                end = max(begin, min(length, width - base))
            strip = Strip(size, begin, end)
            if found and found[-1][0] == strip:
                found[-1] = (strip, found[-1][1], found[-1][2] + 1)
            else:
                found.append((strip, at, 1))
            at += size
    return found


@dataclass(frozen=True)
class Reading:
    """How a strip reads.

    Attributes:
        strip: which results.
        down, across: the kernel's rows and columns.
        depth: vectors that are read for each tap.
        pitch: elements from one row to the next, one column, one of the vectors of a tap.
        height: rows of the image; None if all rows that are read exist.
    """

    strip: Strip
    down: Line
    across: Line
    depth: int
    pitch: tuple[int, int, int]
    height: int | None

    def first(self, f: Function, result: Index) -> Index:
        """Return where in a row is what a strip, of which this is the first result, reads first."""
        column = f.add_index(f.mul_index(result, self.across.stride), self.across.offset)
        return f.mul_index(f.add_index(column, self.strip.begin), self.pitch[1])

    def row(self, f: Function, source: str, zeros: str, row: Index, dtype: DType) -> str:
        """Return where a row is read, for where row 0 is; zeros for a row outside of the image."""
        if self.height is None:
            return f.pointer(source, f.mul_index(row, self.pitch[0]), dtype)
        inside = f.compare("ult", f.operand(row), f.operand(self.height))
        row = f.select(inside, f.operand(row), f.operand(0))
        here = f.pointer(source, f.mul_index(row, self.pitch[0]), dtype)
        return f.value(f"select i1 {inside.text}, ptr {here}, ptr {zeros}")

    def columns(self) -> list[tuple[int, list[tuple[int, int]]]]:
        """Return the columns that are read in order, and which results see them by which tap."""
        line = self.across
        seen: dict[int, list[tuple[int, int]]] = {}
        for p in range(self.strip.size):
            for t in range(line.taps):
                seen.setdefault(p * line.stride + t * line.dilation, []).append((p, t))
        return sorted(seen.items())

    def load(
        self,
        f: Function,
        row: str,
        at: tuple[int, int],
        vector: tuple[DType, int, Operand | None],
    ) -> Operand:
        """Return one of the vectors of a column, or zeros outside of the image."""
        column, j = at
        dtype, lanes, mask = vector
        if not self.strip.begin <= column < self.strip.end:
            return f.constant(0, dtype, lanes)
        offset = (column - self.strip.begin) * self.pitch[1] + j * self.pitch[2]
        return f.load(row, offset, dtype, lanes, mask)


@dataclass(frozen=True)
class StripKernel:
    """A function that computes a strip of results; `call` emits a call of it.

    Attributes:
        reading: how it reads.
        weight: elements of the weights from one kernel row to the next, one column, one of the
            vectors of a tap.
        lanes: of a vector; 0 for a scalar.
        tail: how many of them exist; 0 for all.
        finish: what becomes of the sums.
    """

    reading: Reading
    weight: tuple[int, int, int]
    lanes: int
    tail: int
    finish: Finish

    @property
    def arguments(self) -> dict[str, str]:
        """The function's arguments and their types."""
        given = dict.fromkeys(("source", "zeros", "weight"), "ptr noalias readonly")
        return {**given, "top": "i64", **self.finish.arguments()}

    def call(self, f: Function, **given: str | Index) -> None:
        """Emit a call.

        Args:
            f: the caller.
            given: ``source``, row 0 of the image at the strip's first column that exists;
                ``zeros``; ``weight`` of the first tap; ``top``, the row that the first tap reads;
                and what `Finish` needs.
        """
        call_function(f, _key(self), self.arguments, given, self._emit)

    def _emit(self, module: Module) -> str:
        reading, dtype = self.reading, self.finish.dtype
        f = MathFunction(module, module.unique("strip"), self.arguments, inline="noinline")
        mask = f.tail_mask(self.tail, self.lanes) if self.tail else None
        vector = (dtype, self.lanes, mask)
        taps, depth = reading.across.taps, reading.depth
        by_row, by_column, by_vector = self.weight

        def kernel_row(i: Index, sums: list[Operand]) -> list[Operand]:
            here = f.add_index(f.argument("top"), f.mul_index(i, reading.down.dilation))
            read = reading.row(f, "%source", "%zeros", here, dtype)
            start = f.pointer("%weight", f.mul_index(i, by_row), dtype)
            weights = [
                [
                    f.load(start, t * by_column + j * by_vector, *vector)
                    for j in range(reading.depth)
                ]
                for t in range(taps)
            ]
            sums = list(sums)
            for column, users in reading.columns():
                for j in range(depth):
                    x = reading.load(f, read, (column, j), vector)
                    for p, t in users:
                        sums[p] = f.fma(x, weights[t][j], sums[p])
            return sums

        sums = [f.constant(0, dtype, self.lanes)] * reading.strip.size
        each = reading.strip.size * taps * reading.depth
        if reading.down.taps * each > INLINE:
            sums = f.loop(0, reading.down.taps, 1, sums, kernel_row)
        else:
            for i in range(reading.down.taps):
                sums = kernel_row(i, sums)
        self.finish.emit(f, sums, [mask])
        return f.end()


@dataclass(frozen=True)
class StripSums:
    """A function that sums products with a cotangent over rows of strips: gradients by weights.

    Attributes:
        readings: how the strips of a row read, the first of each kind, with the number of strips
            that follow; all but the strip is the same. ``down`` has the kernel rows of the sums.
        cotangent: elements of the cotangent from one image to the next, one row, one column.
        image: elements of what is read from one image to the next.
        lanes, tail: as those of `StripKernel`.
        finish: what becomes of the sums, of one vector for each kernel row, column, vector of a
            tap.
        resumes: whether there are other blocks.
    """

    readings: tuple[tuple[Reading, int, int], ...]
    cotangent: tuple[int, int, int]
    image: int
    lanes: int
    tail: int
    finish: Finish
    resumes: bool

    @property
    def arguments(self) -> dict[str, str]:
        """The function's arguments and their types."""
        given = dict.fromkeys(("source", "zeros", "cotangent"), "ptr noalias readonly")
        counts = dict.fromkeys(("top", "images", "rows"), "i64")
        resumed = Resumed.arguments() if self.resumes else {}
        return {**given, **counts, **resumed, **self.finish.arguments()}

    def call(self, f: Function, **given: str | Index) -> None:
        """Emit a call.

        Args:
            f: the caller.
            given: ``source``, row 0 of the first image; ``zeros``; ``cotangent`` of the first
                result; ``top``, the row that the first tap of the first result reads; how many
                ``images`` and ``rows``; and what `Finish` and `Resumed` need.
        """
        call_function(f, _key(self), self.arguments, given, self._emit)

    def _emit(self, module: Module) -> str:
        f = MathFunction(module, module.unique("strip_sums"), self.arguments, inline="noinline")
        dtype = self.finish.dtype
        mask = f.tail_mask(self.tail, self.lanes) if self.tail else None
        by_image, by_row, _ = self.cotangent
        zeros = [f.constant(0, dtype, self.lanes)] * self.finish.box.size
        stride = self.readings[0][0].down.stride

        def image(n: Index, sums: list[Operand]) -> list[Operand]:
            source = f.pointer("%source", f.mul_index(n, self.image), dtype)
            g = f.pointer("%cotangent", f.mul_index(n, by_image), dtype)

            def row(r: Index, sums: list[Operand]) -> list[Operand]:
                top = f.add_index(f.argument("top"), f.mul_index(r, stride))
                here = f.pointer(g, f.mul_index(r, by_row), dtype)
                return self._row(f, source, (top, here), sums, mask)

            return f.loop(0, f.argument("rows"), 1, sums, row)

        sums = f.loop(0, f.argument("images"), 1, zeros, image)
        if self.resumes:
            ends = [f.argument(name, dtypes.bool) for name in ("first", "last")]
            Resumed(self.finish).emit(f, sums, [mask], *ends)
        else:
            self.finish.emit(f, sums, [mask])
        return f.end()

    def _row(
        self,
        f: Function,
        source: str,
        at: tuple[Index, str],
        sums: Sequence[Operand],
        mask: Operand | None,
    ) -> list[Operand]:
        """Emit the products of a row of results, whose first tap reads a row, and its cotangent."""
        dtype = self.finish.dtype
        top, cotangent = at
        vector = (dtype, self.lanes, mask)
        result = list(sums)
        for reading, first, count in self.readings:

            def strip(
                k: Index, sums: list[Operand], reading: Reading = reading, first: int = first
            ) -> list[Operand]:
                column = f.add_index(first, f.mul_index(k, reading.strip.size))
                g = f.pointer(cotangent, f.mul_index(column, self.cotangent[2]), dtype)
                return self._strip(f, reading, (source, top, column), g, sums, vector)

            result = f.loop(0, count, 1, result, strip)
        return result

    def _strip(
        self,
        f: Function,
        reading: Reading,
        at: tuple[str, Index, Index],
        cotangent: str,
        sums: Sequence[Operand],
        vector: tuple[DType, int, Operand | None],
    ) -> list[Operand]:
        """Emit the products of a strip."""
        source, top, column = at
        sums, taps = list(sums), reading.across.taps
        source = f.pointer(source, reading.first(f, column), vector[0])
        g = [f.load(cotangent, p * self.cotangent[2], *vector) for p in range(reading.strip.size)]
        for i in range(reading.down.taps):
            line = f.add_index(top, i * reading.down.dilation)
            row = reading.row(f, source, "%zeros", line, vector[0])
            for seen, users in reading.columns():
                for j in range(reading.depth):
                    x = reading.load(f, row, (seen, j), vector)
                    for p, t in users:
                        place = (i * taps + t) * reading.depth + j
                        sums[place] = f.fma(x, g[p], sums[place])
        return sums


def _key(kernel: StripKernel | StripSums) -> Hashable:
    epilogue = kernel.finish.epilogue.key if kernel.finish.epilogue else None
    return (replace(kernel, finish=replace(kernel.finish, epilogue=None)), epilogue)
