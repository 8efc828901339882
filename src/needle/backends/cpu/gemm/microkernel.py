"""The inner product of GEMM: one tile of C held in registers over the whole of k.

A tile is ``rows`` × a few vectors. For each k its column of A is broadcast, element by element, and
multiplied with its row of B: rows × vectors fused multiply-adds for rows + vectors loads.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from needle import dtypes
from needle.backends.cpu.gemm.packing import ask_for
from needle.backends.cpu.gemm.spec import Epilogue, Extent, Place
from needle.backends.cpu.gemm.streaming import multiply_add, part, turned_sum
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType

#: An epilogue of more instructions than this is emitted once, in a loop, not once per vector.
INLINE_INSTRUCTIONS = 12
#: And so is any epilogue of sums this long.
INLINE_K = 128
#: Multiply-adds in one turn of the loop over k, about.
UNROLLED = 48
#: Tiles of fewer sums are not unrolled where the length of the sum is only known at run time.
WORTH_UNROLLING = 20


@dataclass(frozen=True)
class Tile:
    """The shape of a tile of C.

    Attributes:
        rows: how many rows.
        widths: lanes of each of its vectors; 0 for a scalar.
        tail: how many lanes of the last vector exist: 0 for all, None if only known at run time.
    """

    rows: int
    widths: tuple[int, ...]
    tail: Extent = 0

    @property
    def columns(self) -> int:
        """Columns, counting all lanes of the last vector."""
        return sum(w or 1 for w in self.widths)


@dataclass(frozen=True)
class Microkernel:
    """A function that computes a tile; `call` emits a call of it.

    What is None here is an argument of the function.

    Attributes:
        tile: its shape.
        dtype: of all operands.
        k: the extent of the sum.
        a_row, a_k: strides of A.
        b_k, b_column: strides of B. Where its columns are not neighbours (``b_column`` is not 1),
            its rows are, and the tile has one vector: see `turned_sum`.
        c_row: stride of C.
        ahead: how many rows of B ahead memory is asked for what a tile will read; 0 for none.
        resumes: whether the sum may be part of a longer one: the argument ``first`` says whether it
            starts from 0 or from what ``partial`` holds, ``last`` whether it is finished.
        epilogue: what is done with the sums; None stores them to C.
    """

    tile: Tile
    dtype: DType
    k: Extent
    a_row: Extent
    a_k: Extent
    b_k: Extent
    c_row: Extent
    b_column: Extent = 1
    ahead: int = 0
    resumes: bool = False
    epilogue: Epilogue | None = None

    @property
    def key(self) -> Hashable:
        """What the function is memoised by."""
        epilogue = self.epilogue.key if self.epilogue else None
        fields = (*self._sizes().values(), self.ahead, self.resumes)
        return ("gemm tile", self.tile, self.dtype, fields, epilogue)

    def _sizes(self) -> dict[str, Extent]:
        sizes = {"k": self.k, "a_row": self.a_row, "a_k": self.a_k, "b_k": self.b_k}
        return {**sizes, "b_column": self.b_column, "c_row": self.c_row, "tail": self.tile.tail}

    def _arguments(self) -> dict[str, str]:
        """Return the function's arguments and their types."""
        arguments = {"a": "ptr noalias readonly", "b": "ptr noalias readonly", "c": "ptr"}
        if self.epilogue:
            arguments |= {"extra": "ptr", "batch": "i64", "row": "i64", "column": "i64"}
        if self.resumes:
            arguments |= {"partial": "ptr", "first": "i1", "last": "i1"}
        return arguments | {name: "i64" for name, size in self._sizes().items() if size is None}

    def call(self, f: Function, pointers: dict[str, str], **values: Index) -> None:
        """Emit a call.

        Args:
            f: the caller.
            pointers: ``a``, ``b`` and (without epilogue) ``c`` at the tile's first element; else
                ``c`` and ``extra`` as they are; ``partial`` if it resumes.
            values: batch, row, column, first, last, and the sizes that are not known.
        """
        name = f.module.memo.get(self.key)
        if name is None:
            name = f.module.memo[self.key] = _Emitter(self, f.module).emit()
        emit_call(f, name, self._arguments(), pointers, values)


def emit_call(
    f: Function,
    name: str,
    arguments: Mapping[str, str],
    pointers: Mapping[str, str],
    values: Mapping[str, Index],
) -> None:
    """Emit a call of a function.

    Args:
        f: the caller.
        name: of the function.
        arguments: its arguments and their types.
        pointers: what is given for those that are pointers.
        values: what is given for the others: indices and bools.
    """
    given = []
    for argument, kind in arguments.items():
        if argument in pointers:
            given.append(f"ptr {pointers[argument]}")
        elif kind == "i1":
            value = values[argument]
            given.append(f"i1 {int(value) if isinstance(value, int) else value.text}")
        else:
            given.append(f.operand(values[argument]).typed)
    f.emit(f"call void @{name}({', '.join(given)})")


