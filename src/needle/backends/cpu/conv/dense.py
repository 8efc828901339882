"""Correlations as products of matrices that are never written out: the loops around the tiles.

A task takes blocks of images, or bands of rows of one image. It copies a block with zeros around it
(or reads it in place, if nothing outside is read), and multiplies it with one panel of weights
after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from needle.backends.cpu.conv.copying import PaddedCopy
from needle.backends.cpu.conv.finish import Box
from needle.backends.cpu.conv.phase import Line, Phase
from needle.backends.cpu.conv.plan import DensePlan
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.conv.tile import Level, Tile, nest
from needle.backends.cpu.gemm import packing
from needle.backends.cpu.gemm.plan import split, uses_masks
from needle.backends.cpu.gemm.tiling import Tiling, tile_columns
from needle.backends.cpu.llvm import Function, Index, Operand

_Visit: TypeAlias = "Callable[[int, Index, Index, tuple[int, ...], int], None]"


class Dense:
    """Emits the body of a kernel's function."""

    def __init__(self, f: Function, spec: ConvSpec, plan: DensePlan) -> None:
        self.f = f
        self.spec = spec
        self.plan = plan
        self.work = plan.work
        self.dtype = spec.dtype
        self.lanes = f.target.lanes(spec.dtype)
        self.masks = uses_masks(f.target, spec.dtype)
        self.starts = plan.panel_starts(self.lanes)
        self.copy = f.pointer("%workspace", plan.packed_elements(self.lanes), spec.dtype)
        #: Elements of what is read: from one image to the next, one row, one pixel.
        _, height, width, channels = self.work.source
        self.pitch = (height * width * channels, width * channels, channels)
        if plan.copies:
            self.pitch = (*plan.copy_pitch, channels)
        # The block that is being emitted: its first image and row of results.
        self.image: Index = 0
        self.row: Index = 0

    def emit(self) -> None:
        """Emit the task: packing, then block after block."""
        f, plan = self.f, self.plan
        task: Index = f.argument("task") if plan.tasks > 1 else 0
        part, channels = f.floordiv_index(task, plan.grid[1]), f.mod_index(task, plan.grid[1])
        first, last = (
            f.floordiv_index(f.mul_index(plan.blocks, f.add_index(part, i)), plan.grid[0])
            for i in (0, 1)
        )
        if plan.packs:
            for number, _ in enumerate(self.work.phases):
                self._each_panel(number, channels, self._pack)

        def block(b: Index, _: list[Operand]) -> None:
            self.image = f.mul_index(f.floordiv_index(b, plan.bands), plan.images)
            self.row = f.mul_index(f.mod_index(b, plan.bands), plan.rows)
            if plan.copies:
                self._copy()
            for number, _phase in enumerate(self.work.phases):
                self._each_panel(number, channels, self._panel)

        f.loop(first, last, 1, [], block)

    def _each_panel(self, number: int, part: Index, visit: _Visit) -> None:
        """Emit ``visit(phase, group, column, widths, tail)`` for the panels of the task's part of
        all channels."""
        f, plan, work = self.f, self.plan, self.work
        vectors = plan.shapes[number].vectors
        panels = tile_columns(f, work.outs, self.lanes, vectors, self.masks)
        count: Index = work.groups if plan.split_groups else panels.count
        first, last = (
            f.floordiv_index(f.mul_index(count, f.add_index(part, i)), plan.grid[1]) for i in (0, 1)
        )

        def group(g: Index, panels: Tiling[tuple[int, ...]], start: Index, stop: Index) -> None:
            def panel(_: Index, column: Index, widths: tuple[int, ...], tail: Index) -> None:
                assert isinstance(tail, int)
                visit(number, g, column, widths, tail)

            panels.each(start, stop, panel)

        if plan.split_groups:
            f.loop(first, last, 1, [], lambda g, _: group(g, panels, 0, panels.count))
        else:
            group(0, panels, first, last)

    # Weights

    def _packed(self, number: int, group: Index, column: Index) -> str:
        """Return where the panel stands that begins with a column."""
        f, work = self.f, self.work
        products = work.phases[number].taps * work.depth
        columns = -(-work.outs // self.lanes) * self.lanes
        place = f.add_index(f.mul_index(group, columns), column)
        offset = f.add_index(self.starts[number], f.mul_index(place, products))
        return f.pointer("%workspace", offset, self.dtype)

    def _pack(
        self, number: int, group: Index, column: Index, widths: tuple[int, ...], tail: int
    ) -> None:
        """Emit the packing of a panel: for each product in order, the columns of a tile."""
        f, work, spec = self.f, self.work, self.spec
        phase = work.phases[number]
        if not phase.taps:
            return
        target = self._packed(number, group, column)
        total = sum(w or 1 for w in widths)
        existing = total - widths[-1] + tail if tail else total
        outs = spec.out_channels
        if spec.form == "forward":
            start = f.add_index(f.mul_index(group, work.outs), column)
            source = f.pointer("%weight", start, self.dtype)
            rows = phase.taps * work.depth
            packing.copy_rows(
                f, (source, self.dtype, outs), (target, self.dtype, total), rows, existing
            )
            return
        # Turned: a column is an input channel, whose output channels are neighbours.
        can_turn = packing.can_turn(self.dtype) and all(w == self.lanes for w in widths)
        down, across = phase.down, phase.across
        tap = work.outs * outs  # elements of the kernel from one tap to the next
        begin = f.add_index(f.mul_index(column, outs), f.mul_index(group, work.depth))

        def one(i: Index, j: Index) -> None:
            row = f.add_index(down.first, f.mul_index(i, down.turn))
            at = f.add_index(across.first, f.mul_index(j, across.turn))
            here = f.mul_index(f.add_index(f.mul_index(row, spec.kernel[1]), at), tap)
            source = f.pointer("%weight", f.add_index(begin, here), self.dtype)
            number = f.add_index(f.mul_index(i, across.taps), j)
            to = f.pointer(target, f.mul_index(number, work.depth * total), self.dtype)
            if not can_turn:
                steps = (source, self.dtype, 1, outs)
                packing.copy_elements(f, steps, (to, self.dtype, total), work.depth, existing)
                return
            for v in range(len(widths)):
                part = f.pointer(source, v * self.lanes * outs, self.dtype)
                columns = min(self.lanes, existing - v * self.lanes)
                packing.turn(
                    f,
                    (part, self.dtype, outs),
                    (f.pointer(to, v * self.lanes, self.dtype), total),
                    work.depth,
                    columns,
                )

        def tap_row(i: Index, _: list[Operand]) -> None:
            f.loop(0, across.taps, 1, [], lambda j, _: one(i, j))

        f.loop(0, down.taps, 1, [], tap_row)

    # Images

    def _copy(self) -> None:
        f, plan, work = self.f, self.plan, self.work
        copy = PaddedCopy(work.source, work.across, work.source[3], self.dtype, self.spec.prologue)
        top = f.add_index(f.mul_index(self.row, work.down.stride), work.down.low)
        rows = work.down.length(plan.rows)

        def image(i: Index, _: list[Operand]) -> None:
            offset = f.mul_index(f.sub_index(i, self.image), self.pitch[0])
            copy.call(f, f.pointer(self.copy, offset, self.dtype), i, top, rows)

        f.loop(self.image, self._last_image(), 1, [], image)

    def _last_image(self) -> Index:
        f, plan = self.f, self.plan
        return f.min_index(f.add_index(self.image, plan.images), self.work.source[0])

    # Tiles

    def _panel(
        self, number: int, group: Index, column: Index, widths: tuple[int, ...], tail: int
    ) -> None:
        """Emit the tiles of a block for a panel of weights."""
        f, plan, work = self.f, self.plan, self.work
        phase, shape = work.phases[number], plan.shapes[number]
        if plan.packs:
            weight, step = self._packed(number, group, column), sum(w or 1 for w in widths)
        else:
            start = f.add_index(f.mul_index(group, work.outs), column)
            weight, step = f.pointer("%weight", start, self.dtype), work.result[3]
        channel = f.add_index(f.mul_index(group, work.outs), column)
        levels = self._levels(phase, step)

        def tiles(image: Index, images: int, row: Index, rows: int) -> None:
            done = 0
            for columns, count in split(phase.across.extent, shape.columns):
                box = (images, rows, columns)
                steps = (1, phase.down.step, phase.across.step)
                result = self._result_pitch()
                tile = Tile(
                    Box(box, steps),
                    Box(box).offsets(self._tap_pitch(phase)),
                    Box(box).offsets(tuple(s * r for s, r in zip(steps, result, strict=True)))
                    if self.spec.epilogue is None
                    else (0,) * (images * rows * columns),
                    widths,
                    tail,
                    levels,
                    self.dtype,
                    epilogue=self.spec.epilogue,
                )

                def along(k: Index, _: list[Operand], tile: Tile = tile) -> None:
                    self._tile(tile, phase, group, (image, row, k), channel, weight)

                f.loop(done, done + count * columns, columns, [], along)
                done += count * columns

        last = f.min_index(f.add_index(self.row, plan.rows), phase.down.extent)
        each_part(f, (self.image, self._last_image()), shape.images, work.source[0],
              lambda i, images: each_part(f, (self.row, last), shape.rows, phase.down.extent,
                                      lambda j, rows: tiles(i, images, j, rows)))  # fmt: skip

    def _tile(
        self,
        tile: Tile,
        phase: Phase,
        group: Index,
        at: tuple[Index, Index, Index],
        channel: Index,
        weight: str,
    ) -> None:
        """Emit the call that computes one tile, which begins at an image, row and column."""
        f, plan, work = self.f, self.plan, self.work
        image, row, column = at
        places = [image, self._read(row, phase.down), self._read(column, phase.across)]
        source = "%image"
        if plan.copies:
            top = f.add_index(f.mul_index(self.row, work.down.stride), work.down.low)
            places[0] = f.sub_index(image, self.image)
            places[1] = f.sub_index(places[1], top)
            places[2] = f.sub_index(places[2], work.across.low)
            source = self.copy
        offset: Index = f.mul_index(group, work.depth)
        for place, pitch in zip(places, self.pitch, strict=True):
            offset = f.add_index(offset, f.mul_index(place, pitch))
        pointers = {
            "a": f.pointer(source, offset, self.dtype), "b": weight,
            "out": "%out", "extra": "%extra",
        }  # fmt: skip
        values = {
            "image": image,
            "row": _result(f, row, phase.down),
            "column": _result(f, column, phase.across),
            "channel": channel,
        }
        if tile.epilogue is None:
            offset = channel
            for value, pitch in zip(values.values(), self._result_pitch(), strict=False):
                offset = f.add_index(offset, f.mul_index(value, pitch))
            pointers["out"] = f.pointer("%out", offset, self.dtype)
        tile.call(f, pointers, **values)

    def _read(self, result: Index, line: Line) -> Index:
        """Return where the first tap of a result reads."""
        return self.f.add_index(self.f.mul_index(result, line.stride), line.offset)

    def _result_pitch(self) -> tuple[int, int, int]:
        """Return the elements of the result from one image, row and column to the next."""
        _, height, width, channels = self.work.result
        return (height * width * channels, width * channels, channels)

    def _tap_pitch(self, phase: Phase) -> tuple[int, int, int]:
        """Return the elements from what one result reads to what its neighbours read."""
        image, row, column = self.pitch
        return (image, row * phase.down.stride, column * phase.across.stride)

    def _levels(self, phase: Phase, step: int) -> tuple[Level, ...]:
        """Return the loops over taps and channels; those whose elements are neighbours as one."""
        down, across, depth = phase.down, phase.across, self.work.depth
        row, column = down.dilation * self.pitch[1], across.dilation * self.pitch[2]
        return nest([(down.taps, row), (across.taps, column), (depth, 1)], step)


def _result(f: Function, number: Index, line: Line) -> Index:
    return f.add_index(f.mul_index(number, line.step), line.start)


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
