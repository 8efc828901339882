"""The loops of the gradient by the weight: units of the work, blocks of pixels, tiles of sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from needle import dtypes
from needle.backends.cpu.conv.microkernel import VECTORS
from needle.backends.cpu.conv.sorted_copy import SortedCopy
from needle.backends.cpu.conv.weight_geometry import WeightGeometry
from needle.backends.cpu.conv.weight_tiles import OutTile, PixelTile, row_counts
from needle.backends.cpu.gemm.packing import turn
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.dtypes import DType

#: The words that a launched gradient gets: addresses; the elements of each task's workspace, the
#: number of tasks. The description is the geometry and its tables; a table of all units' sums.
WORDS = ("description", "cotangent", "image", "out", "sums", "workspace", "elements", "tasks")
_POINTERS = WORDS[:6]


def emit_weight_gradient(module: Module, dtype: DType, name: str) -> str:
    """Add ``void name(ptr words)`` to the module, for all gradients of a dtype.

    Returns:
        Its name.
    """
    jobs = [
        _task(module, dtype, f"{name}_sums", _Unit(module, dtype).emit(), ("pieces", "chunks")),
        _task(module, dtype, f"{name}_out", _Piece(module, dtype).emit(), ("pieces",)),
    ]
    f = Function(module, module.unique(name), {"words": "ptr"}, internal=False)
    count = f.load("%words", WORDS.index("tasks"), dtypes.int64)
    for job in jobs:

        def together(job: str = job) -> None:
            module.declare("needle_parallel", "void", ["ptr", "ptr", "i64"])
            f.emit(f"call void @needle_parallel(ptr @{job}, ptr %words, {count.typed})")

        def alone(job: str = job) -> None:
            f.emit(f"call void @{job}(ptr %words, i64 0)")

        f.branch(f.compare("eq", count, f.operand(1)), alone, together)
    return f.end()


def _task(module: Module, dtype: DType, name: str, part: str, extents: Sequence[str]) -> str:
    """Emit the function of a task, which runs its share of the parts; return its name."""
    f = Function(module, module.unique(name), {"words": "ptr", "task": "i64"})
    pointers = [
        f.value(f"load ptr, ptr {f.pointer('%words', i, dtypes.int64)}")
        for i in range(len(_POINTERS))
    ]
    elements, tasks = (f.load("%words", WORDS.index(w), dtypes.int64) for w in WORDS[6:])
    this = f.argument("task")
    pointers[-1] = f.pointer(pointers[-1], f.mul_index(this, elements), dtype)
    count: Index = 1
    for extent in extents:
        place = WeightGeometry.names().index(extent)
        count = f.mul_index(count, f.load(pointers[0], place, dtypes.int64))
    listed = ", ".join(f"ptr {p}" for p in pointers)

    def run(i: Index, _: list[Operand]) -> None:
        f.emit(f"call void @{part}({listed}, {f.operand(i).typed})")

    f.loop(
        f.floordiv_index(f.mul_index(count, this), tasks),
        f.floordiv_index(f.mul_index(count, f.add_index(this, 1)), tasks),
        1,
        [],
        run,
    )
    return f.end()


class _Part:
    """What the functions of both jobs begin with: the description, and which piece it is about."""

    def __init__(self, module: Module, dtype: DType, name: str) -> None:
        arguments = {**dict.fromkeys(_POINTERS, "ptr noalias"), "unit": "i64"}
        self.f = Function(module, module.unique(name), arguments, inline="noinline")
        self.dtype = dtype
        self.lanes = self.f.target.lanes(dtype)
        f = self.f
        names = WeightGeometry.names()
        self.g = {name: f.load("%description", i, dtypes.int64) for i, name in enumerate(names)}
        g = self.g
        self.by_pixels = f.compare("ne", g["by_pixels"], f.operand(0))
        self.piece = f.mod_index(f.argument("unit"), g["pieces"])
        self.group = f.floordiv_index(self.piece, g["out_blocks"])
        first = f.mul_index(f.mod_index(self.piece, g["out_blocks"]), VECTORS * self.lanes)
        #: The first output channel, counted in the group, and how many there are.
        self.first = f.operand(first)
        self.outs = f.min_index(f.sub_index(g["outs"], first), VECTORS * self.lanes)
        self.vectors = f.operand(
            f.floordiv_index(f.add_index(self.outs, self.lanes - 1), self.lanes)
        )

    def per_vectors(self, emit: Callable[[int], None]) -> None:
        """Emit one case for each number of vectors of output channels."""
        cases: list[Callable[[], None]] = [
            lambda v=v: emit(v)  # type: ignore[misc]
            for v in range(1, VECTORS + 1)
        ]
        self.f.switch(self.f.operand(self.f.sub_index(self.vectors, 1)), cases)


class _Unit(_Part):
    """Emits the function of one unit: the sums of a piece over the blocks of a chunk."""

    def __init__(self, module: Module, dtype: DType) -> None:
        super().__init__(module, dtype, "weight_unit")
        f, g = self.f, self.g
        #: The workspace: sums by lanes, the copy of images, the turned cotangent.
        self.lane_sums = "%workspace"
        self.copy = f.pointer("%workspace", g["lane_sums"], dtype)
        self.panel = f.pointer(self.copy, g["copy"], dtype)
        self.sums = f.pointer("%sums", f.mul_index(f.argument("unit"), g["sums"]), dtype)
        slots = f.pointer("%description", len(g), dtypes.int64)
        sides = f.pointer(slots, g["slots"], dtypes.int64)
        self.table = f.pointer(sides, f.mul_index(g["remainders"], 3), dtypes.int64)
        self.copying = SortedCopy(f, dtype, g, slots, sides)

    def emit(self) -> str:
        f, g = self.f, self.g
        self._clear(self.sums, g["sums"])
        self._clear(self.lane_sums, g["lane_sums"])
        chunk = f.floordiv_index(f.argument("unit"), g["pieces"])
        divided = f.floordiv_index(
            f.add_index(g["images"], f.sub_index(g["block_images"], 1)), g["block_images"]
        )
        blocks = f.mul_index(divided, g["bands"])
        f.loop(
            f.floordiv_index(f.mul_index(blocks, chunk), g["chunks"]),
            f.floordiv_index(f.mul_index(blocks, f.add_index(chunk, 1)), g["chunks"]),
            1,
            [],
            self._block,
        )
        f.branch(self.by_pixels, self._fold)
        return f.end()

    def _clear(self, target: str, count: Operand) -> None:
        zero = self.f.constant(0, self.dtype, self.lanes)
        self.f.loop(0, count, self.lanes, [], lambda i, _: self.f.store(zero, target, i))

    def _block(self, block: Index, _: list[Operand]) -> None:
        """Emit what a block of pixels adds."""
        f, g = self.f, self.g
        image = f.mul_index(f.floordiv_index(block, g["bands"]), g["block_images"])
        band = f.mul_index(f.mod_index(block, g["bands"]), g["band_rows"])
        images = f.operand(f.min_index(g["block_images"], f.sub_index(g["images"], image)))
        lines = f.operand(f.min_index(g["band_rows"], f.sub_index(g["rows"], band)))
        plane = f.mul_index(g["height"], g["width"])
        image_step = f.mul_index(f.mul_index(plane, g["depth"]), g["groups"])
        within = f.mul_index(f.mul_index(self.group, g["depth"]), plane)
        seen = f.pointer("%image", f.add_index(f.mul_index(image, image_step), within), self.dtype)
        out_plane = f.mul_index(g["rows"], g["columns"])
        channel = f.add_index(f.mul_index(self.group, g["outs"]), self.first)
        out_step = f.mul_index(f.mul_index(out_plane, g["outs"]), g["groups"])
        place = f.add_index(f.mul_index(image, out_step), f.mul_index(channel, out_plane))
        place = f.add_index(place, f.mul_index(band, g["columns"]))
        cotangent = f.pointer("%cotangent", place, self.dtype)
        is_copied = f.compare("eq", g["in_place"], f.operand(0))
        f.branch(
            is_copied,
            lambda: self.copying.emit(
                seen, self.copy, band, images=images, image_step=image_step, room=g["block_images"]
            ),
        )
        start = f.add_index(g["start"], f.mul_index(band, g["width"]))
        lying = f.pointer(seen, start, self.dtype)
        source = f.value(f"select {is_copied.typed}, ptr {self.copy}, ptr {lying}")
        extents = [images, lines, g["columns"], g["image_step"], g["line_step"]]
        f.branch(
            self.by_pixels,
            lambda: self._pixels(source, cotangent, extents, out_plane, out_step),
            lambda: self._channels(source, cotangent, extents, out_plane, out_step),
        )

    # Output channels along the lanes

    def _channels(
        self, image: str, cotangent: str, extents: list[Operand], plane: Index, step: Index
    ) -> None:
        f, lanes, dtype = self.f, self.lanes, self.dtype
        images, lines, columns = extents[:3]
        pixels = f.mul_index(lines, columns)

        def turned(vectors: int) -> None:
            for v in range(vectors):
                missing = f.sub_index(self.outs, v * lanes)
                source = f.pointer(cotangent, f.mul_index(plane, v * lanes), dtype)
                target = f.pointer(self.panel, v * lanes, dtype)

                width = f.min_index(missing, lanes)

                def one(
                    m: Index,
                    _: list[Operand],
                    source: str = source,
                    target: str = target,
                    width: Index = width,
                ) -> None:
                    this = f.pointer(source, f.mul_index(m, step), dtype)
                    at = f.mul_index(f.mul_index(m, pixels), vectors * lanes)
                    there = f.pointer(target, at, dtype)
                    turn(f, (this, dtype, plane), (there, vectors * lanes), pixels, width)

                f.loop(0, images, 1, [], one, runs=True)
            self._tiles(
                [(n, OutTile(n, vectors, dtype)) for n in row_counts(f.target, vectors)],
                (image, self.panel, self.table, self.sums),
                VECTORS * lanes,
                [*extents, f.operand(0)],
            )

        self.per_vectors(turned)

    # Pixels along the lanes

    def _pixels(
        self, image: str, cotangent: str, extents: list[Operand], plane: Index, step: Index
    ) -> None:
        f, g, dtype = self.f, self.g, self.dtype
        jump = f.operand(f.sub_index(step, f.mul_index(extents[1], extents[2])))

        def out(o: Index, _: list[Operand]) -> None:
            seen = f.pointer(cotangent, f.mul_index(o, plane), dtype)
            place = f.mul_index(f.mul_index(o, g["taps"]), self.lanes)
            self._tiles(
                [(n, PixelTile(n, dtype)) for n in row_counts(f.target, 1)],
                (image, seen, self.table, f.pointer(self.lane_sums, place, dtype)),
                self.lanes,
                [*extents, jump],
            )

        f.loop(0, g["outs"], 1, [], out)

    def _fold(self) -> None:
        """Emit the sums over lanes: to where a row's sum with each output channel belongs."""
        f, g, lanes, dtype = self.f, self.g, self.lanes, self.dtype

        def out(o: Index, _: list[Operand]) -> None:
            source = f.pointer(self.lane_sums, f.mul_index(f.mul_index(o, g["taps"]), lanes), dtype)

            def row(r: Index, _: list[Operand]) -> None:
                total = f.fold(f.load(source, f.mul_index(r, lanes), dtype, lanes), f.add)
                f.store(total, self.sums, f.add_index(f.mul_index(r, VECTORS * lanes), o))

            f.loop(0, g["taps"], 1, [], row)

        f.loop(0, g["outs"], 1, [], out)

    def _tiles(
        self,
        tiles: Sequence[tuple[int, Any]],
        pointers: tuple[str, str, str, str],
        sums_step: int,
        extents: list[Operand],
    ) -> None:
        """Emit the tiles of all rows, the largest as often as they fit."""
        f, g = self.f, self.g
        image, cotangent, table, sums = pointers
        done: Index = 0
        for rows, tile in tiles:
            name = tile.function(f.module)
            fitting = f.floordiv_index(f.sub_index(g["taps"], done), rows)
            stop = f.add_index(done, f.mul_index(fitting, rows))

            def run(r: Index, _: list[Operand], name: str = name) -> None:
                places = f.pointer(table, r, dtypes.int64)
                here = f.pointer(sums, f.mul_index(r, sums_step), self.dtype)
                listed = ", ".join(f"ptr {p}" for p in (image, cotangent, places, here))
                numbers = ", ".join(e.typed for e in extents)
                f.emit(f"call void @{name}({listed}, {numbers})")

            f.loop(done, stop, rows, [], run)
            done = stop


