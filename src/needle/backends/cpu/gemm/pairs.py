"""Products of bfloat16 by pairs: the plan, and the loops around the tiles.

Sums are held in float32. Along k they run over blocks of 32, in ascending order; within one, AMX
adds up the even and the odd k apart and then both to the sum, AVX-512-BF16 pair by pair. So the
bits depend on k and the processor alone: on neither the other rows, nor columns, batch, blocks or
tasks. Both take subnormal numbers for zeros, as factors and as sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from needle import dtypes
from needle.backends.cpu.gemm.loops import Block, Product
from needle.backends.cpu.gemm.pair_instructions import (
    begin_tiles,
    end_tiles,
    has_tiles,
    multiplies_pairs,
)
from needle.backends.cpu.gemm.pair_tile import PairTile
from needle.backends.cpu.gemm.plan import Plan, task_grid
from needle.backends.cpu.gemm.spec import Extent, GemmSpec
from needle.backends.cpu.gemm.tiling import Run, Tiling, max_index
from needle.backends.cpu.gemm.vnni import DEPTH, LINE, PANEL, SIDE, TILE, Source, pack_panels
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.backends.cpu.target import Target

#: Rows and columns of the largest tile, and bytes of its sums.
EDGE, SUMS = 2 * SIDE, 4096
#: k is summed in blocks of at most this: the rows of A for a tile, used many times, stay in the L2
#: cache.
K_BLOCK = 2048
#: For up to so many rows of C the blocks are at most so long, if B has more bytes than this and the
#: sums that wait have not: each panel is used for few rows, so that what counts is how B arrives,
#: and wider parts of fewer of its rows arrive faster (1×1024·1024×1024: 126 µs, 92; 64 rows: 177,
#: 154; from 400 rows on longer blocks are faster).
SHORT_BLOCKS = ((64, 256), (256, 512))
SHORT_FROM_BYTES, MOST_SUMS = 512 << 10, 2 << 20
#: Bytes of B that are packed at a time: they stay in the L2 cache while the rows of A pass.
B_BYTES = 1 << 20
#: Bytes of A that are packed at a time, where it is packed.
A_BYTES = 16 << 20
#: What it takes to read an element of A, and to pack one of B, as `task_grid` counts it: tiles
#: multiply fast (784×32·32×128: 33 µs split by columns, 19 by rows). An A of at most so many bytes
#: comes from the caches of other cores in part (256×256·256×256: 32 µs by columns, 28 by rows).
COSTS, NEAR_COSTS = (48, 96), (72, 64)
NEAR_BYTES = 1 << 20
#: Products of fewer multiply-adds than this are one task.
PARALLEL_FROM = 1_000_000


def uses_pairs(spec: GemmSpec, target: Target) -> bool:
    """Whether a product is computed by pairs: of bfloat16, where the processor can."""
    factors = [spec.factors or matrix.dtype for matrix in (spec.a, spec.b)]
    is_low = all(dtype == dtypes.bfloat16 for dtype in factors) and spec.dtype == dtypes.float32
    return is_low and not spec.a.load and not spec.b.load and multiplies_pairs(target)


@dataclass(frozen=True)
class PairPlan(Plan):
    """How a product of pairs is computed, in tiles of 32×32.

    B is packed, a group of its columns at a time. A is packed if `pack_a`, or if that is None and
    its rows turn out not to be contiguous; otherwise only its last rows and k are, if these do not
    fill a tile.
    """

    def workspace_bytes(self, spec: GemmSpec, lanes: int, m: int, n: int = 0) -> int:
        """Return the bytes that each task needs to itself: packed B, packed A, partial sums."""
        down, across = (-(-extent // EDGE) for extent in (m, spec.n or n))
        down = min(down, self.row_tiles)
        total = self.column_tiles * self.panel + self.bytes_of_a * down + self.panel
        return total + (down * across * SUMS if self.k_block is not None else 0)

    @property
    def panel(self) -> int:
        """Bytes of a panel of a block of k."""
        return self.depth // DEPTH * PANEL

    @property
    def bytes_of_a(self) -> int:
        """Bytes for what is packed of each tile of rows: a panel, and the last tiles along k."""
        return PANEL if self.pack_a is False else self.panel + PANEL

    def grid_of(
        self, extents: tuple[int, int, int], batch: int, threads: int
    ) -> tuple[int, int, int]:
        """Return into how many parts to split batch, rows and columns."""
        if math.prod(extents) * batch < PARALLEL_FROM:
            return (1, 1, 1)
        costs = NEAR_COSTS if 2 * extents[0] * extents[2] <= NEAR_BYTES else COSTS
        return task_grid(extents, batch, (EDGE, EDGE // SIDE), SIDE, threads, costs)


def make_pair_plan(spec: GemmSpec, threads: int = 1) -> PairPlan:
    """Return the plan for a product of pairs."""
    k_block: int | None = K_BLOCK
    depth = K_BLOCK
    if spec.k is not None:
        longest = _longest_block(spec)
        blocks = max(-(-spec.k // longest), 1)
        is_short = longest < K_BLOCK and blocks > 1
        depth = longest if is_short else -(-max(spec.k, 1) // blocks)
        depth += -depth % DEPTH
        k_block = depth if blocks > 1 else None
    panel = depth // DEPTH * PANEL

    def tiles(bytes_: int, extent: Extent) -> int:
        most = max(bytes_ // panel, 1)
        return most if extent is None else max(1, min(most, -(-extent // EDGE)))

    packs: bool | None = True
    if spec.a.dtype == dtypes.bfloat16:
        packs = None if spec.a.column is None else spec.a.column != 1
    rows, columns = tiles(A_BYTES, spec.m), tiles(B_BYTES, spec.n)
    plan = PairPlan(EDGE, 2, k_block, packs, True, rows, columns, depth, (1, 1, 1))
    if None in (spec.m, spec.n, spec.k, *spec.batch):
        return plan
    batch = math.prod(e or 0 for e in spec.batch)
    grid = plan.grid_of((spec.m or 0, spec.n or 0, spec.k or 0), batch, threads)
    return replace(plan, grid=grid)


def _longest_block(spec: GemmSpec) -> int:
    """Return how long blocks of k are, at most."""
    m, n, k = spec.m, spec.n, spec.k
    if m is None or n is None or k is None or 2 * n * k < SHORT_FROM_BYTES:
        return K_BLOCK
    # Columns of B that are short, and many, are better read from one end to the other.
    are_short = spec.b.column != 1 and n > 2 * k
    if are_short or -(-m // EDGE) * -(-n // EDGE) * SUMS > MOST_SUMS:
        return K_BLOCK
    return next((length for rows, length in SHORT_BLOCKS if m <= rows), K_BLOCK)


def _tiling(f: Function, extent: Index) -> Tiling[int]:
    """Cut rows or columns into tiles: kinds are 1 or 2 times 16; ``tail`` is what exists of the
    last tile."""
    whole, rest = f.floordiv_index(extent, EDGE), f.mod_index(extent, EDGE)
    runs = [Run(whole, EDGE, [2])]
    if isinstance(rest, int):
        if rest:
            runs.append(Run(1, EDGE, [-(-rest // SIDE)], tail=rest))
    else:
        last = f.floordiv_index(f.sub_index(rest, 1), SIDE)
        runs.append(Run(f.min_index(rest, 1), EDGE, [1, 2], choice=last, tail=rest))
    return Tiling(f, runs)


class PairProduct(Product):
    """Emits the function of one kernel of pairs."""

    def emit(self) -> None:
        """Emit the loop over the task's matrices."""
        self.rows = _tiling(self.f, self.m)
        self.columns = _tiling(self.f, self.n)  # type: ignore[assignment]
        tiles = has_tiles(self.f.target)
        if tiles:
            begin_tiles(self.f)
        super().emit()
        if tiles:
            end_tiles(self.f)

    def block(self, index: Index, rows: tuple[Index, Index], columns: tuple[Index, Index]) -> Block:
        """Return what emits a task's part of one matrix of the batch."""
        assert isinstance(self.plan, PairPlan)
        return PairBlock(self, self.plan, index, rows, columns)


