"""Gradients by the weight: sums over pixels, as products of matrices that are never written out.

For each block of pixels, a panel of output channels of the cotangent stays in the L1 cache, while
tiles of taps and input channels read the image beside it. Sums of blocks are added in the order of
the blocks; until the last they wait in the workspace.
"""

from __future__ import annotations

import math

from needle.backends.cpu.conv.copying import PaddedCopy
from needle.backends.cpu.conv.dense import each_part
from needle.backends.cpu.conv.finish import Box
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.conv.tile import Level, Tile, nest
from needle.backends.cpu.conv.weight_plan import WeightPlan
from needle.backends.cpu.gemm.plan import split, uses_masks
from needle.backends.cpu.gemm.tiling import max_index, tile_columns
from needle.backends.cpu.llvm import Function, Index, Operand


class WeightGrad:
    """Emits the body of a kernel's function."""

    def __init__(self, f: Function, spec: ConvSpec, plan: WeightPlan) -> None:
        self.f = f
        self.spec = spec
        self.plan = plan
        self.dtype = spec.dtype
        self.lanes = f.target.lanes(spec.dtype)
        self.masks = uses_masks(f.target, spec.dtype)
        self.outs = spec.out_channels // spec.groups
        self.partial = f.pointer("%workspace", plan.copy_elements(), spec.dtype)
        self.resumes = not plan.is_one_block(spec)
        # The task: which panels or groups, parts of the input channels, rows of the kernel.
        self.panels: tuple[Index, Index] = (0, 0)
        self.groups: tuple[Index, Index] = (0, 0)
        self.parts: tuple[Index, Index] = (0, 0)
        self.rows: tuple[Index, Index] = (0, 0)
        # The block: its first image and row; the row from which on images were copied.
        self.image: Index = 0
        self.row: Index = 0
        self.copied: Index = 0
        self.is_first: Index = 1
        self.is_last: Index = 1

    def emit(self) -> None:
        """Emit the task."""
        f, plan, spec = self.f, self.plan, self.spec
        task: Index = f.argument("task") if plan.tasks > 1 else 0
        at: list[Index] = []
        for count in reversed(plan.grid):
            at.insert(0, f.mod_index(task, count))
            task = f.floordiv_index(task, count)
        columns = tile_columns(f, self.outs, self.lanes, plan.shape.vectors, self.masks)
        every = spec.groups if plan.split_groups else columns.count
        assert isinstance(every, int)
        whole: tuple[Index, Index] = (0, spec.groups)
        first = self._share(every, at[0], plan.grid[0])
        self.groups = first if plan.split_groups else whole
        self.panels = (0, columns.count) if plan.split_groups else first
        parts = -(-spec.depth // plan.channels)
        self.parts = self._share(parts, at[1], plan.grid[1])
        self.rows = self._share(spec.kernel[0], at[2], plan.grid[2])
        self._blocks()

    def _share(self, count: int, part: Index, parts: int) -> tuple[Index, Index]:
        f = self.f
        first, last = (
            f.floordiv_index(f.mul_index(count, f.add_index(part, i)), parts) for i in (0, 1)
        )
        return first, last

    def _blocks(self) -> None:
        """Emit the loops over what is copied at a time, and over its blocks."""
        f, plan, spec = self.f, self.plan, self.spec
        blocks = plan.blocks
        # At least once: sums of nothing are to be stored, too.
        images, bands = max(spec.images, 1), max(blocks.bands, 1)

        def some_images(n: Index, _: list[Operand]) -> None:
            self.image = n

            def some_bands(b: Index, _: list[Operand]) -> None:
                self.copied = f.mul_index(b, blocks.rows)
                last = f.min_index(f.add_index(b, plan.bands), bands)
                self._each_part(b, last)

            f.loop(0, bands, plan.bands, [], some_bands)

        f.loop(0, images, blocks.images, [], some_images)

    def _each_part(self, first_band: Index, last_band: Index) -> None:
        """Emit the loops over groups and parts of the input channels: copy, then block by block."""
        f, plan, spec = self.f, self.plan, self.spec

        def group(g: Index, _: list[Operand]) -> None:
            done = taken = 0
            for size, count in split(spec.depth, plan.channels):

                def part(
                    p: Index, _: list[Operand], size: int = size, at: int = done, no: int = taken
                ) -> None:
                    start = f.add_index(at, f.mul_index(f.sub_index(p, no), size))
                    channel = f.add_index(f.mul_index(g, spec.depth), start)
                    if plan.copies:
                        self._copy(channel, size)

                    def band(b: Index, _: list[Operand]) -> None:
                        self.row = f.mul_index(b, plan.blocks.rows)
                        self._set_ends(b)
                        self._block(g, p, start, size)

                    f.loop(first_band, last_band, 1, [], band)

                low = max_index(f, self.parts[0], taken)
                f.loop(low, f.min_index(self.parts[1], taken + count), 1, [], part)
                done, taken = done + size * count, taken + count

        f.loop(*self.groups, 1, [], group)

    def _set_ends(self, band: Index) -> None:
        """Emit whether a block is the first, and the last, of all."""
        f, plan = self.f, self.plan
        if not self.resumes:
            return
        bands = plan.blocks.bands
        following = f.operand(f.add_index(self.image, plan.blocks.images))
        is_last = f.compare("sge", following, f.operand(self.spec.images))
        ends = f.compare("eq", f.operand(band), f.operand(max(bands - 1, 0)))
        starts = f.compare("eq", f.operand(band), f.operand(0))
        is_first = f.compare("eq", f.operand(self.image), f.operand(0))
        self.is_last = f.binary("and", is_last, ends)
        self.is_first = f.binary("and", is_first, starts)

    # Images

    def _images(self) -> Index:
        """Return the number of images of the block."""
        f = self.f
        return f.min_index(self.plan.blocks.images, f.sub_index(self.spec.images, self.image))

    def _copy(self, channel: Index, size: int) -> None:
        f, plan, spec = self.f, self.plan, self.spec
        copy = PaddedCopy(spec.x_shape, plan.across, size, self.dtype, spec.prologue)
        top = f.add_index(f.mul_index(self.copied, plan.down.stride), plan.down.low)
        rows = plan.down.length(plan.copied_rows)
        pitch = self._pitch(size)[0]

        def image(i: Index, _: list[Operand]) -> None:
            to = f.pointer("%workspace", f.mul_index(i, pitch), self.dtype)
            copy.call(f, to, f.add_index(self.image, i), top, rows, channel)

        f.loop(0, self._images(), 1, [], image)

    def _pitch(self, size: int) -> tuple[int, int, int]:
        """Return the elements of what is read: from one image to the next, one row, one pixel."""
        plan, spec = self.plan, self.spec
        if plan.copies:
            row = plan.across.length(plan.across.extent) * size
            return plan.down.length(plan.copied_rows) * row, row, size
        row = spec.width * spec.in_channels
        return spec.height * row, row, spec.in_channels

    # Tiles

    def _block(self, group: Index, part: Index, start: Index, size: int) -> None:
        """Emit the tiles of a block, panel by panel."""
        f, plan, spec = self.f, self.plan, self.spec
        columns = tile_columns(f, self.outs, self.lanes, plan.shape.vectors, self.masks)
        levels, turns = self._levels(size)
        pixel = f.mul_index(self.image, spec.counts[0])
        pixel = f.mul_index(f.add_index(pixel, self.row), spec.counts[1])

        def panel(p: Index, column: Index, widths: tuple[int, ...], tail: Index) -> None:
            assert isinstance(tail, int)
            channel = f.add_index(f.mul_index(group, self.outs), column)
            place = f.add_index(f.mul_index(pixel, spec.out_channels), channel)
            g = f.pointer("%weight", place, self.dtype)
            kept = self._partial_panel(group, p, part, size)

            def tiles(i: Index, rows: int, j: Index, across: int) -> None:
                done = 0
                for channels, count in split(size, plan.shape.columns):
                    box = Box((rows, across, channels))
                    tile = self._tile(box, size, widths, tail, levels)

                    def along(d: Index, _: list[Operand], tile: Tile = tile) -> None:
                        self._call(tile, (i, j, d), (start, channel, size), (g, kept), turns)

                    f.loop(done, done + count * channels, channels, [], along)
                    done += count * channels

            def kernel_row(i: Index, rows: int) -> None:
                every = (0, spec.kernel[1])
                each_part(
                    f, every, plan.shape.rows, spec.kernel[1], lambda j, n: tiles(i, rows, j, n)
                )

            each_part(f, self.rows, plan.shape.images, spec.kernel[0], kernel_row)

        columns.each(*self.panels, panel)

    def _levels(self, size: int) -> tuple[tuple[Level, ...], Index]:
        """Return the loops over the pixels of a block, and how often the outermost runs, if that is
        not the same for all blocks."""
        f, plan, spec = self.f, self.plan, self.spec
        image, row, pixel = self._pitch(size)
        rows, columns = spec.counts
        step = spec.out_channels
        inner = [(columns, plan.across.stride * pixel)]
        pitch, most = plan.down.stride * row, plan.blocks.rows
        count = f.min_index(most, f.sub_index(rows, self.row))
        extent = rows
        if plan.blocks.images > 1 or not spec.images:
            inner.insert(0, (rows, pitch))
            pitch, most, extent = image, plan.blocks.images, spec.images
            count = self._images()
        if extent and extent % most == 0:
            return nest([(most, pitch), *inner], step), 0
        first, *others = nest(inner, step)
        assert first.turns is not None
        if pitch == first.turns * first.a:
            return (first._replace(turns=None), *others), f.mul_index(count, first.turns)
        outer = Level(None, pitch, step * math.prod(turns for turns, _ in inner))
        return (outer, first, *others), count

    def _tile(
        self, box: Box, size: int, widths: tuple[int, ...], tail: int, levels: tuple[Level, ...]
    ) -> Tile:
        spec = self.spec
        _, row, pixel = self._pitch(size)
        down, across = spec.dilation
        out = (0,) * box.size
        if spec.epilogue is None:
            out = box.offsets(self._result_pitch())
        return Tile(
            box,
            box.offsets((down * row, across * pixel, 1)),
            out,
            widths,
            tail,
            levels,
            self.dtype,
            self.resumes,
            spec.epilogue,
        )

    def _result_pitch(self) -> tuple[int, int, int]:
        """Return the elements of the result from one tap to the next, down and across, and from one
        input channel to the next."""
        tap = self.spec.depth * self.spec.out_channels
        return self.spec.kernel[1] * tap, tap, self.spec.out_channels

    def _partial_panel(self, group: Index, panel: Index, part: Index, size: int) -> str:
        """Return where sums of the blocks so far stand, for a panel and a part of the channels."""
        f, plan, spec = self.f, self.plan, self.spec
        if not self.resumes:
            return "null"
        _, panels, parts, rows = plan.shares(spec, self.lanes)
        slot = f.mul_index(f.sub_index(group, self.groups[0]), panels)
        slot = f.add_index(slot, f.sub_index(panel, self.panels[0]))
        slot = f.add_index(f.mul_index(slot, parts), f.sub_index(part, self.parts[0]))
        elements = plan.channels * rows * spec.kernel[1] * plan.shape.vectors * self.lanes
        return f.pointer(self.partial, f.mul_index(slot, elements), self.dtype)

    def _call(
        self,
        tile: Tile,
        at: tuple[Index, Index, Index],
        channels: tuple[Index, Index, int],
        pointers: tuple[str, str],
        turns: Index,
    ) -> None:
        """Emit the call that computes one tile.

        Args:
            tile: its shape.
            at: its first row and column of the kernel, and channel of the part.
            channels: the part's first, within its group; the panel's first; how many the part has.
            pointers: the cotangent; the panel's sums of the blocks so far.
            turns: of the outermost loop.
        """
        f, plan, spec = self.f, self.plan, self.spec
        i, j, d = at
        start, channel, size = channels
        pitch = self._pitch(size)
        source = "%workspace"
        first = f.mul_index(f.sub_index(self.row, self.copied), plan.down.stride)
        places: list[Index] = [0, first, 0]
        offset = d
        if not plan.copies:
            source = "%image"
            first = f.add_index(f.mul_index(self.row, plan.down.stride), plan.down.low)
            places = [self.image, first, plan.across.low]
            group = f.mul_index(f.floordiv_index(channel, self.outs), spec.depth)
            offset = f.add_index(f.add_index(group, start), d)
        places[1] = f.add_index(places[1], f.mul_index(i, spec.dilation[0]))
        places[2] = f.add_index(places[2], f.mul_index(j, spec.dilation[1]))
        for place, step in zip(places, pitch, strict=True):
            offset = f.add_index(offset, f.mul_index(place, step))
        row = f.mul_index(f.sub_index(i, self.rows[0]), spec.kernel[1])
        row = f.add_index(f.mul_index(f.add_index(row, j), size), d)
        within = f.mul_index(row, sum(w or 1 for w in tile.widths))
        given = {
            "a": f.pointer(source, offset, self.dtype),
            "b": pointers[0],
            "out": "%out",
            "extra": "%extra",
            "partial": f.pointer(pointers[1], within, self.dtype) if self.resumes else "null",
        }
        values: dict[str, Index] = {
            "image": i,
            "row": j,
            "column": f.add_index(start, d),
            "channel": channel,
            "first": self.is_first,
            "last": self.is_last,
            "turns": turns,
        }
        if tile.epilogue is None:
            offset = channel
            for name, step in zip(("image", "row", "column"), self._result_pitch(), strict=True):
                offset = f.add_index(offset, f.mul_index(values[name], step))
            given["out"] = f.pointer("%out", offset, self.dtype)
        tile.call(f, given, **values)
