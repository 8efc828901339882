"""The loops around the microkernel: tasks, matrices of the batch, blocks, tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from needle import dtypes
from needle.backends.cpu.gemm import packing
from needle.backends.cpu.gemm.dot import DotKernel, gather_vector
from needle.backends.cpu.gemm.microkernel import Microkernel, Tile
from needle.backends.cpu.gemm.plan import IF_OFF_LINE, Plan, is_dot, uses_masks
from needle.backends.cpu.gemm.spec import GemmSpec, Matrix
from needle.backends.cpu.gemm.tiling import max_index, tile_columns, tile_rows
from needle.backends.cpu.llvm import Function, Index, Operand


class Product:
    """Emits the function of one kernel: which tasks compute what, matrix by matrix."""

    def __init__(self, f: Function, spec: GemmSpec, plan: Plan, parameters: Sequence[str]) -> None:
        self.f = f
        self.spec = spec
        self.plan = plan
        self.lanes = f.target.lanes(spec.dtype)
        loaded = {name: f.load("%sizes", i, dtypes.int64) for i, name in enumerate(parameters)}
        self.m = _size(loaded, "m", spec.m)
        self.n = _size(loaded, "n", spec.n)
        self.k = _size(loaded, "k", spec.k)
        self.batch = [_size(loaded, f"batch{i}", e) for i, e in enumerate(spec.batch)]
        self.a = Strides(loaded, "a", spec.a)
        self.b = Strides(loaded, "b", spec.b)
        self.c = Strides(loaded, "c", spec.c)
        grid: Sequence[Index] = plan.grid
        if parameters:
            grid = [loaded[f"{axis}_tasks"] for axis in ("batch", "row", "column")]
        self.grid = grid
        self.rows = tile_rows(f, self.m, plan.rows, spec.epilogue is not None)
        masks = uses_masks(f.target, spec.dtype)
        self.columns = tile_columns(f, self.n, self.lanes, plan.vectors, masks)
        self.width = plan.vectors * self.lanes
        self.k_block: Index | None = loaded["k_block"] if plan.k_block == 0 else plan.k_block
        self.packs_a: bool | Operand
        if plan.pack_a is None:
            self.packs_a = f.compare("ne", loaded["pack_a"], f.constant(0, dtypes.int64))
        else:
            self.packs_a = plan.pack_a
        #: How many bytes B may be off, if that decides whether it is packed.
        self.most_off = _size(loaded, "pack_b", None if parameters else IF_OFF_LINE)
        #: How many tiles of columns are a block.
        self.column_step: Index = plan.column_tiles
        if not isinstance(self.k, int):
            # As `panels` says, for sums of the length of this call.
            depth = max_index(f, f.min_index(self.k, plan.depth), 1)
            nbytes = f.mul_index(depth, self.width * spec.dtype.itemsize)
            most = f.floordiv_index(plan.packed_bytes, nbytes)
            self.column_step = max_index(f, f.min_index(most, plan.column_tiles), 1)
        packed_b, packed_a = plan.packed_elements(self.lanes, spec.dtype.itemsize)
        self.strip = plan.strip(spec.dtype.itemsize)
        self.packed_a = f.pointer("%workspace", packed_b, spec.dtype)
        self.partial = f.pointer("%workspace", packed_b + packed_a, spec.dtype)
        #: Whether a packed A is stored column by column. One that is packed by choice is.
        self.turned_a = spec.a.load is None and (spec.a.row == 1 or plan.pack_a is None)

    def packs_b(self, b: str) -> bool | Operand:
        """Return whether a matrix B is packed, given where it begins."""
        f = self.f
        if self.plan.pack_b is not None:
            return self.plan.pack_b
        place = Operand(f.value(f"ptrtoint ptr {b} to i64"), dtypes.int64)
        off = f.mod_index(place, f.target.vector_bytes)
        return f.compare("sgt", f.operand(off), f.operand(self.most_off))

    def emit(self) -> None:
        """Emit the loop over the task's matrices."""
        if 0 in (self.spec.m, self.spec.n, *self.spec.batch):
            return
        batch, rows, columns = self._task_ranges()

        def matrix(index: Index, _: list[Operand]) -> None:
            block = self.block(index, rows, columns)
            if is_dot(self.spec):
                block.emit_dots()
            else:
                block.emit()

        self.f.loop(*batch, 1, [], matrix)

    def emit_packing(self) -> None:
        """Emit the packing of all of a single B into the workspace."""
        self.block(0, (0, 0), (0, self.columns.count)).emit_packing()

    def block(self, index: Index, rows: tuple[Index, Index], columns: tuple[Index, Index]) -> Block:
        """Return what emits a task's part of one matrix of the batch."""
        return Block(self, index, rows, columns)

    def _task_ranges(self) -> list[tuple[Index, Index]]:
        """Return which matrices, tiles of rows and tiles of columns the task computes."""
        f = self.f
        matrices: Index = 1
        for extent in self.batch:
            matrices = f.mul_index(matrices, extent)
        totals = [matrices, self.rows.count, self.columns.count]
        if all(isinstance(g, int) for g in self.grid) and math.prod(self.plan.grid) == 1:
            return [(0, total) for total in totals]
        task: Index = f.argument("task")
        ranges: list[tuple[Index, Index]] = []
        for parts, total in zip(reversed(self.grid), reversed(totals), strict=True):
            part = f.mod_index(task, parts)
            task = f.floordiv_index(task, parts)
            start = f.floordiv_index(f.mul_index(part, total), parts)
            stop = f.floordiv_index(f.mul_index(f.add_index(part, 1), total), parts)
            ranges.append((start, stop))
        return ranges[::-1]


