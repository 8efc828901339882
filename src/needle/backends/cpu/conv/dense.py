"""Correlations as products of matrices that are never written out: the loops around the tiles.

A task takes blocks of images, or bands of rows of one image. It copies a block with zeros around it
(or reads it in place, if nothing outside is read), and multiplies it with one panel of weights
after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

from needle.backends.cpu.conv.copying import PaddedCopy
from needle.backends.cpu.conv.finish import Box
from needle.backends.cpu.conv.finite import FiniteCheck
from needle.backends.cpu.conv.parts import each_part, place_of, positive, share
from needle.backends.cpu.conv.phase import Line, Phase
from needle.backends.cpu.conv.plan import DensePlan
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.conv.tile import Level, Tile, nest
from needle.backends.cpu.gemm import packing
from needle.backends.cpu.gemm.plan import split, uses_masks
from needle.backends.cpu.gemm.tiling import Tiling, tile_columns
from needle.backends.cpu.llvm import Function, Index, Operand

_At: TypeAlias = "tuple[Index, Index, Index]"


class Panel(NamedTuple):
    """Channels of the result that are computed together.

    Attributes:
        number: of the phase.
        group: of the channels.
        column: the first, within the group.
        widths: lanes of the vectors.
        tail: how many lanes of the last vector exist; 0 for all.
    """

    number: int
    group: Index
    column: Index
    widths: tuple[int, ...]
    tail: int


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
            self.pitch = plan.copy_pitch
        #: Finds out whether all weights are finite, where that allows to leave out rows of zeros.
        self.check = FiniteCheck(f, spec.dtype) if plan.skips else None
        self.is_finite: Operand | None = None
        # The task's groups, and panels of each phase.
        self.columns: list[Tiling[tuple[int, ...]]] = []
        self.groups: tuple[Index, Index] = (0, 1)
        self.panels: list[tuple[Index, Index]] = []
        # The block that is being emitted: its first image and row of results.
        self.image: Index = 0
        self.row: Index = 0

    def emit(self) -> None:
        """Emit the task: packing, then block after block."""
        f, plan = self.f, self.plan
        task: Index = f.argument("task") if plan.tasks > 1 else 0
        part, channels = f.floordiv_index(task, plan.grid[1]), f.mod_index(task, plan.grid[1])
        first, last = share(f, plan.blocks, part, plan.grid[0])
        self._set_shares(channels)
        if plan.packs:
            for number, phase in enumerate(self.work.phases):
                if phase.taps:
                    self._groups(partial(self._panels, number, visit=self._pack))
            self.is_finite = self.check.is_finite() if self.check else None

        def block(b: Index, _: list[Operand]) -> None:
            self.image = f.mul_index(f.floordiv_index(b, plan.bands), plan.images)
            self.row = f.mul_index(f.mod_index(b, plan.bands), plan.rows)
            if plan.copies and not plan.by_group:
                self._copy(0)
            self._groups(self._group)

        f.loop(first, last, 1, [], block)

    def _set_shares(self, part: Index) -> None:
        """Emit which groups, or panels of each phase, are the task's."""
        f, plan, work = self.f, self.plan, self.work

        self.columns = [
            tile_columns(f, work.outs, self.lanes, shape.vectors, self.masks)
            for shape in plan.shapes
        ]
        if plan.split_groups:
            self.groups = share(f, work.groups, part, plan.grid[1])
            self.panels = [(0, tiling.count) for tiling in self.columns]
        else:
            self.panels = [share(f, t.count, part, plan.grid[1]) for t in self.columns]

    def _groups(self, visit: Callable[[Index], None]) -> None:
        """Emit ``visit(group)`` for the task's groups."""
        self.f.loop(*self.groups, 1, [], lambda g, _: visit(g))

    def _panels(self, number: int, group: Index, visit: Callable[[Panel], None]) -> None:
        """Emit ``visit(panel)`` for the task's panels of a phase and a group."""

        def panel(_: Index, column: Index, widths: tuple[int, ...], tail: Index) -> None:
            assert isinstance(tail, int)
            visit(Panel(number, group, column, widths, tail))

        self.columns[number].each(*self.panels[number], panel)

    def _group(self, group: Index) -> None:
        """Emit the tiles of a block for a group: of each panel all, or for each place all panels'.

        The latter reads what is far away, and writes, once from beginning to end.
        """
        if self.plan.by_group:
            self._copy(group)
        for number in range(len(self.work.phases)):

            def one_panel(panel: Panel) -> None:
                self._places(panel.number, lambda box, at: self._tile(panel, box, at))

            def one_place(box: Box, at: _At, number: int = number) -> None:
                self._panels(number, group, lambda panel: self._tile(panel, box, at))

            if self.plan.by_place:
                self._places(number, one_place)
            else:
                self._panels(number, group, one_panel)

    # Weights

    def _packed(self, panel: Panel) -> str:
        """Return where a panel stands."""
        f, work = self.f, self.work
        number, group, column, _, _ = panel
        products = work.phases[number].taps * work.depth
        columns = -(-work.outs // self.lanes) * self.lanes
        place = f.add_index(f.mul_index(group, columns), column)
        offset = f.add_index(self.starts[number], f.mul_index(place, products))
        return f.pointer("%workspace", offset, self.dtype)

    def _pack(self, panel: Panel) -> None:
        """Emit the packing of a panel: for each product in order, the columns of a tile."""
        self._pack_weights(panel)
        if self.check:
            rows = self.work.phases[panel.number].taps * self.work.depth
            self.check.add(self._packed(panel), rows, panel.widths, panel.tail)

    def _pack_weights(self, panel: Panel) -> None:
        f, work, spec = self.f, self.work, self.spec
        number, group, column, widths, tail = panel
        phase = work.phases[number]
        target = self._packed(panel)
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

    def _copy(self, group: Index) -> None:
        """Emit the copy of the block, of all channels or those of a group."""
        f, plan, work = self.f, self.plan, self.work
        channels = work.depth if plan.by_group else work.source[3]
        copy = PaddedCopy(work.source, work.across, channels, self.dtype, self.spec.prologue)
        top = f.add_index(f.mul_index(self.row, work.down.stride), work.down.low)
        rows = work.down.length(plan.rows)
        channel = f.mul_index(group, work.depth)

        def image(i: Index, _: list[Operand]) -> None:
            offset = f.mul_index(f.sub_index(i, self.image), self.pitch[0])
            copy.call(f, f.pointer(self.copy, offset, self.dtype), i, top, rows, channel)

        f.loop(self.image, self._last_image(), 1, [], image)

    def _last_image(self) -> Index:
        f, plan = self.f, self.plan
        return f.min_index(f.add_index(self.image, plan.images), self.work.source[0])

    # Tiles

    def _places(self, number: int, visit: Callable[[Box, _At], None]) -> None:
        """Emit ``visit(box, (image, row, column))`` for the tiles of a block."""
        f, plan, work = self.f, self.plan, self.work
        phase, shape = work.phases[number], plan.shapes[number]

        def tiles(image: Index, images: int, row: Index, rows: int) -> None:
            done = 0
            for columns, count in split(phase.across.extent, shape.columns):
                box = Box((images, rows, columns), (1, phase.down.step, phase.across.step))

                def along(k: Index, _: list[Operand], box: Box = box) -> None:
                    visit(box, (image, row, k))

                f.loop(done, done + count * columns, columns, [], along)
                done += count * columns

        def images(i: Index, count: int) -> None:
            last = f.min_index(f.add_index(self.row, plan.rows), phase.down.extent)
            rows = (self.row, last)
            each_part(f, rows, shape.rows, phase.down.extent, lambda j, n: tiles(i, count, j, n))

        every = (self.image, self._last_image())
        each_part(f, every, shape.images, work.source[0], images)

    def _tile(self, panel: Panel, box: Box, at: _At) -> None:
        """Emit the call that computes one tile, which begins at an image, row and column."""
        f, plan, work = self.f, self.plan, self.work
        phase = work.phases[panel.number]
        if plan.packs:
            weight, step = self._packed(panel), sum(w or 1 for w in panel.widths)
        else:
            start = f.add_index(f.mul_index(panel.group, work.outs), panel.column)
            weight, step = f.pointer("%weight", start, self.dtype), work.result[3]
        levels = self._levels(phase, step)
        source, offset = self._source(phase, panel.group, at)
        image, row, column = at
        values: dict[str, Index] = {}
        if self.is_finite is not None and phase.down.taps > 1:
            low, turns = self._seen_rows(phase.down, row, box.counts[1])
            values["turns0"] = turns
            offset = f.add_index(offset, f.mul_index(low, levels[0].a))
            weight = f.pointer(weight, f.mul_index(low, levels[0].b), self.dtype)
            levels = (levels[0]._replace(turns=None), *levels[1:])
        result = self._result_pitch()
        out = (0,) * box.size
        if self.spec.epilogue is None:
            out = box.offsets([s * r for s, r in zip(box.steps, result, strict=True)])
        tile = Tile(
            box,
            box.offsets(self._tap_pitch(phase)),
            out,
            panel.widths,
            panel.tail,
            levels,
            self.dtype,
            epilogue=self.spec.epilogue,
            ahead=plan.ahead,
        )
        channel = f.add_index(f.mul_index(panel.group, work.outs), panel.column)
        values |= {
            "image": image,
            "row": place_of(f, row, phase.down),
            "column": place_of(f, column, phase.across),
        }
        to = "%out"
        if tile.epilogue is None:
            place = channel
            for name, pitch in zip(("image", "row", "column"), result, strict=True):
                place = f.add_index(place, f.mul_index(values[name], pitch))
            to = f.pointer("%out", place, self.dtype)
        first = f.pointer(source, offset, self.dtype)
        pointers = {"a": first, "b": weight, "out": to, "extra": "%extra"}
        tile.call(f, pointers, channel=channel, **values)

    def _source(self, phase: Phase, group: Index, at: _At) -> tuple[str, Index]:
        """Return what a tile reads, and where its first tap does."""
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
        offset: Index = 0 if plan.by_group else f.mul_index(group, work.depth)
        for place, pitch in zip(places, self.pitch, strict=True):
            offset = f.add_index(offset, f.mul_index(place, pitch))
        return source, offset

    def _seen_rows(self, line: Line, row: Index, rows: int) -> tuple[Index, Index]:
        """Return the first row of the kernel, and how many, that see rows of the image in a tile.

        The others see zeros alone: but for weights that are not finite, their products change no
        sum.
        """
        f, taps, dilation = self.f, line.taps, line.dilation
        assert self.is_finite is not None
        height = self.work.source[1]
        first = self._read(row, line)
        last = self._read(f.add_index(row, rows - 1), line)
        before = positive(f, f.sub_index(0, last))
        low = f.floordiv_index(f.add_index(before, dilation - 1), dilation)
        within = positive(f, f.sub_index(height, first))
        high = f.floordiv_index(f.add_index(within, dilation - 1), dilation)
        high = f.min_index(high, taps)
        low = f.select(self.is_finite, f.operand(f.min_index(low, high)), f.operand(0))
        high = f.select(self.is_finite, f.operand(high), f.operand(taps))
        return low, f.sub_index(high, low)

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
        inner = nest([(across.taps, column), (depth, 1)], step)
        if self.is_finite is not None and down.taps > 1:
            return (Level(down.taps, row, across.taps * depth * step), *inner)
        return nest([(down.taps, row), (across.taps, column), (depth, 1)], step)
