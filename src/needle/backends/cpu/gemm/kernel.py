"""The loops around the microkernel, as one function per matrix product."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from needle import dtypes
from needle.backends.cpu.gemm.microkernel import Microkernel, Tile
from needle.backends.cpu.gemm.packing import pack_columns, pack_rows
from needle.backends.cpu.gemm.plan import PACKED_FROM, Plan, make_plan, uses_masks
from needle.backends.cpu.gemm.spec import GemmSpec, Matrix
from needle.backends.cpu.gemm.tiling import tile_columns, tile_rows
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction

#: What `emit_gemm`'s functions take.
ARGUMENTS = {
    "a": "ptr",
    "b": "ptr",
    "c": "ptr",
    "extra": "ptr",
    "workspace": "ptr",
    "sizes": "ptr",
    "task": "i64",
}


@dataclass(frozen=True)
class GemmKernel:
    """A function of a module that computes a product, task by task.

    ``void name(ptr a, ptr b, ptr c, ptr extra, ptr workspace, ptr sizes, i64 task)``; the tasks
    0 … ``tasks`` − 1 write disjoint elements and may run in any order, at once, or one by one.

    Attributes:
        name: of the function.
        spec: what it computes.
        plan: how.
        parameters: the values that are not known: ``sizes`` points to them, as int64, in this
            order. Empty: ``sizes`` may be null.
        lanes: of a vector.
    """

    name: str
    spec: GemmSpec
    plan: Plan
    parameters: tuple[str, ...]
    lanes: int

    @property
    def tasks(self) -> int:
        """How many tasks there are, if all sizes are known."""
        return self.plan.tasks

    @property
    def workspace(self) -> int:
        """Bytes that each task needs to itself, if m is known."""
        return self.plan.workspace_bytes(self.spec, self.lanes, self.spec.m or 0)

    def call(
        self,
        f: Function,
        a: str,
        b: str,
        c: str,
        *,
        extra: str = "null",
        workspace: str = "null",
        sizes: str = "null",
        task: Index = 0,
    ) -> None:
        """Emit a call for one task; ``workspace`` is the task's own."""
        pointers = ", ".join(f"ptr {p}" for p in (a, b, c, extra, workspace, sizes))
        f.emit(f"call void @{self.name}({pointers}, {f.operand(task).typed})")


def parameters_of(spec: GemmSpec) -> tuple[str, ...]:
    """Return the names of what a kernel reads from ``sizes``, in order; none if all is known."""
    known: dict[str, object] = {"m": spec.m, "n": spec.n, "k": spec.k}
    for name, matrix in (("a", spec.a), ("b", spec.b), ("c", spec.c)):
        known[f"{name}_row"] = matrix.row
        known[f"{name}_column"] = matrix.column
        known |= {f"{name}_batch{i}": stride for i, stride in enumerate(matrix.batch)}
    known |= {f"batch{i}": extent for i, extent in enumerate(spec.batch)}
    names = [name for name, value in known.items() if value is None]
    if names:
        names += ["batch_tasks", "row_tasks", "column_tasks"]
    return tuple(names)


def emit_gemm(
    module: Module,
    spec: GemmSpec,
    *,
    threads: int = 1,
    name: str = "gemm",
    internal: bool = True,
) -> GemmKernel:
    """Add a function that computes ``spec`` to ``module``.

    Args:
        module: the module.
        spec: the product.
        threads: into about how many tasks to split the work, where it pays.
        name: a name for people; made unique.
        internal: whether only the module calls it.

    Returns:
        The kernel: its function's name, tasks and workspace.

    Raises:
        ValueError: the specification contradicts itself.
    """
    spec = _checked(spec)
    plan = make_plan(spec, module.target, threads)
    function = MathFunction(module, module.unique(name), ARGUMENTS, internal=internal)
    emitter = _Emitter(function, spec, plan)
    emitter.emit()
    return GemmKernel(function.end(), spec, plan, emitter.parameters, emitter.lanes)


