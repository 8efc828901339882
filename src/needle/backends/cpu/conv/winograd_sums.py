"""Gradients by weights in Winograd's form: tiles are transformed, multiplied, and added up.

Block by block: tiles of pixels and of results are transformed, which makes 16 matrices, tiles ×
channels, of each; and the products of the matrices are added to the sums of earlier blocks. All of
that stays in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from needle.backends.cpu.conv.finish import Box
from needle.backends.cpu.conv.parts import share
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.conv.tile import Level, Tile
from needle.backends.cpu.conv.tile_transform import TileTransform
from needle.backends.cpu.conv.winograd_sums_plan import WinogradSumsPlan
from needle.backends.cpu.gemm.plan import split, uses_masks
from needle.backends.cpu.gemm.tiling import tile_columns
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.ops.winograd import ELEMENTS, SIDE

#: Vectors of sums in a row of a tile, at most.
VECTORS = 2


class Unit(NamedTuple):
    """Sums that are made together: of a piece of the images, for a part of the channels of each."""

    piece: Index
    input: Index
    inputs: int
    output: Index
    outputs: int


class Block(NamedTuple):
    """Tiles whose products are added at once: rows of tiles of some images, and whether they are
    the first and the last of a piece."""

    image: Index
    images: int
    row: Index
    rows: int
    is_first: Operand
    is_last: Operand


class WinogradSums:
    """Emits the body of a kernel's function."""

    def __init__(self, f: Function, spec: ConvSpec, plan: WinogradSumsPlan) -> None:
        self.f = f
        self.spec = spec
        self.plan = plan
        self.dtype = spec.dtype
        self.lanes = f.target.lanes(spec.dtype)
        self.masks = uses_masks(f.target, spec.dtype)
        sizes = plan.sizes(spec, self.lanes)
        self.zero_row = sizes[0]
        self.zeros, self.pixels, self.results, self.sums = (
            f.pointer("%workspace", sum(sizes[:i]), spec.dtype) for i in range(len(sizes))
        )
        self.pitches = plan.pitch(plan.inputs), plan.pitch(plan.outputs)

    def emit(self) -> None:
        """Emit the task: its pieces and parts of the channels."""
        f, plan, spec = self.f, self.plan, self.spec
        task: Index = f.argument("task") if plan.tasks > 1 else 0
        inputs, outputs = (
            split(spec.in_channels, plan.inputs),
            split(spec.out_channels, plan.outputs),
        )
        parts, across = (sum(count for _, count in runs) for runs in (inputs, outputs))
        first, last = share(f, plan.pieces * parts * across, task, plan.tasks)
        zero = f.constant(0, self.dtype, self.lanes)
        f.loop(0, self.zero_row, self.lanes, [], lambda i, _: f.store(zero, self.zeros, i))

        def unit(u: Index, _: list[Operand]) -> None:
            piece, part = f.floordiv_index(u, parts * across), f.mod_index(u, parts * across)

            def some_inputs(c: Index, n: int) -> None:
                column = f.mod_index(part, across)
                self._part(outputs, column, lambda o, m: self._unit(Unit(piece, c, n, o, m)))

            self._part(inputs, f.floordiv_index(part, across), some_inputs)

        f.loop(first, last, 1, [], unit)

    def _part(
        self, runs: Sequence[tuple[int, int]], number: Index, visit: Callable[[Index, int], None]
    ) -> None:
        """Emit ``visit(start, size)`` for one of the parts that channels are split into."""
        f, done, taken = self.f, 0, 0
        for size, count in runs:
            within = f.sub_index(number, taken)
            start = f.add_index(done, f.mul_index(within, size))
            if len(runs) == 1:
                visit(start, size)
            else:
                is_here = f.compare("ult", f.operand(within), f.operand(count))
                f.branch(is_here, lambda start=start, size=size: visit(start, size))  # type: ignore[misc]
            done, taken = done + size * count, taken + count

    def _unit(self, unit: Unit) -> None:
        """Emit the blocks of a piece of the images."""
        f, plan, down = self.f, self.plan, self.plan.tiles[0]
        first, last = share(f, self.spec.images, unit.piece, plan.pieces)
        whole = down // plan.rows * plan.rows

        def block(image: Index, images: int, row: Index, rows: int) -> None:
            below, after = f.add_index(row, rows), f.add_index(image, images)
            begins, starts, ends, stops = (
                f.compare("eq", f.operand(a), f.operand(b))
                for a, b in ((image, first), (row, 0), (after, last), (below, down))
            )
            is_first, is_last = f.binary("and", begins, starts), f.binary("and", ends, stops)
            self._block(unit, Block(image, images, row, rows, is_first, is_last))

        def bands(image: Index, images: int) -> None:
            f.loop(0, whole, plan.rows, [], lambda r, _: block(image, images, r, plan.rows))
            if whole < down:
                block(image, images, whole, down - whole)

        left = f.mod_index(f.sub_index(last, first), plan.images)
        together = f.sub_index(last, left)
        f.loop(first, together, plan.images, [], lambda i, _: bands(i, plan.images))
        if plan.images > 1:
            f.loop(together, last, 1, [], lambda i, _: bands(i, 1))

    def _block(self, unit: Unit, block: Block) -> None:
        """Emit the transformation of a block's tiles, and their products."""
        f, plan, spec = self.f, self.plan, self.spec
        (top, _), (left, _) = spec.pads
        tiles = block.rows * plan.tiles[1]
        start = f.mul_index(block.row, 2)

        def transform(
            side: int, corner: tuple[Index, int], shape: tuple[int, ...], pitch: int,
            given: tuple[str, Index, int, str],
        ) -> None:  # fmt: skip
            base, channel, channels, target = given
            kind = TileTransform(
                side, corner[1], plan.tiles[1], channels, shape[1:], pitch, self.dtype
            )
            for i in range(block.images):
                image = f.add_index(block.image, i)
                place = f.add_index(f.mul_index(image, shape[1] * shape[2] * shape[3]), channel)
                source = f.pointer(base, place, self.dtype)
                to = f.pointer(target, i * tiles * channels, self.dtype)
                kind.call(f, source, self.zeros, to, corner[0], block.rows)

        x = ("%image", unit.input, unit.inputs, self.pixels)
        g = ("%weight", unit.output, unit.outputs, self.results)
        transform(SIDE, (f.sub_index(start, top), -left), spec.x_shape, self.pitches[0], x)
        transform(2, (start, 0), spec.y_shape, self.pitches[1], g)
        self._multiply(unit, block, block.images * tiles)

    # Products

    def _multiply(self, unit: Unit, block: Block, tiles: int) -> None:
        """Emit the 16 products of a block's matrices, added to the sums so far."""
        f = self.f
        columns = tile_columns(f, unit.outputs, self.lanes, VECTORS, self.masks)
        padded = -(-unit.outputs // self.lanes) * self.lanes

        def element(e: Index, _: list[Operand]) -> None:
            pixels = f.pointer(self.pixels, f.mul_index(e, self.pitches[0]), self.dtype)
            results = f.pointer(self.results, f.mul_index(e, self.pitches[1]), self.dtype)
            sums = f.pointer(self.sums, f.mul_index(e, unit.inputs * padded), self.dtype)

            def panel(_: Index, column: Index, widths: tuple[int, ...], tail: Index) -> None:
                assert isinstance(tail, int)
                most = (f.target.registers - len(widths) - 1) // len(widths)
                done, width = 0, sum(w or 1 for w in widths)
                b = f.pointer(results, column, self.dtype)
                panel_sums = f.pointer(sums, f.mul_index(column, unit.inputs), self.dtype)
                for size, count in split(unit.inputs, most):
                    tile = self._tile(size, (widths, tail), tiles, unit)

                    def part(k: Index, _: list[Operand], tile: Tile = tile) -> None:
                        a = f.pointer(pixels, k, self.dtype)
                        partial = f.pointer(panel_sums, f.mul_index(k, width), self.dtype)
                        self._call(tile, unit, block, (e, k, column), (a, b, partial))

                    f.loop(done, done + size * count, size, [], part)
                    done += size * count

            columns.each(0, columns.count, panel)

        f.loop(0, ELEMENTS, 1, [], element)

    def _tile(
        self, size: int, vectors: tuple[tuple[int, ...], int], tiles: int, unit: Unit
    ) -> Tile:
        """Return the sums of so many input channels × vectors of output channels."""
        epilogue = self.spec.epilogue
        row = self.spec.out_channels if epilogue is None else 0
        return Tile(
            Box((1, 1, size)),
            tuple(range(size)),
            tuple(i * row for i in range(size)),
            *vectors,
            (Level(tiles, unit.inputs, unit.outputs),),
            self.dtype,
            resumes=True,
            epilogue=epilogue,
        )

    def _call(
        self,
        tile: Tile,
        unit: Unit,
        block: Block,
        at: tuple[Index, Index, Index],
        pointers: tuple[str, str, str],
    ) -> None:
        """Emit the call that computes one tile.

        Args:
            tile: its shape.
            unit, block: what is summed.
            at: which of the 16 matrices; the first input and output channel of the unit.
            pointers: pixels; results; the tile's sums of the blocks so far.
        """
        f, spec = self.f, self.spec
        e, k, column = at
        values: dict[str, Index] = {
            "image": unit.piece,
            "row": e,
            "column": f.add_index(unit.input, k),
            "channel": f.add_index(unit.output, column),
            "first": block.is_first,
            "last": block.is_last,
        }
        out = "%out"
        if tile.epilogue is None:
            place = f.add_index(f.mul_index(unit.piece, ELEMENTS), e)
            place = f.add_index(f.mul_index(place, spec.in_channels), values["column"])
            place = f.add_index(f.mul_index(place, spec.out_channels), values["channel"])
            out = f.pointer("%out", place, self.dtype)
        a, b, partial = pointers
        given = {"a": a, "b": b, "out": out, "extra": "%extra", "partial": partial}
        tile.call(f, given, **values)