class PairBlock(Block):
    """Emits a task's part of one product of pairs: packing and tiles.

    From the outside in: blocks of rows, blocks of k, groups of columns, tiles of rows, of columns.
    """

    def __init__(
        self,
        product: PairProduct,
        plan: PairPlan,
        index: Index,
        rows: tuple[Index, Index],
        columns: tuple[Index, Index],
    ) -> None:
        super().__init__(product, index, rows, columns)
        f = self.f
        self.pairs = plan
        self.packs: bool | Operand = plan.pack_a is not False
        if plan.pack_a is None:
            self.packs = f.compare("ne", f.operand(product.a.column), f.operand(1))
        # Packed B, packed A, its tiles beyond the last whole ones along k, sums.
        down = f.min_index(product.rows.count, plan.row_tiles)
        self.of_a = self._beyond("%workspace", plan.column_tiles * plan.panel)
        a_bytes = f.mul_index(1 if plan.pack_a is False else down, plan.panel)
        self.of_tails = self._beyond(self.of_a, a_bytes)
        self.of_sums = self._beyond(self.of_tails, f.mul_index(down, PANEL))

    def _beyond(self, base: str, offset: Index) -> str:
        return self.f.pointer(base, offset, dtypes.uint8)

    def emit(self) -> None:
        """Emit the loops over blocks: rows, then k."""
        f, product = self.f, self.product

        def row_block(first: Index, _: list[Operand]) -> None:
            self.first_row = first
            last = f.min_index(f.add_index(first, self.pairs.row_tiles), self.rows[1])
            if product.k_block is None:
                self.depth = product.k
                self._block((first, last))
                return

            def k_block(start: Index, _: list[Operand]) -> None:
                assert product.k_block is not None
                self.start = start
                self.depth = f.min_index(f.sub_index(product.k, start), product.k_block)
                self._block((first, last))

            # At least once: sums of nothing are to be stored, too.
            f.loop(0, max_index(f, product.k, 1), product.k_block, [], k_block, runs=True)

        f.loop(*self.rows, self.pairs.row_tiles, [], row_block)

    def _block(self, rows: tuple[Index, Index]) -> None:
        """Emit a block of rows and k: its A is packed, then group by group its B."""
        f, product = self.f, self.product
        product.rows.each_run(*rows, self._pack_rows)

        def group(first: Index, _: list[Operand]) -> None:
            self.first_column = first
            stop = f.min_index(f.add_index(first, self.pairs.column_tiles), self.columns[1])
            product.columns.each_run(first, stop, self._pack_columns)

            def rows_of(i: Index, row: Index, down: int, exist: Index) -> None:
                def tile(j: Index, column: Index, across: int, columns: Index) -> None:
                    self._pairs((i, j), (row, column), (down, across), (exist, columns))

                product.columns.each(first, stop, tile)  # type: ignore[arg-type]

            product.rows.each(*rows, rows_of)

        f.loop(*self.columns, self.pairs.column_tiles, [], group)

    # Packing

    @property
    def _whole_depth(self) -> Index:
        """How many k fill tiles."""
        return self.f.mul_index(self.f.floordiv_index(self.depth, DEPTH), DEPTH)

    def _source_of_a(self, row: Index, k: Index) -> Source:
        f, steps, dtype = self.f, self.product.a, self.spec.a.dtype
        start = f.add_index(self.start, k)
        offset = f.add_index(f.mul_index(row, steps.row), f.mul_index(start, steps.column))
        return Source(f.pointer(self.a, offset, dtype), dtype, steps.row, steps.column)

    def _panel_of_a(self, i: Index, *, is_only: bool) -> str:
        """Return where the packed panel of a tile of rows stands; one that is the only one in
        first place."""
        place = 0 if is_only else self.f.sub_index(i, self.first_row)
        return self._beyond(self.of_a, self.f.mul_index(place, self.pairs.panel))

    def _tail_of_a(self, i: Index) -> str:
        place = self.f.sub_index(i, self.first_row)
        return self._beyond(self.of_tails, self.f.mul_index(place, PANEL))

    def _pack_rows(
        self, low: Index, high: Index, _: int, row: Index, __: object, exist: Index
    ) -> None:
        """Emit the packing of the rows of tiles low … high − 1: of all, or of what is no tile."""
        f = self.f
        whole = self._whole_depth
        number = f.sub_index(high, low)
        count = f.mul_index(number, EDGE) if exist == 0 else exist

        def all_of_it() -> None:
            is_only = self.packs is False
            to = (self._panel_of_a(low, is_only=is_only), self.pairs.panel)
            pack_panels(f, self._source_of_a(row, 0), to, count, self.depth, paired=False)

        def tail() -> None:
            to, rest = (self._tail_of_a(low), PANEL), f.sub_index(self.depth, whole)

            def pack() -> None:
                pack_panels(f, self._source_of_a(row, whole), to, count, rest, paired=False)

            _if_positive(f, rest, pack)

        def pack() -> None:
            if exist != 0 or self.packs is True:
                all_of_it()
            elif self.packs is False:
                tail()
            else:
                f.branch(self.packs, all_of_it, tail)

        _if_positive(f, number, pack)

    def _pack_columns(
        self, low: Index, high: Index, _: int, column: Index, __: object, exist: Index
    ) -> None:
        """Emit the packing of the columns of tiles low … high − 1."""
        f, steps, dtype = self.f, self.product.b, self.spec.b.dtype
        offset = f.add_index(f.mul_index(self.start, steps.row), f.mul_index(column, steps.column))
        source = Source(f.pointer(self.b, offset, dtype), dtype, steps.column, steps.row)
        number = f.sub_index(high, low)
        count = f.mul_index(number, EDGE) if exist == 0 else exist
        to = (self._panel_of_b(low), self.pairs.panel)
        _if_positive(f, number, lambda: pack_panels(f, source, to, count, self.depth, paired=True))

    def _panel_of_b(self, j: Index) -> str:
        place = self.f.sub_index(j, self.first_column)
        return self._beyond("%workspace", self.f.mul_index(place, self.pairs.panel))

    # Tiles

    def _operand_of_a(
        self, i: Index, row: Index, exist: Index
    ) -> tuple[dict[str, str], dict[str, Index]]:
        """Return where a tile's rows of A are: pointers and steps for `PairTile.call`."""
        f = self.f
        tiles = f.floordiv_index(f.add_index(self.depth, DEPTH - 1), DEPTH)
        packed: dict[str, Index] = {"a_line": LINE, "a_next": PANEL, "a_half": TILE}
        packed["depth"] = tiles
        panel = self._panel_of_a(i, is_only=self.packs is False)
        if exist != 0 or self.packs is True:
            return {"a": panel, "tail_a": "null"}, packed
        step = f.mul_index(self.product.a.row, 2)
        here: dict[str, Index] = {"a_line": step, "a_next": LINE}
        here["a_half"] = f.mul_index(step, SIDE)
        here["depth"] = f.floordiv_index(self.depth, DEPTH)
        base, tail = self._source_of_a(row, 0).base, self._tail_of_a(i)
        rest = f.sub_index(tiles, here["depth"])
        if isinstance(rest, int):
            tail = tail if rest else "null"
        else:
            has_tail = f.compare("ne", rest, f.operand(0))
            tail = f.value(f"select i1 {has_tail.text}, ptr {tail}, ptr null")
        if self.packs is False:
            return {"a": base, "tail_a": tail}, here
        chosen = [
            f.value(f"select i1 {self.packs.text}, ptr {x}, ptr {y}")
            for x, y in ((panel, base), ("null", tail))
        ]
        steps: dict[str, Index] = {
            name: f.select(self.packs, f.operand(packed[name]), f.operand(here[name]))
            for name in packed
        }
        return {"a": chosen[0], "tail_a": chosen[1]}, steps

    def _pairs(
        self,
        tile: tuple[Index, Index],
        at: tuple[Index, Index],
        shape: tuple[int, int],
        exist: tuple[Index, Index],
    ) -> None:
        """Emit the call that computes one tile: its number, its first element, its shape, and how
        many of its rows and columns exist (0: all)."""
        f, product, spec = self.f, self.product, self.spec
        row, column = at
        tail: Index = 0 if exist[1] == 0 else f.sub_index(exist[1], SIDE * (shape[1] - 1))
        known = tail if isinstance(tail, int) else None
        resumes = product.k_block is not None
        kernel = PairTile(
            *shape,
            0 if known == SIDE else known,
            spec.c.row,
            spec.c.dtype,
            resumes,
            spec.epilogue,
        )
        pointers, values = self._operand_of_a(tile[0], row, exist[0])
        values |= {"rows": EDGE if exist[0] == 0 else exist[0], "tail": tail}
        values |= {"c_row": product.c.row, "batch": self.index, "row": row, "column": column}
        pointers |= {"b": self._panel_of_b(tile[1]), "c": "%c", "extra": "%extra"}
        if spec.epilogue is None:
            offset = f.add_index(f.mul_index(row, product.c.row), column)
            pointers["c"] = f.pointer(self.c, offset, spec.c.dtype)
        if resumes:
            pointers["partial"] = self._sums(tile)
            end = f.operand(f.add_index(self.start, self.depth))
            values["first"] = f.compare("eq", f.operand(self.start), f.operand(0))
            values["last"] = f.compare("sge", end, f.operand(product.k))
        kernel.call(f, pointers, **values)

    def _sums(self, tile: tuple[Index, Index]) -> str:
        """Return where a tile's sums over the k so far are kept."""
        f = self.f
        row = f.sub_index(tile[0], self.first_row)
        column = f.sub_index(tile[1], self.columns[0])
        slot = f.add_index(f.mul_index(row, self.product.columns.count), column)
        return self._beyond(self.of_sums, f.mul_index(slot, SUMS))


def _if_positive(f: Function, number: Index, emit: Callable[[], None]) -> None:
    """Emit something, or a branch around it, if a number is above 0."""
    if not isinstance(number, int):
        f.branch(f.compare("sgt", number, f.operand(0)), emit)
    elif number > 0:
        emit()