def _checked(spec: GemmSpec) -> GemmSpec:
    """Return ``spec``, where strides that are never used are 1; raise if it contradicts itself."""
    if spec.n in (0, 1):
        spec = replace(spec, b=replace(spec.b, column=1), c=replace(spec.c, column=1))
    is_stored = spec.epilogue is None and 0 not in (spec.m, spec.n, *spec.batch)
    if is_stored and (spec.c.column != 1 or spec.c.dtype != spec.dtype):
        raise ValueError(
            "a product that is stored without an epilogue needs rows of C that are contiguous, of "
            f"dtype {spec.dtype}, not column stride {spec.c.column} and dtype {spec.c.dtype}"
        )
    for name, matrix in (("A", spec.a), ("B", spec.b), ("C", spec.c)):
        if len(matrix.batch) != len(spec.batch) and not matrix.load:
            raise ValueError(
                f"{name} has {len(matrix.batch)} batch strides for {len(spec.batch)} batch axes"
            )
    return spec


class _Emitter:
    """Emits one kernel's function."""

    def __init__(self, f: Function, spec: GemmSpec, plan: Plan) -> None:
        self.f = f
        self.spec = spec
        self.plan = plan
        self.lanes = f.target.lanes(spec.dtype)
        self.parameters = parameters_of(spec)
        loaded = {p: f.load("%sizes", i, dtypes.int64) for i, p in enumerate(self.parameters)}
        self.m = _size(loaded, "m", spec.m)
        self.n = _size(loaded, "n", spec.n)
        self.k = _size(loaded, "k", spec.k)
        self.batch = [_size(loaded, f"batch{i}", e) for i, e in enumerate(spec.batch)]
        self.a = _Strides(loaded, "a", spec.a)
        self.b = _Strides(loaded, "b", spec.b)
        self.c = _Strides(loaded, "c", spec.c)
        grid: Sequence[Index] = plan.grid
        if self.parameters:
            grid = [loaded[f"{axis}_tasks"] for axis in ("batch", "row", "column")]
        self.grid = grid
        masks = uses_masks(f.target, spec.dtype)
        self.rows = tile_rows(f, self.m, plan.rows)
        self.columns = tile_columns(f, self.n, self.lanes, plan.vectors, masks)
        self.width = plan.vectors * self.lanes
        self.depth = plan.depth(spec)
        packed_b, packed_a = plan.packed_elements(spec, self.lanes)
        self.packed_a_at, self.partial_at = packed_b, packed_b + packed_a

    # Loops

    def emit(self) -> None:
        if 0 in (self.spec.m, self.spec.n, *self.spec.batch):
            return
        f = self.f
        batch_range, row_range, column_range = self._task_ranges()

        def matrix(index: Index, _: list[Operand]) -> None:
            _Matrix(self, index).emit(row_range, column_range)

        f.loop(*batch_range, 1, [], matrix)

    def _task_ranges(self) -> list[tuple[Index, Index]]:
        """Return which matrices, tiles of rows and tiles of columns the task computes."""
        f = self.f
        flat: Index = 1
        for extent in self.batch:
            flat = f.mul_index(flat, extent)
        totals = [flat, self.rows.count, self.columns.count]
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