class Block:
    """Emits a task's part of one product of matrices: blocks of columns, of k, of rows, tiles.

    Args:
        product: the kernel.
        index: which matrix of the batch.
        rows, columns: the task's tiles.
    """

    def __init__(
        self,
        product: Product,
        index: Index,
        rows: tuple[Index, Index],
        columns: tuple[Index, Index],
    ) -> None:
        self.product = product
        self.f = f = product.f
        self.spec, self.plan = product.spec, product.plan
        self.index = index
        axes = []
        rest = index
        for extent in reversed(product.batch):
            axes.append(f.mod_index(rest, extent) if len(product.batch) > 1 else rest)
            rest = f.floordiv_index(rest, extent)
        axes.reverse()
        self.a = product.a.matrix(f, "%a", axes)
        self.b = product.b.matrix(f, "%b", axes)
        self.c = product.c.matrix(f, "%c", axes)
        self.packs_b = product.packs_b(self.b)
        self.rows, self.columns = rows, columns
        # The block that is being emitted: its first tiles, first k, and how many k.
        self.first_row: Index = 0
        self.first_column: Index = 0
        self.start: Index = 0
        self.depth: Index = 0

    def emit(self) -> None:
        """Emit the loops over blocks: columns, then k, then rows."""
        f, product = self.f, self.product
        step = product.column_step
        if self.plan.keeps_a:
            self.depth = product.k
            self._pack_tiles_of_a(self.rows)

        def column_block(first: Index, _: list[Operand]) -> None:
            self.first_column = first
            stop = f.min_index(f.add_index(first, step), self.columns[1])
            if product.k_block is None:
                self.depth = product.k
                self._block_of_k(stop)
                return

            def k_block(start: Index, _: list[Operand]) -> None:
                assert product.k_block is not None
                self.start = start
                self.depth = f.min_index(f.sub_index(product.k, start), product.k_block)
                self._block_of_k(stop)

            # At least once: sums of nothing are to be stored, too.
            f.loop(0, max_index(f, product.k, 1), product.k_block, [], k_block, runs=True)

        f.loop(*self.columns, step, [], column_block)

    def emit_dots(self) -> None:
        """Emit the product with a vector: all of k at once, no blocks."""
        f, product, spec = self.f, self.product, self.spec
        vector = gather_vector(f, spec, self.b, product.b.row, product.k)

        def tile(i: Index, row: Index, height: int, _: Index) -> None:
            kernel = DotKernel(
                height, spec.dtype, spec.k, spec.a.row, spec.c.row, epilogue=spec.epilogue
            )
            a = f.pointer(self.a, f.mul_index(row, product.a.row), spec.dtype)
            pointers = {"a": a, "b": vector, "c": "%c", "extra": "%extra"}
            if spec.epilogue is None:
                pointers["c"] = f.pointer(self.c, f.mul_index(row, product.c.row), spec.dtype)
            sizes = {"k": product.k, "a_row": product.a.row, "c_row": product.c.row}
            kernel.call(f, pointers, batch=self.index, row=row, **sizes)

        product.rows.each(*self.rows, tile)

    def emit_packing(self) -> None:
        """Emit the packing of all of B into the workspace."""
        self.depth = self.product.k
        self.product.columns.each(*self.columns, self._pack_b)

    def _block_of_k(self, last_column: Index) -> None:
        f, plan, product = self.f, self.plan, self.product
        columns = (self.first_column, last_column)
        if isinstance(self.packs_b, Operand):
            f.branch(self.packs_b, lambda: product.columns.each(*columns, self._pack_b))
        elif self.packs_b:
            product.columns.each(*columns, self._pack_b)

        def row_block(first: Index, _: list[Operand]) -> None:
            self.first_row = first
            rows = (first, f.min_index(f.add_index(first, plan.row_tiles), self.rows[1]))
            if not plan.keeps_a:
                self._pack_tiles_of_a(rows)

            def column_tile(j: Index, column: Index, widths: tuple[int, ...], tail: Index) -> None:
                def tile(i: Index, row: Index, height: int, _: Index) -> None:
                    self._tile((i, j), (row, column), height, widths, tail)

                product.rows.each(*rows, tile)

            product.columns.each(*columns, column_tile)

        f.loop(*self.rows, plan.row_tiles, [], row_block)

    # Packing

    def _pack_tiles_of_a(self, rows: tuple[Index, Index]) -> None:
        """Emit the packing of tiles of rows of A, if it is packed."""
        f, product = self.f, self.product
        if isinstance(product.packs_a, Operand):
            f.branch(product.packs_a, lambda: product.rows.each_run(*rows, self._pack_turned_a))
        elif product.packs_a and product.turned_a:
            product.rows.each_run(*rows, self._pack_turned_a)
        elif product.packs_a:
            product.rows.each(*rows, self._pack_a)

    def _panel(self, j: Index) -> str:
        """Return where the packed panel of column tile j stands."""
        size = self.product.width * self.plan.depth
        offset = self.f.mul_index(self.f.sub_index(j, self.first_column), size)
        return self.f.pointer("%workspace", offset, self.spec.dtype)

    def _pack_b(self, j: Index, column: Index, widths: tuple[int, ...], tail: Index) -> None:
        """Emit the packing of one panel of B."""
        f, spec, strides = self.f, self.spec, self.product.b
        panel = self._panel(j)
        total = sum(w or 1 for w in widths)
        existing: Index = total
        if tail != 0:
            existing = f.add_index(total - widths[-1], tail)
        offset = f.add_index(
            f.mul_index(self.start, strides.row), f.mul_index(column, strides.column)
        )
        if spec.b.load:
            load = spec.b.load

            def computed(k: Index, at: Index, lanes: int, mask: Operand | None) -> Operand:
                row, place = f.add_index(self.start, k), f.add_index(column, at)
                return load(f, self.index, row, place, lanes, mask)

            packing.pack_computed(f, computed, panel, self.depth, widths, tail)
            return
        source = f.pointer(self.b, offset, spec.b.dtype)
        to = (panel, spec.dtype, total)

        def contiguous() -> None:
            packing.copy_rows(f, (source, spec.b.dtype, strides.row), to, self.depth, existing)

        def turned() -> None:
            for v in range(len(widths)):
                lanes = widths[0]
                columns = tail if tail != 0 and v == len(widths) - 1 else lanes
                part = f.pointer(source, f.mul_index(v * lanes, strides.column), spec.b.dtype)
                packing.turn(
                    f,
                    (part, spec.b.dtype, strides.column),
                    (f.pointer(panel, v * lanes, spec.dtype), total),
                    self.depth,
                    columns,
                )

        def apart() -> None:
            steps = (source, spec.b.dtype, strides.row, strides.column)
            packing.copy_elements(f, steps, to, self.depth, existing)

        can_turn = (
            spec.b.dtype == spec.dtype
            and packing.can_turn(spec.dtype)
            and all(w == self.product.lanes for w in widths)
        )
        otherwise = apart
        if can_turn:
            otherwise = _either(f, strides.row, turned, apart)
        _either(f, strides.column, contiguous, otherwise)()

    def _packed_rows(self, i: Index, height: int) -> tuple[str, Index, Index]:
        """Return where the packed rows of row tile i stand, and their strides."""
        f, plan = self.f, self.plan
        first = self.rows[0] if plan.keeps_a else self.first_row
        offset = f.mul_index(f.sub_index(i, first), self.product.strip)
        start = f.pointer(self.product.packed_a, offset, self.spec.dtype)
        return (start, 1, height) if self.product.turned_a else (start, plan.depth, 1)

    def _pack_a(self, i: Index, row: Index, height: int, _: Index) -> None:
        """Emit the packing of the rows of a tile, one after the other."""
        f, spec, strides = self.f, self.spec, self.product.a
        target, row_step, _ = self._packed_rows(i, height)
        if spec.a.load:
            load, lanes = spec.a.load, self.product.lanes

            def one_row(r: Index, _: list[Operand]) -> None:
                def compute(lanes: int, k: Index) -> None:
                    place = f.add_index(self.start, k)
                    x = load(f, self.index, f.add_index(row, r), place, lanes, None)
                    f.store(x, target, f.add_index(f.mul_index(r, row_step), k))

                whole = f.mul_index(f.floordiv_index(self.depth, lanes), lanes)
                f.loop(0, whole, lanes, [], lambda k, _: compute(lanes, k))
                f.loop(whole, self.depth, 1, [], lambda k, _: compute(0, k))

            f.loop(0, height, 1, [], one_row)
            return
        offset = f.add_index(f.mul_index(row, strides.row), f.mul_index(self.start, strides.column))
        source = f.pointer(self.a, offset, spec.a.dtype)
        to = (target, spec.dtype, row_step)

        def contiguous() -> None:
            steps = (source, spec.a.dtype, strides.row)
            packing.copy_rows(f, steps, to, height, self.depth)

        def apart() -> None:
            steps = (source, spec.a.dtype, strides.row, strides.column)
            packing.copy_elements(f, steps, to, height, self.depth)

        _either(f, strides.column, contiguous, apart)()

    def _pack_turned_a(
        self, low: Index, high: Index, _: int, row: Index, height: int, __: Index
    ) -> None:
        """Emit the packing of the rows of tiles low … high − 1, whose columns are contiguous."""
        f, spec, strides = self.f, self.spec, self.product.a
        offset = f.add_index(row, f.mul_index(self.start, strides.column))
        source = f.pointer(self.a, offset, spec.a.dtype)
        packing.copy_strips(
            f,
            (source, spec.a.dtype, strides.column),
            (self._packed_rows(low, height)[0], spec.dtype, self.product.strip),
            self.depth,
            height,
            f.sub_index(high, low),
        )

    # Tiles

    def _tile(
        self,
        tile: tuple[Index, Index],
        at: tuple[Index, Index],
        height: int,
        widths: tuple[int, ...],
        tail: Index,
    ) -> None:
        """Emit the call that computes one tile: its number, its first element, its shape."""
        f, product, spec = self.f, self.product, self.spec
        row, column = at
        shape = Tile(height, widths, tail if isinstance(tail, int) else None)
        a, a_row, a_k = self._operand_a(tile[0], row, height)
        b, b_k = self._operand_b(tile[1], column, shape.columns)
        resumes = product.k_block is not None
        values: dict[str, Index] = {
            "k": self.depth,
            "a_row": a_row,
            "a_k": a_k,
            "b_k": b_k,
            "b_column": product.b.column,
            "c_row": product.c.row,
            "tail": tail,
            "batch": self.index,
            "row": row,
            "column": column,
        }
        micro = Microkernel(
            shape,
            spec.dtype,
            spec.k if not resumes else None,
            _known(a_row),
            _known(a_k),
            _known(b_k),
            spec.c.row,
            b_column=spec.b.column if self.plan.turns_b else 1,
            ahead=self.plan.ahead,
            resumes=resumes,
            epilogue=spec.epilogue,
        )
        pointers = {"a": a, "b": b, "c": "%c", "extra": "%extra"}
        if spec.epilogue is None:
            offset = f.add_index(f.mul_index(row, product.c.row), column)
            pointers["c"] = f.pointer(self.c, offset, spec.dtype)
        if resumes:
            pointers["partial"] = self._partial(tile)
            end = f.operand(f.add_index(self.start, self.depth))
            values["first"] = f.compare("eq", f.operand(self.start), f.operand(0))
            values["last"] = f.compare("sge", end, f.operand(product.k))
        micro.call(f, pointers, **values)

    def _partial(self, tile: tuple[Index, Index]) -> str:
        """Return where a tile's sums over the k so far are kept."""
        f, plan = self.f, self.plan
        row = f.sub_index(tile[0], self.rows[0])
        column = f.sub_index(tile[1], self.first_column)
        slot = f.add_index(f.mul_index(row, plan.column_tiles), column)
        offset = f.mul_index(slot, plan.rows * self.product.width)
        return f.pointer(self.product.partial, offset, self.spec.dtype)

    def _operand_a(self, i: Index, row: Index, height: int) -> tuple[str, Index, Index]:
        """Return where a tile's part of A starts, and its strides."""
        f, strides = self.f, self.product.a
        packs = self.product.packs_a
        if packs is True:
            return self._packed_rows(i, height)
        offset = f.add_index(f.mul_index(row, strides.row), f.mul_index(self.start, strides.column))
        a = f.pointer(self.a, offset, self.spec.dtype)
        if packs is False:
            return a, strides.row, strides.column
        packed, *steps = self._packed_rows(i, height)
        chosen = f.value(f"select i1 {packs.text}, ptr {packed}, ptr {a}")
        row_step, k_step = (
            f.select(packs, f.operand(x), f.operand(y))
            for x, y in zip(steps, (strides.row, strides.column), strict=True)
        )
        return chosen, row_step, k_step

    def _operand_b(self, j: Index, column: Index, columns: int) -> tuple[str, Index]:
        """Return where a tile's part of B starts, and its stride."""
        f, strides, packs = self.f, self.product.b, self.packs_b
        if self.spec.b.is_packed:
            offset = f.mul_index(j, self.product.width * self.plan.depth)
            return f.pointer(self.b, offset, self.spec.dtype), columns
        if packs is True:
            return self._panel(j), columns
        step = strides.column if self.plan.turns_b else 1
        offset = f.add_index(f.mul_index(self.start, strides.row), f.mul_index(column, step))
        b = f.pointer(self.b, offset, self.spec.dtype)
        if packs is False:
            return b, strides.row
        chosen = f.value(f"select i1 {packs.text}, ptr {self._panel(j)}, ptr {b}")
        return chosen, f.select(packs, f.operand(columns), f.operand(strides.row))


