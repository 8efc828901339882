"""Convolutions of pairs of bfloat16: the loops around the tiles.

A task takes blocks of images, or bands of rows of one image. It copies a block with zeros around
it, if anything outside is read, and either reads it as one line of pixels or gathers the products
of each pixel; then tiles of pixels meet panels of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from needle import dtypes
from needle.backends.cpu.conv.copying import PaddedCopy, each_vector
from needle.backends.cpu.conv.pair_plan import PairConvPlan
from needle.backends.cpu.conv.pair_tile import PairConvTile, Steps
from needle.backends.cpu.conv.parts import share
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.gemm.pair_instructions import begin_tiles, end_tiles, has_tiles
from needle.backends.cpu.gemm.plan import uses_masks
from needle.backends.cpu.gemm.vnni import DEPTH, LINE, SIDE, TILE
from needle.backends.cpu.llvm import Function, Index, Operand


class Pixels(NamedTuple):
    """A part of a block's line of pixels whose products can be read.

    Attributes:
        source: the products of the first.
        first: its number in the line.
        length: how many.
    """

    source: str
    first: Index
    length: Index


class Panel(NamedTuple):
    """Channels that are computed together: number within the group, strips, and how many channels
    of the last exist (0: all)."""

    number: Index
    across: int
    tail: int


class PairConvolution:
    """Emits the body of a kernel's function."""

    def __init__(self, f: Function, spec: ConvSpec, plan: PairConvPlan) -> None:
        self.f, self.spec, self.plan, self.work = f, spec, plan, plan.work
        self.gathered = f.pointer("%workspace", plan.copied, dtypes.bfloat16)
        # The task's groups and panels of each.
        self.groups: tuple[Index, Index] = (0, 1)
        self.panels: tuple[Index, Index] = (0, plan.panels)
        # The block that is being emitted.
        self.image: Index = 0
        self.row: Index = 0

    def emit(self) -> None:
        """Emit the task: block after block."""
        f, plan, work = self.f, self.plan, self.work
        tiles = has_tiles(f.target)
        if tiles:
            begin_tiles(f)
        task: Index = f.argument("task") if plan.tasks > 1 else 0
        part, channels = f.floordiv_index(task, plan.grid[1]), f.mod_index(task, plan.grid[1])
        mine = share(f, plan.parts, channels, plan.grid[1])
        if work.groups > 1:
            self.groups = mine
        else:
            self.panels = mine

        def block(b: Index, _: list[Operand]) -> None:
            self.image = f.mul_index(f.floordiv_index(b, plan.bands), plan.images)
            self.row = f.mul_index(f.mod_index(b, plan.bands), plan.rows)
            self._block()

        f.loop(*share(f, plan.blocks, part, plan.grid[0]), 1, [], block)
        if tiles:
            end_tiles(f)

    def _block(self) -> None:
        f, plan, work = self.f, self.plan, self.work
        images = f.min_index(f.sub_index(work.source[0], self.image), plan.images)
        rows = f.min_index(f.sub_index(work.down.extent, self.row), plan.rows)
        down, across = plan.line
        count = f.add_index(f.mul_index(f.sub_index(images, 1), down), f.sub_index(rows, 1))
        count = f.add_index(f.mul_index(count, across), work.across.extent)
        if plan.copies:
            self._copy(images, rows)

        def group(g: Index, _: list[Operand]) -> None:
            channel = f.mul_index(g, work.depth)
            if plan.is_line:
                source = f.pointer("%workspace", channel, dtypes.bfloat16)
                self._multiply(g, Pixels(source, 0, count))
                return

            def chunk(first: Index, _: list[Operand]) -> None:
                some = f.min_index(f.sub_index(count, first), plan.chunk)
                self._gather(channel, first, some)
                self._multiply(g, Pixels(self.gathered, first, some))

            f.loop(0, count, plan.chunk, [], chunk)

        f.loop(*self.groups, 1, [], group)

    # Images

    def _copy(self, images: Index, rows: Index) -> None:
        """Emit the copy of the block, zeros around it."""
        f, plan, work = self.f, self.plan, self.work
        channels = work.source[3]
        copy = PaddedCopy(work.source, work.across, channels, self.spec.dtype, None, plan.shared[1])
        top = f.add_index(f.mul_index(self.row, work.down.stride), work.down.low)
        length = f.mul_index(f.sub_index(rows, 1), work.down.stride)
        length = f.add_index(length, work.down.span)
        size = plan.pitch[0] * plan.pitch[1] * channels

        def image(i: Index, _: list[Operand]) -> None:
            to = f.pointer("%workspace", f.mul_index(i, size), self.spec.dtype)
            copy.call(f, to, f.add_index(self.image, i), top, length)

        f.loop(0, images, 1, [], image, runs=True)

    def _place(self, number: Index) -> tuple[Index, Index, Index]:
        """Return where a pixel of the line stands in the block: image, row and column."""
        f, (down, across) = self.f, self.plan.line
        row, column = f.floordiv_index(number, across), f.mod_index(number, across)
        if self.plan.images == 1:
            return 0, row, column
        return f.floordiv_index(row, down), f.mod_index(row, down), column

    def _first_read(self) -> tuple[str, Index]:
        """Return where the block's first pixel reads first: a base, and elements from there."""
        f, plan, work = self.f, self.plan, self.work
        if plan.copies:
            return "%workspace", 0
        row = f.add_index(f.mul_index(self.row, work.down.stride), work.down.low)
        row = f.add_index(f.mul_index(self.image, work.source[1]), row)
        pixel = f.add_index(f.mul_index(row, work.source[2]), work.across.low)
        return "%image", f.mul_index(pixel, work.source[3])

    def _gather(self, channel: Index, first: Index, count: Index) -> None:
        """Emit the gathering of the products of pixels, from a channel on."""
        f, plan, work = self.f, self.plan, self.work
        base, start = self._first_read()
        start = f.add_index(start, channel)
        channels = work.source[3]
        rows, columns = plan.pitch
        row_step = columns * channels

        def pixel(p: Index, _: list[Operand]) -> None:
            image, row, column = self._place(f.add_index(first, p))
            place = f.add_index(f.mul_index(image, rows), f.mul_index(row, work.down.stride))
            place = f.add_index(
                f.mul_index(place, row_step),
                f.mul_index(column, work.across.stride * channels),
            )
            source = f.pointer(base, f.add_index(start, place), dtypes.bfloat16)
            self._gather_pixel(
                source, f.pointer(self.gathered, f.mul_index(p, plan.step // 2), dtypes.bfloat16)
            )

        f.loop(0, count, 1, [], pixel, runs=True)

    def _gather_pixel(self, source: str, target: str) -> None:
        """Emit the gathering of a pixel's products, in their order."""
        f, plan, spec = self.f, self.plan, self.spec
        order, line = plan.order, self.work.phases[0]
        channels = self.work.source[3]
        row_step = line.down.dilation * plan.pitch[1] * channels
        zeros = f.constant(0, dtypes.bfloat16, DEPTH)
        to_row = order.row_tiles * DEPTH if order.is_by_row else order.row
        if not order.is_by_row and order.kernel[0] * order.row % DEPTH:
            f.store(zeros, target, (order.tiles - 1) * DEPTH)

        def row(i: Index, _: list[Operand]) -> None:
            here = f.pointer(source, f.mul_index(i, row_step), dtypes.bfloat16)
            to = f.pointer(target, f.mul_index(i, to_row), dtypes.bfloat16)
            if order.is_by_row and order.gap:
                f.store(zeros, to, (order.row_tiles - 1) * DEPTH)
            for offset, place, count in self._pieces():
                self._move(
                    f.pointer(here, offset, dtypes.bfloat16),
                    f.pointer(to, place, dtypes.bfloat16),
                    count,
                )

        f.loop(0, spec.kernel[0], 1, [], row)

    def _pieces(self) -> list[tuple[int, int, int]]:
        """Return the neighbours in a row of the kernel: where they are read, relative to the first,
        where they go, and how many."""
        order, spec = self.plan.order, self.spec
        whole, gap = (order.whole, order.gap) if order.is_by_row else (order.row, 0)
        found: list[tuple[int, int, int]] = []
        for column in range(spec.kernel[1]):
            at, end = column * order.depth, (column + 1) * order.depth
            read = column * spec.dilation[1] * self.work.source[3] - at
            for start, stop, move in ((at, min(end, whole), 0), (max(at, whole), end, gap)):
                if start >= stop:
                    continue
                piece = (start + read, start + move, stop - start)
                if found and all(found[-1][i] + found[-1][2] == piece[i] for i in (0, 1)):
                    found[-1] = (*found[-1][:2], found[-1][2] + piece[2])
                else:
                    found.append(piece)
        return found

    def _move(self, source: str, target: str, count: int) -> None:
        """Emit the copy of neighbours."""
        f, dtype = self.f, dtypes.bfloat16
        if not uses_masks(f.target, dtype):
            each_vector(
                f,
                dtype,
                count,
                lambda at, lanes: f.store(f.load(source, at, dtype, lanes), target, at),
            )
            return
        whole = count // DEPTH * DEPTH
        f.loop(
            0, whole, DEPTH, [], lambda at, _: f.store(f.load(source, at, dtype, DEPTH), target, at)
        )
        if whole < count:
            mask = f.tail_mask(count - whole, DEPTH)
            f.store(f.load(source, whole, dtype, DEPTH, mask), target, whole, mask)

    # Products

    def _multiply(self, group: Index, pixels: Pixels) -> None:
        """Emit the tiles of some pixels and the task's panels of a group."""
        if self.plan.by_place:
            self._tiles(
                pixels,
                lambda at, count, down: self._panels(
                    lambda panel: self._tile(group, pixels, (at, count, down), panel)
                ),
            )
        else:
            self._panels(
                lambda panel: self._tiles(
                    pixels,
                    lambda at, count, down: self._tile(group, pixels, (at, count, down), panel),
                )
            )

    def _tiles(self, pixels: Pixels, visit: Callable[[Index, Index, int], None]) -> None:
        """Emit ``visit(first, count, down)`` for tiles of pixels: the last is half as high, if that
        will do."""
        f, edge, down = self.f, self.plan.edge, self.plan.down
        whole = f.mul_index(f.floordiv_index(pixels.length, edge), edge)
        rest = f.sub_index(pixels.length, whole)
        f.loop(0, whole, edge, [], lambda at, _: visit(at, edge, down))
        if isinstance(rest, int):
            if rest:
                visit(whole, rest, -(-down // 2) if 2 * rest <= edge else down)
            return

        def last() -> None:
            is_low = f.compare("sle", f.operand(f.mul_index(rest, 2)), f.operand(edge))
            f.branch(
                is_low, lambda: visit(whole, rest, down // 2), lambda: visit(whole, rest, down)
            )

        f.branch(f.compare("sgt", rest, f.operand(0)), last)

    def _panels(self, visit: Callable[[Panel], None]) -> None:
        """Emit ``visit`` for the task's panels of a group: whole ones, and the last of the group if
        it has fewer channels."""
        f, plan, outs = self.f, self.plan, self.work.outs
        edge = plan.across * SIDE
        whole = outs // edge
        first, last = self.panels
        f.loop(first, f.min_index(last, whole), 1, [], lambda p, _: visit(Panel(p, plan.across, 0)))
        if outs % edge:
            rest = Panel(whole, -(-(outs % edge) // SIDE), outs % SIDE)
            if isinstance(last, int):
                visit(rest)
            else:
                f.branch(f.compare("eq", last, f.operand(plan.panels)), lambda: visit(rest))

    def _tile(
        self, group: Index, pixels: Pixels, at: tuple[Index, Index, int], panel: Panel
    ) -> None:
        """Emit the call that computes one tile: ``at`` is its first pixel, how many there are, and
        its height."""
        f, plan, work = self.f, self.plan, self.work
        first, count, down = at
        line = 2 * work.source[3] if plan.is_line else plan.step
        strip = plan.order.tiles * TILE
        image, row, column = self._place(f.add_index(pixels.first, first))
        strips = f.mul_index(panel.number, plan.across)
        number = f.add_index(f.mul_index(group, plan.strips), strips)
        tile = PairConvTile(
            down,
            panel.across,
            panel.tail,
            self._steps(),
            line,
            strip,
            plan.line[1],
            plan.line[0],
            work.result,
            self.spec.epilogue,
        )
        tile.call(
            f,
            a=f.pointer(pixels.source, f.mul_index(first, line), dtypes.uint8),
            b=f.pointer("%weight", f.mul_index(number, strip), dtypes.uint8),
            out="%out",
            extra="%extra",
            pixels=count,
            image=f.add_index(self.image, image),
            row=f.add_index(self.row, row),
            column=column,
            channel=f.add_index(f.mul_index(group, work.outs), f.mul_index(strips, SIDE)),
        )

    def _steps(self) -> Steps:
        """Return where the tiles of a pixel's products stand."""
        plan, spec = self.plan, self.spec
        order = plan.order
        if not plan.is_line:
            return Steps(1, 0, ((order.tiles, LINE),))
        pixel = 2 * self.work.source[3]
        row = spec.dilation[0] * plan.pitch[1] * pixel
        if spec.groups == 1 and (spec.dilation[1] == 1 or spec.kernel[1] == 1):
            last = 2 * (order.row - DEPTH) if order.gap else None
            return Steps(spec.kernel[0], row, ((order.whole // DEPTH, LINE),), last)
        inner = ((spec.kernel[1], spec.dilation[1] * pixel), (spec.depth // DEPTH, LINE))
        return Steps(spec.kernel[0], row, inner)
