"""Gradients by the weight: sums over pixels, as products of matrices that are never written out.

For each block of pixels, a panel of output channels of the cotangent stays in the L1 cache, while
tiles of taps and input channels read the image beside it. Sums of blocks are added in the order of
the blocks; until the last they wait in the workspace.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from needle.backends.cpu.conv.copying import PaddedCopy
from needle.backends.cpu.conv.finish import Box
from needle.backends.cpu.conv.finite import FiniteCheck
from needle.backends.cpu.conv.parts import each_part, first_and_last, positive, share
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.conv.sums_plan import DenseSumsPlan
from needle.backends.cpu.conv.tile import Level, Tile, nest
from needle.backends.cpu.gemm import packing
from needle.backends.cpu.gemm.plan import split, uses_masks
from needle.backends.cpu.gemm.tiling import max_index, tile_columns
from needle.backends.cpu.llvm import Function, Index, Operand


class Part(NamedTuple):
    """A part of the input channels of a group: its number, first channel, and how many."""

    number: Index
    start: Index
    size: int


class DenseSums:
    """Emits the body of a kernel's function."""

    def __init__(self, f: Function, spec: ConvSpec, plan: DenseSumsPlan) -> None:
        self.f = f
        self.spec = spec
        self.plan = plan
        self.dtype = spec.dtype
        self.lanes = f.target.lanes(spec.dtype)
        self.masks = uses_masks(f.target, spec.dtype)
        self.outs = spec.out_channels // spec.groups
        self.partial = f.pointer("%workspace", plan.copy_elements(spec), spec.dtype)
        packed = plan.copy_elements(spec) + plan.partial_elements(spec, self.lanes)
        self.packed = f.pointer("%workspace", packed, spec.dtype)
        #: Finds out whether the cotangent is finite, where that allows to leave out rows of zeros.
        self.check = FiniteCheck(f, spec.dtype) if plan.skips else None
        self.is_finite: Operand | None = None
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
        first = share(f, every, at[0], plan.grid[0])
        self.groups = first if plan.split_groups else whole
        self.panels = (0, columns.count) if plan.split_groups else first
        parts = -(-spec.depth // plan.channels)
        self.parts = share(f, parts, at[1], plan.grid[1])
        self.rows = share(f, spec.kernel[0], at[2], plan.grid[2])
        self._blocks()

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
                self._groups(b, last)

            f.loop(0, bands, plan.bands, [], some_bands)

        f.loop(0, images, blocks.images, [], some_images)

    def _groups(self, first_band: Index, last_band: Index) -> None:
        """Emit the loop over groups: copy, then block by block."""
        f, plan, spec = self.f, self.plan, self.spec

        def group(g: Index, _: list[Operand]) -> None:
            if plan.copies:
                self._parts(lambda part: self._copy(g, part))

            def band(b: Index, _: list[Operand]) -> None:
                self.row = f.mul_index(b, plan.blocks.rows)
                if self.resumes:
                    ends = first_and_last(f, plan.blocks, spec.images, self.image, b)
                    self.is_first, self.is_last = ends
                self._block(g)

            f.loop(first_band, last_band, 1, [], band)

        f.loop(*self.groups, 1, [], group)

    def _parts(self, visit: Callable[[Part], None]) -> None:
        """Emit the loops over the task's parts of the input channels of a group."""
        f = self.f
        done = taken = 0
        for size, count in split(self.spec.depth, self.plan.channels):

            def part(
                p: Index, _: list[Operand], size: int = size, at: int = done, no: int = taken
            ) -> None:
                visit(Part(p, f.add_index(at, f.mul_index(f.sub_index(p, no), size)), size))

            low = max_index(f, self.parts[0], taken)
            f.loop(low, f.min_index(self.parts[1], taken + count), 1, [], part)
            done, taken = done + size * count, taken + count

    # Images

    def _images(self) -> Index:
        """Return the number of images of the block."""
        f = self.f
        return f.min_index(self.plan.blocks.images, f.sub_index(self.spec.images, self.image))

    def _copy(self, group: Index, part: Part) -> None:
        f, plan, spec = self.f, self.plan, self.spec
        channel = f.add_index(f.mul_index(group, spec.depth), part.start)
        copy = PaddedCopy(spec.x_shape, plan.across, part.size, self.dtype, spec.prologue)
        top = f.add_index(f.mul_index(self.copied, plan.down.stride), plan.down.low)
        rows = plan.down.length(plan.copied_rows)
        pitch = self._pitch(part.size)[0]
        start = self._copied(part)

        def image(i: Index, _: list[Operand]) -> None:
            to = f.pointer(start, f.mul_index(i, pitch), self.dtype)
            copy.call(f, to, f.add_index(self.image, i), top, rows, channel)

        f.loop(0, self._images(), 1, [], image)

    def _copied(self, part: Part) -> str:
        """Return where the copy of a part stands."""
        number = self.f.sub_index(part.number, self.parts[0])
        offset = self.f.mul_index(number, self.plan.part_elements())
        return self.f.pointer("%workspace", offset, self.dtype)

    def _pitch(self, size: int) -> tuple[int, int, int]:
        """Return the elements of what is read: from one image to the next, one row, one pixel."""
        plan, spec = self.plan, self.spec
        if plan.copies:
            row = plan.across.length(plan.across.extent) * size
            return plan.down.length(plan.copied_rows) * row, row, size
        row = spec.width * spec.in_channels
        return spec.height * row, row, spec.in_channels

    # Tiles

    def _block(self, group: Index) -> None:
        """Emit the tiles of a block, panel by panel."""
        f, plan, spec = self.f, self.plan, self.spec
        columns = tile_columns(f, self.outs, self.lanes, plan.shape.vectors, self.masks)
        pixel = f.mul_index(self.image, spec.counts[0])
        pixel = f.mul_index(f.add_index(pixel, self.row), spec.counts[1])

        def panel(p: Index, column: Index, widths: tuple[int, ...], tail: Index) -> None:
            assert isinstance(tail, int)
            channel = f.add_index(f.mul_index(group, self.outs), column)
            place = f.add_index(f.mul_index(pixel, spec.out_channels), channel)
            g = f.pointer("%weight", place, self.dtype)
            step = spec.out_channels
            if plan.packs:
                step = sum(w or 1 for w in widths)
                existing = step - widths[-1] + tail if tail else step
                source, to = (g, self.dtype, spec.out_channels), (self.packed, self.dtype, step)
                packing.copy_rows(f, source, to, self._pixels(), existing)
                g = self.packed
            if self.check:
                self.check.reset()
                self.check.add(g, self._pixels(), widths, tail, step)
                self.is_finite = self.check.is_finite()
            at = (group, p, channel)
            self._parts(lambda part: self._tiles(part, at, (widths, tail), (g, step)))

        columns.each(*self.panels, panel)

    def _tiles(
        self,
        part: Part,
        at: tuple[Index, Index, Index],
        vectors: tuple[tuple[int, ...], int],
        cotangent: tuple[str, int],
    ) -> None:
        """Emit the tiles of a panel and a part of the input channels.

        Args:
            part: the part.
            at: the group; the panel; its first channel.
            vectors: widths and tail.
            cotangent: where it is, and elements from one pixel to the next.
        """
        f, plan, spec = self.f, self.plan, self.spec
        group, panel, channel = at
        g, step = cotangent
        levels = self._levels(part.size, step)
        kept = self._partial_panel(group, panel, part)

        def tiles(i: Index, rows: int, j: Index, across: int) -> None:
            done = 0
            for channels, count in split(part.size, plan.shape.columns):
                box = Box((rows, across, channels))
                tile = self._tile(box, part.size, vectors, levels)

                def along(d: Index, _: list[Operand], tile: Tile = tile) -> None:
                    self._call(tile, (i, j, d), (group, part, channel), (g, kept))

                f.loop(done, done + count * channels, channels, [], along)
                done += count * channels

        def kernel_row(i: Index, rows: int) -> None:
            every = (0, spec.kernel[1])
            each_part(f, every, plan.shape.rows, spec.kernel[1], lambda j, n: tiles(i, rows, j, n))

        each_part(f, self.rows, plan.shape.images, spec.kernel[0], kernel_row)

    def _pixels(self) -> Index:
        """Return the number of pixels of the block."""
        f, counts = self.f, self.spec.counts
        rows = f.min_index(self.plan.blocks.rows, f.sub_index(counts[0], self.row))
        return f.mul_index(f.mul_index(self._images(), rows), counts[1])

    def _levels(self, size: int, step: int) -> tuple[Level, ...]:
        """Return the loops over the pixels of a block: of images, rows, columns. The pixels lie
        ``step`` elements apart in the cotangent."""
        plan, spec = self.plan, self.spec
        image, row, pixel = self._pitch(size)
        rows, columns = spec.counts
        down, across = plan.down.stride * row, plan.across.stride * pixel
        blocks = plan.blocks
        if plan.skips:
            known = self._known_images()
            outer = Level(known, image, rows * columns * step)
            inner = nest([(columns, across)], step)
            return outer, Level(None, down, columns * step), *inner
        if blocks.images > 1 or not spec.images:
            loops, outermost = [(rows, down), (columns, across)], image
            known = self._known_images()
        else:
            loops, outermost = [(columns, across)], down
            known = None if rows % blocks.rows else blocks.rows
        if known is not None:
            return nest([(known, outermost), *loops], step)
        first, *others = nest(loops, step)
        if first.turns is not None and outermost == first.turns * first.a:
            return first._replace(turns=None), *others
        products = math.prod(turns for turns, _ in loops)
        return Level(None, outermost, step * products), first, *others

    def _known_images(self) -> int | None:
        """Return how many images a block has, if that is the same for all."""
        images, most = self.spec.images, self.plan.blocks.images
        return None if not images or images % most else most

    def _turns(self, tile: Tile, kernel_row: Index) -> tuple[dict[str, Index], Index]:
        """Return the turns of loops that are not known, and the first row of the block, counted
        from the block's first, that a tile's rows of the kernel see in an image."""
        f, plan, spec = self.f, self.plan, self.spec
        rows, columns = spec.counts
        count = f.min_index(plan.blocks.rows, f.sub_index(rows, self.row))
        if not plan.skips:
            of_images = plan.blocks.images > 1 or not spec.images
            turns = self._images() if of_images else count
            # The first loop may be two or three, over rows or pixels that are equally far apart.
            pixels = rows * columns if of_images else columns
            inner = math.prod(level.turns for level in tile.levels if level.turns is not None)
            return {"turns0": f.mul_index(turns, pixels // max(inner, 1))}, 0
        assert self.is_finite is not None
        stride, offset, height = plan.down.stride, plan.down.low, spec.height
        dilation = spec.dilation[0]
        first = f.add_index(f.mul_index(kernel_row, dilation), offset)
        last = f.add_index(first, (tile.box.counts[0] - 1) * dilation)
        before = f.add_index(positive(f, f.sub_index(0, last)), stride - 1)
        within = f.add_index(positive(f, f.sub_index(height, first)), stride - 1)
        low = positive(f, f.sub_index(f.floordiv_index(before, stride), self.row))
        high = positive(f, f.sub_index(f.floordiv_index(within, stride), self.row))
        high = f.min_index(high, count)
        low = f.select(self.is_finite, f.operand(f.min_index(low, high)), f.operand(0))
        high = f.select(self.is_finite, f.operand(high), f.operand(count))
        return {"turns0": self._images(), "turns1": f.sub_index(high, low)}, low

    def _tile(
        self,
        box: Box,
        size: int,
        vectors: tuple[tuple[int, ...], int],
        levels: tuple[Level, ...],
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
            *vectors,
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

    def _partial_panel(self, group: Index, panel: Index, part: Part) -> str:
        """Return where sums of the blocks so far stand, for a panel and a part of the channels."""
        f, plan, spec = self.f, self.plan, self.spec
        if not self.resumes:
            return "null"
        _, panels, parts, rows = plan.shares(spec, self.lanes)
        slot = f.mul_index(f.sub_index(group, self.groups[0]), panels)
        slot = f.add_index(slot, f.sub_index(panel, self.panels[0]))
        slot = f.add_index(f.mul_index(slot, parts), f.sub_index(part.number, self.parts[0]))
        elements = plan.channels * rows * spec.kernel[1] * plan.shape.vectors * self.lanes
        return f.pointer(self.partial, f.mul_index(slot, elements), self.dtype)

    def _call(
        self,
        tile: Tile,
        at: tuple[Index, Index, Index],
        channels: tuple[Index, Part, Index],
        pointers: tuple[str, str],
    ) -> None:
        """Emit the call that computes one tile.

        Args:
            tile: its shape.
            at: its first row and column of the kernel, and channel of the part.
            channels: the group; the part of its input channels; the panel's first channel.
            pointers: the cotangent; the panel's sums of the blocks so far.
        """
        f, plan, spec = self.f, self.plan, self.spec
        i, j, d = at
        group, part, channel = channels
        pitch = self._pitch(part.size)
        source = self._copied(part)
        first = f.mul_index(f.sub_index(self.row, self.copied), plan.down.stride)
        places: list[Index] = [0, first, 0]
        turns, low = self._turns(tile, i)
        offset = d
        if not plan.copies:
            source = "%image"
            first = f.add_index(f.mul_index(self.row, plan.down.stride), plan.down.low)
            places = [self.image, first, plan.across.low]
            first_channel = f.add_index(f.mul_index(group, spec.depth), part.start)
            offset = f.add_index(first_channel, d)
        places[1] = f.add_index(places[1], f.mul_index(i, spec.dilation[0]))
        places[2] = f.add_index(places[2], f.mul_index(j, spec.dilation[1]))
        g = pointers[0]
        if plan.skips:
            places[1] = f.add_index(places[1], f.mul_index(low, plan.down.stride))
            g = f.pointer(g, f.mul_index(low, tile.levels[1].b), self.dtype)
        for place, step in zip(places, pitch, strict=True):
            offset = f.add_index(offset, f.mul_index(place, step))
        row = f.mul_index(f.sub_index(i, self.rows[0]), spec.kernel[1])
        row = f.add_index(f.mul_index(f.add_index(row, j), part.size), d)
        within = f.mul_index(row, sum(w or 1 for w in tile.widths))
        given = {
            "a": f.pointer(source, offset, self.dtype),
            "b": g,
            "out": "%out",
            "extra": "%extra",
            "partial": f.pointer(pointers[1], within, self.dtype) if self.resumes else "null",
        }
        values: dict[str, Index] = {
            "image": i,
            "row": j,
            "column": f.add_index(part.start, d),
            "channel": channel,
            "first": self.is_first,
            "last": self.is_last,
            **turns,
        }
        if tile.epilogue is None:
            offset = channel
            for name, step in zip(("image", "row", "column"), self._result_pitch(), strict=True):
                offset = f.add_index(offset, f.mul_index(values[name], step))
            given["out"] = f.pointer("%out", offset, self.dtype)
        tile.call(f, given, **values)