class _Matrix:
    """Emits the product of one pair of matrices of the batch."""

    def __init__(self, kernel: _Emitter, index: Index) -> None:
        self.kernel = kernel
        self.f = f = kernel.f
        self.spec, self.plan = kernel.spec, kernel.plan
        self.index = index
        axes = []
        rest = index
        for extent in reversed(kernel.batch):
            axes.append(f.mod_index(rest, extent) if len(kernel.batch) > 1 else rest)
            rest = f.floordiv_index(rest, extent)
        axes.reverse()
        self.a = kernel.a.matrix(f, "%a", axes)
        self.b = kernel.b.matrix(f, "%b", axes)
        self.c = kernel.c.matrix(f, "%c", axes)
        dtype = self.spec.dtype
        self.packed_a = f.pointer("%workspace", kernel.packed_a_at, dtype)
        self.partial = f.pointer("%workspace", kernel.partial_at, dtype)
        self.packs_b: bool | Operand = self._packs_b()

    def _packs_b(self) -> bool | Operand:
        """Return whether B is packed; an operand if that depends on its extents."""
        if self.plan.pack_b is not None:
            return self.plan.pack_b
        f, kernel = self.f, self.kernel
        work = f.operand(f.mul_index(f.mul_index(kernel.m, kernel.n), kernel.k))
        large = f.compare("sge", work, f.operand(PACKED_FROM))
        strided = f.compare("ne", f.operand(kernel.b.column), f.operand(1))
        return f.binary("or", large, strided)

    def emit(self, rows: tuple[Index, Index], columns: tuple[Index, Index]) -> None:
        """Emit the loops over blocks: columns, then k, then rows."""
        f, plan, kernel = self.f, self.plan, self.kernel

        def column_block(first: Index, _: list[Operand]) -> None:
            stop = f.min_index(f.add_index(first, plan.column_tiles), columns[1])

            def k_block(start: Index, _: list[Operand]) -> None:
                self._k_block(rows, (first, stop), start)

            if plan.k_block is None:
                k_block(0, [])
            else:
                # At least once: sums of nothing are to be stored, too.
                f.loop(0, kernel.k, plan.k_block, [], k_block, runs=True)

        f.loop(*columns, plan.column_tiles, [], column_block)

    def _k_block(
        self, rows: tuple[Index, Index], columns: tuple[Index, Index], start: Index
    ) -> None:
        f, plan, kernel = self.f, self.plan, self.kernel
        depth = kernel.k
        if plan.k_block is not None:
            depth = f.min_index(f.sub_index(kernel.k, start), plan.k_block)
        block = _Block(self, rows[0], columns[0], start, depth)
        if isinstance(self.packs_b, Operand):
            f.branch(self.packs_b, lambda: kernel.columns.each(*columns, block.pack_b))
        elif self.packs_b:
            kernel.columns.each(*columns, block.pack_b)

        def row_block(first: Index, _: list[Operand]) -> None:
            stop = f.min_index(f.add_index(first, plan.row_tiles), rows[1])
            block.row_block = first
            if plan.pack_a:
                kernel.rows.each(first, stop, block.pack_a)
            kernel.columns.each(
                *columns,
                lambda j, column, widths, tail: kernel.rows.each(
                    first,
                    stop,
                    lambda i, row, height, _: block.tile(
                        (i, j), (row, column), height, widths, tail
                    ),
                ),
            )

        f.loop(*rows, plan.row_tiles, [], row_block)