class _Piece(_Part):
    """Emits the function of one piece: its chunks added up, and stored as weights lie in memory:
    [kh, kw, C, O]."""

    def __init__(self, module: Module, dtype: DType) -> None:
        super().__init__(module, dtype, "weight_piece")

    def emit(self) -> str:
        f, g, dtype = self.f, self.g, self.dtype
        sums = f.pointer("%sums", f.mul_index(self.piece, g["sums"]), dtype)
        step = f.mul_index(g["pieces"], g["sums"])
        channel = f.add_index(f.mul_index(self.group, g["outs"]), self.first)
        out = f.pointer("%out", channel, dtype)
        f.loop(1, g["chunks"], 1, [], lambda c, _: self._add(sums, f.mul_index(c, step)))
        places = f.floordiv_index(g["taps"], g["depth"])
        width = f.mul_index(g["groups"], g["outs"])

        def row(c: Index, place: Index) -> None:
            number = f.add_index(f.mul_index(c, places), place)
            source = f.pointer(sums, f.mul_index(number, VECTORS * self.lanes), dtype)
            number = f.add_index(f.mul_index(place, g["depth"]), c)
            to = f.pointer(out, f.mul_index(number, width), dtype)

            def vector(v: Index, _: list[Operand]) -> None:
                at = f.mul_index(v, self.lanes)
                mask = f.tail_mask(f.sub_index(self.outs, at), self.lanes)
                f.store(f.load(source, at, dtype, self.lanes), to, at, mask)

            f.loop(0, self.vectors, 1, [], vector)

        def channels(c: Index, _: list[Operand]) -> None:
            f.loop(0, places, 1, [], lambda place, _: row(c, place))

        f.loop(0, g["depth"], 1, [], channels)
        return f.end()

    def _add(self, sums: str, distance: Index) -> None:
        """Emit the addition of another chunk's sums to those of the first."""
        f, lanes, dtype = self.f, self.lanes, self.dtype
        other = f.pointer(sums, distance, dtype)

        def row(r: Index, _: list[Operand]) -> None:
            def vector(v: Index, _: list[Operand]) -> None:
                at = f.add_index(f.mul_index(r, VECTORS * lanes), f.mul_index(v, lanes))
                x, y = f.load(sums, at, dtype, lanes), f.load(other, at, dtype, lanes)
                f.store(f.add(x, y), sums, at)

            f.loop(0, self.vectors, 1, [], vector)

        f.loop(0, self.g["taps"], 1, [], row)


__all__ = ["WORDS", "emit_weight_gradient"]