class Strides:
    """The strides of an operand, known or loaded."""

    def __init__(self, loaded: Mapping[str, Operand], name: str, matrix: Matrix) -> None:
        self.dtype = matrix.dtype
        self.row = _size(loaded, f"{name}_row", matrix.row)
        self.column = _size(loaded, f"{name}_column", matrix.column)
        self.batch = [_size(loaded, f"{name}_batch{i}", s) for i, s in enumerate(matrix.batch)]

    def matrix(self, f: Function, base: str, axes: Sequence[Index]) -> str:
        """Return the address of the matrix at an index of the batch."""
        offset: Index = 0
        for axis, stride in zip(axes, self.batch, strict=False):
            offset = f.add_index(offset, f.mul_index(axis, stride))
        return f.pointer(base, offset, self.dtype)


def _size(loaded: Mapping[str, Operand], name: str, value: int | None) -> Index:
    return loaded[name] if value is None else value


def _known(index: Index) -> int | None:
    return index if isinstance(index, int) else None


def _either(
    f: Function, stride: Index, if_one: Callable[[], None], otherwise: Callable[[], None]
) -> Callable[[], None]:
    """Return what emits one way or the other, or a branch where the stride is not known."""
    if isinstance(stride, int):
        return if_one if stride == 1 else otherwise

    def decide() -> None:
        f.branch(f.compare("eq", stride, f.operand(1)), if_one, otherwise)

    return decide