class _Emitter:
    """Emits the function of one `Microkernel`."""

    def __init__(self, kernel: Microkernel, module: Module) -> None:
        self.kernel = kernel
        self.tile = kernel.tile
        name = module.unique(f"tile_{self.tile.rows}x{self.tile.columns}")
        self.f = MathFunction(module, name, kernel._arguments(), inline="noinline")
        self.sizes: dict[str, Index] = {
            name: self.f.argument(name) if size is None else size
            for name, size in kernel._sizes().items()
        }
        self.columns = [sum(w or 1 for w in self.tile.widths[:j]) for j in range(self.vectors)]
        self.masks: list[Operand | None] = [None] * self.vectors
        self.is_turned = kernel.b_column != 1
        if self.tile.tail != 0:
            self.masks[-1] = self.f.tail_mask(self.sizes["tail"], self.tile.widths[-1])

    @property
    def vectors(self) -> int:
        return len(self.tile.widths)

    def emit(self) -> str:
        f = self.f
        zeros = [
            self.f.constant(0, self.kernel.dtype, w)
            for _ in range(self.tile.rows)
            for w in self.tile.widths
        ]
        if self.kernel.resumes:
            first = f.argument("first", dtypes.bool)
            zeros = f.branch(first, lambda: zeros, self._partial)
        sums = self._turned() if self.is_turned else self._sum(zeros)
        if self.kernel.resumes:
            last = f.argument("last", dtypes.bool)
            f.branch(last, lambda: self._finish(sums), lambda: self._keep(sums))
        else:
            self._finish(sums)
        return f.end()

    # The sum over k

    def _sum(self, sums: Sequence[Operand]) -> list[Operand]:
        """Emit the loop over k: several k in each turn, then the rest."""
        f, k = self.f, self.sizes["k"]
        per_step = self.tile.rows * self.vectors
        unroll = max(1, min(8, UNROLLED // per_step))
        if isinstance(k, int):
            unroll = min(unroll, max(k, 1))
        elif self.tile.tail != 0 or per_step < WORTH_UNROLLING:
            unroll = 1  # and no second loop for the rest: a kernel of run-time sizes has many tiles
        whole = f.sub_index(k, f.mod_index(k, unroll))
        offsets = self._row_offsets()

        def turn(i: Index, sums: list[Operand]) -> list[Operand]:
            a = f.pointer("%a", f.mul_index(i, self.sizes["a_k"]), self.kernel.dtype)
            b = f.pointer("%b", f.mul_index(i, self.sizes["b_k"]), self.kernel.dtype)
            for u in range(unroll):
                self._ask_ahead(b, u)
                sums = self._step(a, b, u, offsets, sums)
            return sums

        def single(i: Index, sums: list[Operand]) -> list[Operand]:
            a = f.pointer("%a", f.mul_index(i, self.sizes["a_k"]), self.kernel.dtype)
            b = f.pointer("%b", f.mul_index(i, self.sizes["b_k"]), self.kernel.dtype)
            self._ask_ahead(b, 0)
            return self._step(a, b, 0, offsets, sums)

        result = f.loop(0, whole, unroll, sums, turn)
        if isinstance(k, int) and isinstance(whole, int):
            for i in range(whole, k):
                result = single(i, result)
            return result
        return f.loop(whole, k, 1, result, single) if unroll > 1 else result

    def _turned(self) -> list[Operand]:
        """Emit the sums over all k, where the rows of B are neighbours."""
        f, kernel, sizes = self.f, self.kernel, self.sizes
        columns: Index = self.tile.columns if self.tile.tail == 0 else sizes["tail"]
        elements = [f.pointer("%a", offset, kernel.dtype) for offset in self._row_offsets()]

        def element(row: int, k: Index) -> Operand:
            return f.load(elements[row], f.mul_index(k, sizes["a_k"]), kernel.dtype)

        totals = turned_sum(
            f,
            element,
            self.tile.rows,
            ("%b", kernel.dtype, sizes["b_column"]),
            sizes["k"],
            columns,
        )
        lanes = totals[0].lanes
        return [
            total if width == lanes else part(f, total, column, width)
            for total in totals
            for column, width in zip(self.columns, self.tile.widths, strict=True)
        ]

    def _ask_ahead(self, b: str, u: int) -> None:
        """Emit the prefetch of what a later block of k reads of the row ``u`` beyond ``b``."""
        f, kernel = self.f, self.kernel
        if not kernel.ahead:
            return
        start = f.pointer(b, f.mul_index(u + kernel.ahead, self.sizes["b_k"]), kernel.dtype)
        # Not to the L1 cache: rows at wide strides share its sets.
        ask_for(f, start, self.tile.columns, kernel.dtype, 2)

    def _row_offsets(self) -> list[Index]:
        """Return the distance of each row of A from the first, computed outside the loop."""
        return [self.f.mul_index(i, self.sizes["a_row"]) for i in range(self.tile.rows)]

    def _step(
        self, a: str, b: str, u: int, offsets: Sequence[Index], sums: Sequence[Operand]
    ) -> list[Operand]:
        """Emit the multiply-adds of one k, which is ``u`` beyond the pointers."""
        f, dtype = self.f, self.kernel.dtype
        a = f.pointer(a, f.mul_index(u, self.sizes["a_k"]), dtype)
        b = f.pointer(b, f.mul_index(u, self.sizes["b_k"]), dtype)
        row = [
            f.load(b, column, dtype, width, mask)
            for column, width, mask in zip(self.columns, self.tile.widths, self.masks, strict=True)
        ]
        result = []
        for i, offset in enumerate(offsets):
            element = f.load(a, offset, dtype)
            # All vectors of a tile but those of a split tail have one width.
            splats: dict[int, Operand] = {}
            for j, width in enumerate(self.tile.widths):
                x = splats.get(width)
                if x is None:
                    x = splats[width] = f.splat(element, width) if width else element
                result.append(multiply_add(f, x, row[j], sums[i * self.vectors + j]))
        return result

    # What becomes of the sums

    def _partial(self) -> list[Operand]:
        """Load the sums over the k before. They stand as whole vectors, row by row."""
        return [
            self.f.load("%partial", offset, self.kernel.dtype, width)
            for offset, width in self._whole_vectors()
        ]

    def _keep(self, sums: Sequence[Operand]) -> None:
        for x, (offset, _) in zip(sums, self._whole_vectors(), strict=True):
            self.f.store(x, "%partial", offset)

    def _whole_vectors(self) -> list[tuple[int, int]]:
        """Return offset and width of each vector in a buffer of the tile's own shape."""
        return [
            (i * self.tile.columns + column, width)
            for i in range(self.tile.rows)
            for column, width in zip(self.columns, self.tile.widths, strict=True)
        ]

    def _finish(self, sums: Sequence[Operand]) -> None:
        epilogue = self.kernel.epilogue
        if epilogue is None:
            for i in range(self.tile.rows):
                start = self.f.pointer(
                    "%c", self.f.mul_index(i, self.sizes["c_row"]), self.kernel.dtype
                )
                for j in range(self.vectors):
                    self.f.store(sums[i * self.vectors + j], start, self.columns[j], self.masks[j])
            return
        state = epilogue.begin(self.f) if epilogue.begin else None
        self._finish_rows(epilogue, state, sums)
        if epilogue.end:
            epilogue.end(self.f, state)

    def _finish_rows(self, epilogue: Epilogue, state: object, sums: Sequence[Operand]) -> None:
        # What a loop costs is hidden by a long sum, and inlining costs time to compile.
        is_short = not isinstance(self.kernel.k, int) or self.kernel.k < INLINE_K
        is_small = is_short and epilogue.instructions <= INLINE_INSTRUCTIONS
        if is_small or self.tile.rows <= 2:
            for i in range(self.tile.rows):
                self._finish_row(epilogue, state, i, sums[i * self.vectors :])
            return
        # A tile in memory can be indexed by the row, so that the code is there only once.
        total = self.tile.rows * self.tile.columns
        kept = self.f.at_entry(f"alloca [{total} x {sums[0].scalar_type}], align 64")
        for x, (offset, _) in zip(sums, self._whole_vectors(), strict=True):
            self.f.store(x, kept, offset)

        def row(i: Index, _: list[Operand]) -> None:
            start = self.f.pointer(kept, self.f.mul_index(i, self.tile.columns), self.kernel.dtype)
            loaded = [
                self.f.load(start, column, self.kernel.dtype, width)
                for column, width in zip(self.columns, self.tile.widths, strict=True)
            ]
            self._finish_row(epilogue, state, i, loaded)

        self.f.loop(0, self.tile.rows, 1, [], row)

    def _finish_row(
        self, epilogue: Epilogue, state: object, i: Index, sums: Sequence[Operand]
    ) -> None:
        f = self.f
        row = f.add_index(f.argument("row"), i)
        for j, width in enumerate(self.tile.widths):
            column = f.add_index(f.argument("column"), self.columns[j])
            place = Place(f.argument("batch"), row, column, width, self.masks[j])
            epilogue.store(f, sums[j], place, state)
