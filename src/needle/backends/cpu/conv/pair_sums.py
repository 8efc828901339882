"""Gradients by weights of pairs of bfloat16: sums over the pixels of a batch, two by two.

A task takes one block of pixels after the other: copies images and cotangent to lines of pixels,
turns both round, and adds to its sums what the block gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from needle import dtypes
from needle.backends.cpu.conv.copying import PaddedCopy, each_vector
from needle.backends.cpu.conv.finish import call_function
from needle.backends.cpu.conv.pair_products import (
    Visit,
    convert_sums,
    stored_vectors,
    sum_pairs,
)
from needle.backends.cpu.conv.pair_sums_plan import PairSumsPlan
from needle.backends.cpu.conv.parts import share
from needle.backends.cpu.conv.phase import Seen
from needle.backends.cpu.conv.spec import ConvSpec, Epilogue, Place
from needle.backends.cpu.gemm.pair_instructions import begin_tiles, end_tiles, has_tiles
from needle.backends.cpu.gemm.vnni import DEPTH, LINE, SIDE, TILE, turn_words
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction

_PAIRED = [i // 2 + SIDE * (i % 2) for i in range(2 * SIDE)]


@dataclass(frozen=True)
class PairSumsTile:
    """A function that adds the products of a block to a tile of sums; `call` emits a call of it.

    Attributes:
        down: items.
        across: strips of output channels.
        tail: how many channels of the last strip exist; 0 for all.
        plan: where everything lies.
        result: the result's shape.
        resumes: whether there are several blocks.
        epilogue: what is done with the sums; None stores them, as bfloat16.
    """

    down: int
    across: int
    tail: int
    plan: PairSumsPlan
    result: tuple[int, ...]
    resumes: bool
    epilogue: Epilogue | None

    def call(self, f: Function, **given: str | Index) -> None:
        """Emit a call.

        Args:
            f: the caller.
            given: ``a``, the turned images; ``b``, the first strip of the cotangent's tiles;
                ``out``, ``extra``; ``partial``, sums so far; the first ``item`` and ``channel``;
                how many ``steps`` of 32 places; whether the block is the ``first``, the ``last``.
        """
        arguments = dict.fromkeys(("a", "b"), "ptr readonly")
        arguments |= dict.fromkeys(("out", "extra", "partial"), "ptr")
        arguments |= dict.fromkeys(("item", "channel", "steps"), "i64")
        arguments |= dict.fromkeys(("first", "last"), "i1")
        epilogue = self.epilogue.key if self.epilogue else None
        shape = (self.down, self.across, self.tail, self.plan, self.result, self.resumes)
        key = ("pairs of a gradient by the weight", shape, epilogue)
        call_function(f, key, arguments, given, lambda m: self._emit(m, arguments))

    def _emit(self, module: Module, arguments: dict[str, str]) -> str:
        name = module.unique(f"sum_pairs_{self.down * SIDE}x{self.across * SIDE}")
        f = MathFunction(module, name, arguments, inline="noinline")
        plan, phase = self.plan, self.plan.work.phases[0]
        bytes_ = self.down * self.across * TILE
        sums = "%partial" if self.resumes else f.at_entry(f"alloca [{bytes_} x i8], align 64")
        rows = []
        for i in range(self.down):
            tap, strip = self._item(f, i)
            row, column = (op(tap, phase.across.taps) for op in (f.floordiv_index, f.mod_index))
            place = f.mul_index(row, phase.down.dilation * plan.line[1])
            place = f.add_index(place, f.mul_index(column, phase.across.dilation))
            offset = f.add_index(f.mul_index(place, 2), f.mul_index(strip, SIDE * plan.channel))
            rows.append(f.pointer("%a", offset, dtypes.uint8))
        size = plan.places // DEPTH * TILE
        strips = [f.pointer("%b", j * size, dtypes.uint8) for j in range(self.across)]

        def each(sums: Sequence[Operand], visit: Visit) -> list[Operand]:
            def step(k: Index, sums: list[Operand]) -> list[Operand]:
                return visit(f.mul_index(k, LINE), k, sums)

            return f.loop(0, f.argument("steps"), 1, sums, step, runs=True)

        resumed = f.logical_not(f.argument("first", dtypes.bool)) if self.resumes else None
        sum_pairs(f, sums, (rows, plan.channel), strips, each, resumed)
        if self.resumes:
            f.branch(f.argument("last", dtypes.bool), lambda: self._finish(f, sums))
        else:
            self._finish(f, sums)
        return f.end()

    def _item(self, f: Function, i: int) -> tuple[Index, Index]:
        """Return the tap and the strip of input channels of an item."""
        item = f.add_index(f.argument("item"), i)
        inside = self.plan.strips[0]
        return f.floordiv_index(item, inside), f.mod_index(item, inside)

    def _finish(self, f: Function, sums: str) -> None:
        """Emit the epilogue, or the storing, of what exists."""
        epilogue = self.epilogue
        state = epilogue.begin(f) if epilogue and epilogue.begin else None
        _, columns, depth, outs = self.result
        mask = f.tail_mask(self.tail, SIDE) if self.tail else None

        def store(i: int, tap: Index, inside: Index, r: Index) -> None:
            line = f.mul_index(f.add_index(r, i * SIDE), SIDE * self.across)
            start = f.pointer(sums, line, dtypes.float32)
            row, column = f.floordiv_index(tap, columns), f.mod_index(tap, columns)
            for first, lanes, mine in stored_vectors(f, self.across, mask):
                x = f.load(start, first, dtypes.float32, lanes)
                channel = f.add_index(f.argument("channel"), first)
                if epilogue is not None:
                    epilogue.store(f, x, Place(row, column, inside, channel, lanes, mine), state)
                    continue
                place = f.add_index(f.mul_index(tap, depth), inside)
                place = f.add_index(f.mul_index(place, outs), channel)
                f.store(convert_sums(f, x), "%out", place, mine)

        for i in range(self.down):
            tap, strip = self._item(f, i)
            begin = f.mul_index(strip, SIDE)
            count = f.min_index(f.sub_index(depth, begin), SIDE)

            def channel(r: Index, _: list[Operand], i: int = i, tap: Index = tap) -> None:
                store(i, tap, f.add_index(begin, r), r)  # noqa: B023

            f.loop(0, count, 1, [], channel, runs=True)
        if epilogue and epilogue.end:
            epilogue.end(f, state)


class PairSums:
    """Emits the body of a kernel's function."""

    def __init__(self, f: Function, spec: ConvSpec, plan: PairSumsPlan) -> None:
        self.f, self.spec, self.plan, self.work = f, spec, plan, plan.work
        low = dtypes.bfloat16
        # The workspace: copies of images and cotangent, both turned, sums.
        images, cotangent = plan.copied
        self.cotangent = f.pointer("%workspace", images, low)
        self.turned = f.pointer(self.cotangent, cotangent, low)
        self.tiles = f.pointer(self.turned, plan.turned[0], dtypes.uint8)
        self.sums = f.pointer(self.tiles, plan.turned[1], dtypes.uint8)
        self.items: tuple[Index, Index] = (0, plan.items)
        self.panels: tuple[Index, Index] = (0, plan.panels)

    def emit(self) -> None:
        """Emit the task: block after block."""
        f, plan = self.f, self.plan
        tiles = has_tiles(f.target)
        if tiles:
            begin_tiles(f)
        task: Index = f.argument("task") if plan.tasks > 1 else 0
        items, panels = f.floordiv_index(task, plan.grid[1]), f.mod_index(task, plan.grid[1])
        self.items = share(f, plan.items, items, plan.grid[0])
        self.panels = share(f, plan.panels, panels, plan.grid[1])
        # What is read beyond the last image meets zeros of the cotangent, and is to be a number.
        self._clear("%workspace", 0, plan.copied[0])
        f.loop(0, plan.blocks, 1, [], lambda b, _: self._block(b))
        if tiles:
            end_tiles(f)

    def _clear(self, base: str, start: Index, count: int) -> None:
        f, dtype = self.f, self.spec.dtype

        def zero(at: Index, lanes: int) -> None:
            f.store(f.constant(0, dtype, lanes), base, f.add_index(start, at))

        each_vector(f, dtype, count, zero)

    def _block(self, b: Index) -> None:
        f, plan, work = self.f, self.plan, self.work
        image = f.mul_index(f.floordiv_index(b, plan.bands), plan.images)
        row = f.mul_index(f.mod_index(b, plan.bands), plan.rows)
        images = f.min_index(f.sub_index(work.source[0], image), plan.images)
        rows = f.min_index(f.sub_index(work.down.extent, row), plan.rows)
        line_rows, columns = plan.line
        along = f.mul_index(line_rows if plan.images > 1 else rows, columns)
        count = f.mul_index(images, along)
        steps = f.floordiv_index(f.add_index(count, DEPTH - 1), DEPTH)
        self._copy_images((image, images), (row, rows))
        self._copy_cotangent((image, images), (row, rows), count)
        self._turn(f.add_index(f.mul_index(steps, DEPTH), plan.reach))
        self._pair(steps)
        last = f.compare("eq", f.operand(b), f.operand(plan.blocks - 1))
        self._multiply(steps, f.compare("eq", f.operand(b), f.operand(0)), last)

    # Images and cotangent

    def _copy_images(self, images: tuple[Index, Index], rows: tuple[Index, Index]) -> None:
        f, plan, work = self.f, self.plan, self.work
        copy = PaddedCopy(
            work.source, work.across, work.depth, self.spec.dtype, None, plan.shared[1]
        )
        top = f.add_index(rows[0], work.down.low)
        length = f.add_index(f.sub_index(rows[1], 1), work.down.span)
        size = plan.image_rows * plan.line[1] * work.depth

        def one(i: Index, _: list[Operand]) -> None:
            to = f.pointer("%workspace", f.mul_index(i, size), self.spec.dtype)
            copy.call(f, to, f.add_index(images[0], i), top, length)

        f.loop(0, images[1], 1, [], one, runs=True)

    def _copy_cotangent(
        self, images: tuple[Index, Index], rows: tuple[Index, Index], count: Index
    ) -> None:
        """Emit the copy of the cotangent, with zeros where the line has no results."""
        f, plan, work = self.f, self.plan, self.work
        line_rows, columns = plan.line
        seen = Seen(0, 1, 1, columns)
        copy = PaddedCopy(work.result, seen, work.outs, self.spec.dtype, None)
        size = line_rows * columns * work.outs
        length = line_rows if plan.images > 1 else rows[1]

        def one(i: Index, _: list[Operand]) -> None:
            to = f.pointer(self.cotangent, f.mul_index(i, size), self.spec.dtype)
            copy.call(f, to, f.add_index(images[0], i), rows[0], length, images="%weight")

        f.loop(0, images[1], 1, [], one, runs=True)
        self._clear(self.cotangent, f.mul_index(count, work.outs), DEPTH * work.outs + DEPTH)

    def _turn(self, places: Index) -> None:
        """Emit the turning of images: the pixels of a channel side by side."""
        f, plan, depth, low = self.f, self.plan, self.work.depth, self.spec.dtype
        scratch = f.at_entry(f"alloca [{TILE} x i8], align 64")

        def tile(at: Index, strip: Index) -> None:
            start = f.add_index(f.mul_index(at, depth), f.mul_index(strip, SIDE))
            source = f.pointer("%workspace", start, low)

            def pair(i: Index, _: list[Operand]) -> None:
                first = f.mul_index(i, 2 * depth)
                even, odd = (
                    f.load(source, f.add_index(first, j * depth), low, SIDE) for j in (0, 1)
                )
                f.store(f.shuffle(even, odd, _PAIRED), scratch, f.mul_index(i, DEPTH))

            f.loop(0, SIDE, 1, [], pair)
            to = f.add_index(f.mul_index(strip, SIDE * plan.channel), f.mul_index(at, 2))
            target = f.pointer(self.turned, to, dtypes.uint8)
            turn_words(f, scratch, LINE, target, f.operand(SIDE), plan.channel)

        def chunk(at: Index, _: list[Operand]) -> None:
            f.loop(0, plan.strips[0], 1, [], lambda strip, _: tile(at, strip))

        f.loop(0, places, DEPTH, [], chunk, runs=True)

    def _pair(self, steps: Index) -> None:
        """Emit the tiles of the cotangent: 16 pairs of pixels × 16 channels, of the task's."""
        f, plan, outs, low = self.f, self.plan, self.work.outs, self.spec.dtype
        first, last = (f.mul_index(p, plan.across) for p in self.panels)
        last = f.min_index(last, plan.strips[1])

        def strip(j: Index, _: list[Operand]) -> None:
            to = f.pointer(self.tiles, f.mul_index(j, plan.places // DEPTH * TILE), dtypes.uint8)
            source = f.pointer(self.cotangent, f.mul_index(j, SIDE), low)

            def pair(i: Index, _: list[Operand]) -> None:
                start = f.mul_index(i, 2 * outs)
                even, odd = (
                    f.load(source, f.add_index(start, j * outs), low, SIDE) for j in (0, 1)
                )
                f.store(f.shuffle(even, odd, _PAIRED), to, f.mul_index(i, DEPTH))

            f.loop(0, f.mul_index(steps, SIDE), 1, [], pair, runs=True)

        f.loop(first, last, 1, [], strip)

    # Products

    def _multiply(self, steps: Index, first: Operand, last: Operand) -> None:
        """Emit the tiles of the task: panels of output channels, items."""
        f, plan, outs = self.f, self.plan, self.work.outs
        edge = plan.across * SIDE

        def panel(p: Index, across: int, tail: int) -> None:
            def tile(item: Index, down: int) -> None:
                kernel = PairSumsTile(
                    down, across, tail, plan, self.spec.result, plan.blocks > 1, self.spec.epilogue
                )
                strip = f.mul_index(p, plan.across)
                place = f.add_index(f.mul_index(p, plan.items), item)
                kernel.call(
                    f,
                    a=self.turned,
                    b=f.pointer(
                        self.tiles, f.mul_index(strip, plan.places // DEPTH * TILE), dtypes.uint8
                    ),
                    out="%out",
                    extra="%extra",
                    partial=f.pointer(
                        self.sums, f.mul_index(place, plan.across * TILE), dtypes.uint8
                    ),
                    item=item,
                    channel=f.mul_index(strip, SIDE),
                    steps=steps,
                    first=first,
                    last=last,
                )

            low, high = self.items
            whole = f.sub_index(high, f.mod_index(f.sub_index(high, low), plan.down))
            f.loop(low, whole, plan.down, [], lambda item, _: tile(item, plan.down))
            f.loop(whole, high, 1, [], lambda item, _: tile(item, 1))

        begin, end = self.panels
        full = outs // edge
        f.loop(begin, f.min_index(end, full), 1, [], lambda p, _: panel(p, plan.across, 0))
        if outs % edge:
            across, tail = -(-(outs % edge) // SIDE), outs % SIDE
            if isinstance(end, int):
                panel(full, across, tail)
            else:
                is_last = f.compare("eq", end, f.operand(plan.panels))
                f.branch(is_last, lambda: panel(full, across, tail))
