"""The loops of a correlation: parts of the work, tiles of its result."""

from __future__ import annotations

from collections.abc import Callable

from needle import dtypes
from needle.backends.cpu.conv.geometry import Geometry
from needle.backends.cpu.conv.microkernel import VECTORS, Tile, tile_rows
from needle.backends.cpu.conv.sorted_copy import SortedCopy, move_neighbours
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.dtypes import DType

#: The words that a launched correlation gets: addresses; the elements of each task's workspace, the
#: number of tasks. The description is the geometry and its tables.
WORDS = ("description", "image", "weight", "out", "workspace", "elements", "tasks")


def slack(lanes: int) -> int:
    """Return the elements of a task's workspace besides the copy: the sums of a tile, and what is
    read past the end of the copy."""
    return (8 + 2) * VECTORS * lanes


def emit_correlation(module: Module, dtype: DType, name: str) -> str:
    """Add ``void name(ptr words)`` to the module, for all correlations of a dtype.

    Returns:
        Its name.
    """
    part = _Part(module, dtype).emit()
    task = Function(module, module.unique(f"{name}_task"), {"words": "ptr", "task": "i64"})
    pointers = [
        task.value(f"load ptr, ptr {task.pointer('%words', i, dtypes.int64)}") for i in range(5)
    ]
    elements, tasks = (task.load("%words", WORDS.index(w), dtypes.int64) for w in WORDS[5:])
    this = task.argument("task")
    pointers[4] = task.pointer(pointers[4], task.mul_index(this, elements), dtype)
    units = task.load(pointers[0], Geometry.names().index("units"), dtypes.int64)
    start = task.floordiv_index(task.mul_index(units, this), tasks)
    stop = task.floordiv_index(task.mul_index(units, task.add_index(this, 1)), tasks)
    listed = ", ".join(f"ptr {p}" for p in pointers)

    def unit(i: Index, _: list[Operand]) -> None:
        task.emit(f"call void @{part}({listed}, {task.operand(i).typed})")

    task.loop(start, stop, 1, [], unit)
    task.end()

    f = Function(module, module.unique(name), {"words": "ptr"}, internal=False)
    count = f.load("%words", WORDS.index("tasks"), dtypes.int64)

    def together() -> None:
        module.declare("needle_parallel", "void", ["ptr", "ptr", "i64"])
        f.emit(f"call void @needle_parallel(ptr @{task.name}, ptr %words, {count.typed})")

    def alone() -> None:
        f.emit(f"call void @{task.name}(ptr %words, i64 0)")

    f.branch(f.compare("eq", count, f.operand(1)), alone, together)
    return f.end()