class _Block:
    """A block of k: packs its part of the operands, and calls the microkernel for each tile."""

    def __init__(
        self, matrix: _Matrix, first_row: Index, first_column: Index, start: Index, depth: Index
    ) -> None:
        self.matrix = matrix
        self.kernel = matrix.kernel
        self.f = matrix.f
        self.first_row = first_row
        self.first_column = first_column
        self.row_block: Index = 0
        self.start = start
        self.depth = depth

    def _panel(self, j: Index) -> str:
        """Return where the packed panel of column tile j stands."""
        size = self.kernel.width * self.kernel.depth
        offset = self.f.mul_index(self.f.sub_index(j, self.first_column), size)
        return self.f.pointer("%workspace", offset, self.kernel.spec.dtype)

    def _packed_rows(self, i: Index) -> str:
        """Return where the packed rows of row tile i stand, ``depth`` elements apart."""
        size = self.kernel.plan.rows * self.kernel.depth
        offset = self.f.mul_index(self.f.sub_index(i, self.row_block), size)
        return self.f.pointer(self.matrix.packed_a, offset, self.kernel.spec.dtype)

    def pack_b(self, j: Index, column: Index, widths: tuple[int, ...], tail: Index) -> None:
        """Emit the packing of one panel of B."""
        f, spec, strides = self.f, self.kernel.spec, self.kernel.b
        dtype = spec.dtype
        panel = self._panel(j)

        def rows(contiguous: bool) -> None:
            def load(f: Function, i: Index, at: int, lanes: int, mask: Operand | None) -> Operand:
                row, col = f.add_index(self.start, i), f.add_index(column, at)
                if spec.b.load:
                    return spec.b.load(f, self.matrix.index, row, col, lanes, mask)
                return f.convert(self._load_b(row, col, lanes, mask, contiguous), dtype)

            pack_rows(f, dtype, widths, tail, self.depth, panel, load)

        def turned() -> None:
            self._pack_columns(column, widths, tail, panel)

        can_turn = spec.b.dtype == dtype and all(w == widths[0] > 0 for w in widths)
        if spec.b.load or strides.column == 1:
            rows(True)
        elif isinstance(strides.column, int) and isinstance(strides.row, int):
            if can_turn and strides.row == 1:
                turned()
            else:
                rows(False)
        else:
            one = f.operand(1)
            is_turned = f.compare("eq", f.operand(strides.row), one)
            is_contiguous = f.compare("eq", f.operand(strides.column), one)

            def apart() -> None:
                if can_turn:
                    f.branch(is_turned, turned, lambda: rows(False))
                else:
                    rows(False)

            f.branch(is_contiguous, lambda: rows(True), apart)

    def _load_b(
        self, row: Index, column: Index, lanes: int, mask: Operand | None, contiguous: bool
    ) -> Operand:
        """Load elements of a row of B, which may be apart."""
        f, strides, dtype = self.f, self.kernel.b, self.kernel.spec.b.dtype
        step: Index = 1 if contiguous else strides.column
        offset = f.add_index(f.mul_index(row, strides.row), f.mul_index(column, step))
        if contiguous or not lanes:
            return f.load(self.matrix.b, offset, dtype, lanes, mask)
        base = f.pointer(self.matrix.b, offset, dtype)
        apart = f.splat(f.operand(step), lanes)
        return f.gather(base, f.mul(f.iota(dtypes.int64, lanes), apart), dtype, mask)

    def _pack_columns(
        self, column: Index, widths: tuple[int, ...], tail: Index, panel: str
    ) -> None:
        f, spec, strides = self.f, self.kernel.spec, self.kernel.b
        lanes = widths[0]
        name = pack_columns(f.module, spec.dtype, lanes, spec.b.column, None)
        source = f.pointer(
            self.matrix.b,
            f.add_index(f.mul_index(column, strides.column), f.mul_index(self.start, strides.row)),
            spec.dtype,
        )
        width = len(widths) * lanes
        for v in range(len(widths)):
            count = tail if v == len(widths) - 1 and tail != 0 else lanes
            given = [f"ptr {f.pointer(source, f.mul_index(v * lanes, strides.column), spec.dtype)}"]
            given.append(f"ptr {f.pointer(panel, v * lanes, spec.dtype)}")
            given += [f.operand(self.depth).typed, f.operand(count).typed]
            if spec.b.column is None:
                given.append(f.operand(strides.column).typed)
            given.append(f.operand(width).typed)
            f.emit(f"call void @{name}({', '.join(given)})")

    def pack_a(self, i: Index, row: Index, height: int, _: Index) -> None:
        """Emit the packing of the rows of a tile, as they are but contiguous."""
        f, kernel, spec = self.f, self.kernel, self.kernel.spec
        lanes = kernel.lanes
        start = self._packed_rows(i)

        def load(r: Index, k: Index, lanes: int) -> Operand:
            row_, k_ = f.add_index(row, r), f.add_index(self.start, k)
            if spec.a.load:
                return spec.a.load(f, self.matrix.index, row_, k_, lanes, None)
            offset = f.add_index(f.mul_index(row_, kernel.a.row), f.mul_index(k_, kernel.a.column))
            return f.convert(f.load(self.matrix.a, offset, spec.a.dtype, lanes), spec.dtype)

        def one_row(r: Index, _: list[Operand]) -> None:
            to = f.pointer(start, f.mul_index(r, kernel.depth), spec.dtype)

            def vector(k: Index, _: list[Operand]) -> None:
                f.store(load(r, k, lanes), to, k)

            def scalar(k: Index, _: list[Operand]) -> None:
                f.store(load(r, k, 0), to, k)

            whole: Index = 0
            if spec.a.load or spec.a.column == 1:
                whole = f.mul_index(f.floordiv_index(self.depth, lanes), lanes)
                f.loop(0, whole, lanes, [], vector)
            f.loop(whole, self.depth, 1, [], scalar)

        f.loop(0, height, 1, [], one_row)

    def tile(
        self,
        tile: tuple[Index, Index],
        at: tuple[Index, Index],
        height: int,
        widths: tuple[int, ...],
        tail: Index,
    ) -> None:
        """Emit the call that computes one tile."""
        f, kernel, spec, plan = self.f, self.kernel, self.kernel.spec, self.kernel.plan
        dtype = spec.dtype
        row, column = at
        shape = Tile(height, widths, tail if isinstance(tail, int) else None)
        a, a_row, a_k = self._operand_a(tile[0], row)
        b, b_k = self._operand_b(tile[1], column, shape.columns)
        resumes = plan.k_block is not None
        micro = Microkernel(
            shape,
            dtype,
            spec.k if not resumes else None,
            _known(a_row),
            _known(a_k),
            _known(b_k),
            spec.c.row,
            padded=self.matrix.packs_b is True,
            resumes=resumes,
            epilogue=spec.epilogue,
        )
        pointers = {"a": a, "b": b, "c": "%c", "extra": "%extra"}
        values: dict[str, Index] = {
            "k": self.depth,
            "a_row": a_row,
            "a_k": a_k,
            "b_k": b_k,
            "c_row": kernel.c.row,
            "tail": tail,
            "batch": self.matrix.index,
            "row": row,
            "column": column,
        }
        if spec.epilogue is None:
            offset = f.add_index(f.mul_index(row, kernel.c.row), column)
            pointers["c"] = f.pointer(self.matrix.c, offset, dtype)
        if resumes:
            slot = f.add_index(
                f.mul_index(f.sub_index(tile[0], self.first_row), plan.column_tiles),
                f.sub_index(tile[1], self.first_column),
            )
            slot = f.mul_index(slot, plan.rows * kernel.width)
            pointers["partial"] = f.pointer(self.matrix.partial, slot, dtype)
            end = f.operand(f.add_index(self.start, self.depth))
            values["first"] = f.compare("eq", f.operand(self.start), f.operand(0))
            values["last"] = f.compare("sge", end, f.operand(kernel.k))
        micro.call(f, pointers, **values)

    def _operand_a(self, i: Index, row: Index) -> tuple[str, Index, Index]:
        """Return where a tile's part of A starts, and its strides."""
        f, kernel = self.f, self.kernel
        if kernel.plan.pack_a:
            return self._packed_rows(i), kernel.depth, 1
        offset = f.add_index(
            f.mul_index(row, kernel.a.row), f.mul_index(self.start, kernel.a.column)
        )
        a = f.pointer(self.matrix.a, offset, kernel.spec.dtype)
        return a, kernel.a.row, kernel.a.column

    def _operand_b(self, j: Index, column: Index, columns: int) -> tuple[str, Index]:
        """Return where a tile's part of B starts, and its stride."""
        f, kernel, packs = self.f, self.kernel, self.matrix.packs_b
        if packs is True:
            return self._panel(j), columns
        offset = f.add_index(f.mul_index(self.start, kernel.b.row), column)
        b = f.pointer(self.matrix.b, offset, kernel.spec.dtype)
        if packs is False:
            return b, kernel.b.row
        panel = self._panel(j)
        chosen = f.value(f"select i1 {packs.text}, ptr {panel}, ptr {b}")
        return chosen, f.select(packs, f.operand(columns), f.operand(kernel.b.row))


class _Strides:
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
