"""Convolutions by Winograd's algorithm: the loops around transformations and products.

A task takes blocks of tiles: of images, or of bands of rows of one image. It transforms what they
see; then for each panel of output channels it multiplies, number by number, and finishes the tiles.
"""

from __future__ import annotations

from collections.abc import Callable

from needle.backends.cpu.conv.finish import Box
from needle.backends.cpu.conv.parts import share
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.conv.tile import Level, Tile
from needle.backends.cpu.conv.tile_transform import TileTransform
from needle.backends.cpu.conv.winograd_plan import WinogradPlan
from needle.backends.cpu.conv.winograd_transform import OutputTransform, pieces
from needle.backends.cpu.gemm.plan import split, uses_masks
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.ops.winograd import ELEMENTS, SIDE, TILE


class WinogradConvolution:
    """Emits the body of a kernel's function."""

    def __init__(self, f: Function, spec: ConvSpec, plan: WinogradPlan) -> None:
        self.f, self.spec, self.plan = f, spec, plan
        self.dtype = spec.dtype
        self.lanes = f.target.lanes(spec.dtype)
        self.tiles, self.products, self.zeros = (
            f.pointer("%workspace", place, spec.dtype) for place in plan.places[:3]
        )
        # The block that is being emitted: its first image and row of tiles.
        self.image: Index = 0
        self.row: Index = 0

    def emit(self) -> None:
        """Emit the task: block after block."""
        f, plan = self.f, self.plan
        task: Index = f.argument("task") if plan.tasks > 1 else 0
        part, channels = f.floordiv_index(task, plan.grid[1]), f.mod_index(task, plan.grid[1])
        panels = share(f, plan.panels, channels, plan.grid[1])
        zero = f.constant(0, self.dtype, self.lanes)
        f.loop(*plan.places[2:], self.lanes, [], lambda i, _: f.store(zero, "%workspace", i))

        def block(b: Index, _: list[Operand]) -> None:
            self.image = f.mul_index(f.floordiv_index(b, plan.bands), plan.images)
            self.row = f.mul_index(f.mod_index(b, plan.bands), plan.rows)
            self._sized(lambda images, rows: self._block(images, rows, panels))

        f.loop(*share(f, plan.blocks, part, plan.grid[0]), 1, [], block)

    def _sized(self, visit: Callable[[int, int], None]) -> None:
        """Emit ``visit(images, rows)`` for the size of the block: the last ones may be smaller."""
        f, plan = self.f, self.plan
        n, extent = plan.source[0], plan.down
        left, least = n % plan.images, extent % plan.rows
        if left:
            is_last = f.compare("eq", f.operand(self.image), f.operand(n - left))
            f.branch(is_last, lambda: visit(left, plan.rows), lambda: visit(plan.images, plan.rows))
        elif least:
            is_last = f.compare("eq", f.operand(self.row), f.operand(extent - least))
            f.branch(is_last, lambda: visit(1, least), lambda: visit(1, plan.rows))
        else:
            visit(plan.images, plan.rows)

    def _block(self, images: int, rows: int, panels: tuple[Index, Index]) -> None:
        f, plan = self.f, self.plan
        f.loop(0, images, 1, [], lambda i, _: self._transform(i, rows))

        def panel(p: Index, widths: tuple[int, ...], tail: int) -> None:
            self._multiply(p, images * rows * plan.across)
            f.loop(0, images, 1, [], lambda i, _: self._finish(i, rows, p, widths, tail))

        outs = plan.result[3]
        first, last = panels
        whole = outs // plan.width
        masks = uses_masks(f.target, self.dtype)
        every = pieces(plan.width, self.lanes, masks)
        f.loop(first, f.min_index(last, whole), 1, [], lambda p, _: panel(p, *every))
        if outs % plan.width:
            rest = pieces(outs % plan.width, self.lanes, masks)
            f.loop(whole, last, 1, [], lambda p, _: panel(p, *rest))

    def _transform(self, image: Index, rows: int) -> None:
        """Emit the transformation of what the tiles of an image see."""
        f, plan = self.f, self.plan
        _, height, width, channels = plan.source
        (top, _), (left, _) = self.spec.pads
        at = f.mul_index(f.add_index(self.image, image), height * width * channels)
        tile = f.mul_index(image, rows * plan.across * channels)
        transform = TileTransform(
            SIDE,
            -left,
            plan.across,
            channels,
            (height, width, channels),
            plan.transformed,
            self.dtype,
        )
        transform.call(
            f,
            f.pointer("%image", at, self.dtype),
            self.zeros,
            f.pointer(self.tiles, tile, self.dtype),
            f.sub_index(f.mul_index(self.row, TILE), top),
            rows,
        )

    def _multiply(self, panel: Index, tiles: int) -> None:
        """Emit the products of the block's tiles and a panel, number by number."""
        f, plan = self.f, self.plan
        channels, width = plan.source[3], plan.width
        wide = plan.vectors * self.lanes

        def point(e: Index, _: list[Operand]) -> None:
            seen = f.pointer(self.tiles, f.mul_index(e, plan.transformed), self.dtype)
            at = f.add_index(f.mul_index(panel, ELEMENTS), e)
            weight = f.pointer("%weight", f.mul_index(at, channels * width), self.dtype)
            to = f.pointer(self.products, f.mul_index(e, plan.products), self.dtype)

            def some(t: Index, rows: int, column: Index) -> None:
                tile = Tile(
                    Box((1, 1, rows)),
                    tuple(i * channels for i in range(rows)),
                    tuple(i * width for i in range(rows)),
                    (self.lanes,) * plan.vectors,
                    0,
                    (Level(channels, 1, width),),
                    self.dtype,
                )
                place = f.add_index(f.mul_index(t, width), column)
                pointers = {
                    "a": f.pointer(seen, f.mul_index(t, channels), self.dtype),
                    "b": f.pointer(weight, column, self.dtype),
                    "out": f.pointer(to, place, self.dtype),
                }
                tile.call(f, pointers)

            def columns(column: Index, _: list[Operand]) -> None:
                done = 0
                for rows, count in split(tiles, plan.rows_held):

                    def tile(t: Index, _: list[Operand], rows: int = rows) -> None:
                        some(t, rows, column)

                    f.loop(done, done + rows * count, rows, [], tile)
                    done += rows * count

            f.loop(0, width, wide, [], columns)

        f.loop(0, ELEMENTS, 1, [], point)

    def _finish(
        self, image: Index, rows: int, panel: Index, widths: tuple[int, ...], tail: int
    ) -> None:
        """Emit what becomes of the products of an image's tiles."""
        f, plan, spec = self.f, self.plan, self.spec
        _, height, columns, outs = plan.result
        across = plan.across
        number = f.add_index(self.image, image)
        channel = f.mul_index(panel, plan.width)

        def row(i: Index, existing: int) -> None:
            transform = OutputTransform(
                widths,
                tail,
                plan.width,
                plan.products,
                existing,
                columns,
                (columns * outs, outs),
                plan.source[3],
                self.dtype,
                spec.epilogue,
            )
            tile = f.mul_index(f.add_index(f.mul_index(image, rows), i), across)
            here = f.mul_index(f.add_index(self.row, i), TILE)
            out = "%out"
            if spec.epilogue is None:
                at = f.add_index(f.mul_index(number, height), here)
                at = f.add_index(f.mul_index(at, columns * outs), channel)
                out = f.pointer(out, at, self.dtype)
            pointers = {
                "products": f.pointer(self.products, f.mul_index(tile, plan.width), self.dtype),
                "out": out,
                "extra": "%extra",
            }
            transform.call(f, pointers, image=number, row=here, column=0, channel=channel)

        # The last row of tiles of an odd extent has one row of the result.
        odd = height % TILE and rows == (plan.down - 1) % plan.rows + 1
        if not odd:
            f.loop(0, rows, 1, [], lambda i, _: row(i, TILE))
            return
        f.loop(0, rows - 1, 1, [], lambda i, _: row(i, TILE))
        last = f.compare("eq", f.operand(self.row), f.operand(plan.down - rows))
        f.branch(last, lambda: row(rows - 1, 1), lambda: row(rows - 1, TILE))