class _Part:
    """Emits the function of one part of the work: a band of an image, some of its channels."""

    def __init__(self, module: Module, dtype: DType) -> None:
        pointers = ("description", "image", "weight", "out", "workspace")
        arguments = {**dict.fromkeys(pointers, "ptr noalias"), "unit": "i64"}
        self.f = Function(module, module.unique("correlation"), arguments, inline="noinline")
        self.dtype = dtype
        self.lanes = self.f.target.lanes(dtype)
        f = self.f
        self.g = {
            name: f.load("%description", i, dtypes.int64) for i, name in enumerate(Geometry.names())
        }
        self.sums = "%workspace"
        self.copy = f.pointer("%workspace", 8 * VECTORS * self.lanes, dtype)
        self.slots = f.pointer("%description", len(self.g), dtypes.int64)
        self.sides = f.pointer(self.slots, self.g["slots"], dtypes.int64)
        after = f.mul_index(self.g["remainders"], 3)
        self.table = f.pointer(self.sides, after, dtypes.int64)

    def emit(self) -> str:
        f, g = self.f, self.g
        rest: Index = f.argument("unit")
        at: dict[str, Index] = {}
        for axis in ("splits", "bands", "groups"):
            at[axis] = f.mod_index(rest, g[axis])
            rest = f.floordiv_index(rest, g[axis])
        image = rest
        band = f.mul_index(at["bands"], g["band_rows"])
        rows = f.operand(f.min_index(g["band_rows"], f.sub_index(g["rows"], band)))
        channel = f.mul_index(
            g["depth"], f.add_index(f.mul_index(image, g["groups"]), at["groups"])
        )
        plane = f.mul_index(g["height"], g["width"])
        seen = f.pointer("%image", f.mul_index(channel, plane), self.dtype)
        SortedCopy(f, self.dtype, g, self.slots, self.sides).emit(seen, self.copy, band)
        first = f.mul_index(at["splits"], g["split_outs"])
        outs = f.min_index(g["split_outs"], f.sub_index(g["outs"], first))
        weight = f.add_index(
            f.mul_index(at["groups"], g["weight_group"]), f.mul_index(first, g["weight_row"])
        )
        out_channel = f.add_index(f.mul_index(at["groups"], g["outs"]), first)
        out = f.add_index(
            f.mul_index(image, g["out_image"]),
            f.add_index(
                f.mul_index(out_channel, g["out_channel"]), f.mul_index(band, g["out_row"])
            ),
        )
        self._tiles(
            f.pointer("%weight", weight, self.dtype),
            f.pointer("%out", out, self.dtype),
            f.operand(outs),
            rows,
        )
        return f.end()

    # The result

    def _tiles(self, weight: str, out: str, outs: Operand, rows: Operand) -> None:
        """Emit the tiles of a band, cut into near-equal ones along the line of pixels."""
        f, g, lanes = self.f, self.g, self.lanes
        pixels = f.add_index(f.mul_index(f.sub_index(rows, 1), g["slot_columns"]), g["columns"])
        vectors = f.floordiv_index(f.add_index(pixels, lanes - 1), lanes)
        count = f.floordiv_index(f.add_index(vectors, VECTORS - 1), VECTORS)

        def columns(t: Index, _: list[Operand]) -> None:
            start = f.floordiv_index(f.mul_index(vectors, t), count)
            stop = f.floordiv_index(f.mul_index(vectors, f.add_index(t, 1)), count)
            first = f.operand(f.mul_index(start, lanes))
            cases = [self._strip(weight, out, outs, rows, first, v) for v in range(1, VECTORS + 1)]
            f.switch(f.operand(f.sub_index(f.sub_index(stop, start), 1)), cases)

        f.loop(0, count, 1, [], columns)

    def _strip(
        self, weight: str, out: str, outs: Operand, height: Operand, first: Operand, vectors: int
    ) -> Callable[[], None]:
        """Return what emits the tiles of a few vectors of pixels: all channels."""
        f, g = self.f, self.g

        def emit() -> None:
            image = f.pointer(self.copy, first, self.dtype)
            done: Index = 0
            for rows in tile_rows(f.target, vectors):
                name = Tile(rows, vectors, self.dtype).function(f.module)
                left = f.sub_index(outs, done)
                stop = f.add_index(done, f.mul_index(f.floordiv_index(left, rows), rows))

                def tile(o: Index, _: list[Operand], rows: int = rows, name: str = name) -> None:
                    weights = f.pointer(weight, f.mul_index(o, g["weight_row"]), self.dtype)
                    f.emit(
                        f"call void @{name}(ptr {weights}, ptr {image}, ptr {self.table}, "
                        f"ptr {self.sums}, {g['taps'].typed}, {g['weight_row'].typed})"
                    )
                    target = f.pointer(out, f.mul_index(o, g["out_channel"]), self.dtype)
                    pixels = vectors * self.lanes
                    f.emit(
                        f"call void @{self._place_sums()}(ptr {self.sums}, ptr {target}, "
                        f"ptr %description, {first.typed}, i64 {pixels}, i64 {rows}, "
                        f"{height.typed})"
                    )

                f.loop(done, stop, rows, [], tile)
                done = stop

        return emit

    def _place_sums(self) -> str:
        """Return the function that stores a tile's sums where they belong; it is emitted once."""
        key = ("place sums", self.dtype)
        name = self.f.module.memo.get(key)
        if name is None:
            name = self.f.module.memo[key] = _Placing(self.f.module, self.dtype).emit()
        return name


class _Placing:
    """Emits the function that stores sums: ``rows`` channels, ``pixels`` from ``first`` on."""

    def __init__(self, module: Module, dtype: DType) -> None:
        pointers = dict.fromkeys(("sums", "out", "description"), "ptr noalias")
        numbers = dict.fromkeys(("first", "pixels", "rows", "end"), "i64")
        self.f = Function(module, module.unique("place"), pointers | numbers, inline="noinline")
        self.dtype = dtype

    def emit(self) -> str:
        f, dtype = self.f, self.dtype
        row_sums = VECTORS * f.target.lanes(dtype)
        names = ("slot_columns", "columns", "out_channel", "out_row", "out_column")
        line, columns, out_channel, out_row, out_column = (
            f.load("%description", Geometry.names().index(name), dtypes.int64) for name in names
        )
        first, end = f.argument("first"), f.argument("end")
        last = f.add(first, f.argument("pixels"))
        top = f.floordiv_index(first, line)
        bottom = f.floordiv_index(f.add_index(last, f.sub_index(line, 1)), line)

        def row(i: Index, _: list[Operand]) -> None:
            begin = f.operand(f.mul_index(i, line))
            start = f.select(f.compare("slt", first, begin), begin, first)
            count = f.sub(f.operand(f.min_index(last, f.add(begin, columns))), start)
            column = f.mul(f.sub(start, begin), out_column)
            target = f.pointer("%out", f.add(f.operand(f.mul_index(i, out_row)), column), dtype)
            source = f.pointer("%sums", f.sub(start, first), dtype)

            def each(move: Callable[[str, str], None]) -> Callable[[], None]:
                def channel(r: Index, _: list[Operand]) -> None:
                    move(
                        f.pointer(source, f.mul_index(r, row_sums), dtype),
                        f.pointer(target, f.mul_index(r, out_channel), dtype),
                    )

                def channels() -> None:
                    f.loop(0, f.argument("rows"), 1, [], channel)

                return channels

            def apart(source: str, target: str) -> None:
                def one(j: Index, _: list[Operand]) -> None:
                    f.store(f.load(source, j, dtype), target, f.mul_index(j, out_column))

                f.loop(0, count, 1, [], one)

            def store() -> None:
                f.branch(
                    f.compare("eq", out_column, f.operand(1)),
                    each(lambda source, target: move_neighbours(f, dtype, count, source, target)),
                    each(apart),
                )

            f.branch(f.compare("sgt", count, f.operand(0)), store)

        f.loop(top, f.min_index(bottom, end), 1, [], row)
        return f.end()
