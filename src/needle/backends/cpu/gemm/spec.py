"""What a matrix product is to be: extents, dtypes, layouts, and what becomes of its elements."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from needle import dtypes
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.dtypes import DType

#: An extent or a stride: known now, or (None) read from the kernel's ``sizes`` when it runs.
Extent: TypeAlias = "int | None"


class Place(NamedTuple):
    """Where a vector of results stands: elements ``(row, column … column + lanes − 1)``.

    Attributes:
        batch: flat index of the matrix in the batch.
        row: row.
        column: column of the first lane.
        lanes: lanes of the vector; 0 for a scalar.
        mask: the lanes that exist, if not all do: to be given to `Function.load` and `store`.
    """

    batch: Index
    row: Index
    column: Index
    lanes: int
    mask: Operand | None


@dataclass(frozen=True)
class Epilogue:
    """What is done with the sums of products: fused into the kernel, run once per element.

    The function gets a vector of finished sums in a register and does the storing itself, to as
    many places as it likes. It may load anything at its place, or elsewhere, from the kernel's
    pointers: ``%c`` and ``%extra``, which is passed through unchanged (an array of pointers, say).

    Attributes:
        store: ``store(f, sums, place, state)``.
        begin: ``begin(f)`` emits what all vectors of a tile share (loads of pointers, of a learning
            rate), once per tile, and returns it: the ``state`` of `store`.
        key: equal keys promise equal code, so that kernels can share functions.
        instructions: about how many instructions `store` emits. Longer ones are run in a loop over
            the tile instead of being repeated for each of its vectors.
        end: ``end(f, state)`` emits what is done after the last vector of a tile.
    """

    store: Callable[[Function, Operand, Place, Any], None]
    key: Hashable
    begin: Callable[[Function], Any] | None = None
    instructions: int = 8
    end: Callable[[Function, Any], None] | None = None


#: Computes elements of an operand: ``(f, batch, row, column, lanes, mask)`` to the elements
#: ``(row, column …)``, in the dtype that the product is computed in.
Load: TypeAlias = "Callable[[Function, Index, Index, Index, int, Operand | None], Operand]"


@dataclass(frozen=True)
class Matrix:
    """Where an operand's elements are: ``base + Σ batch·… + row·row_stride + col·column_stride``.

    Attributes:
        dtype: of the elements in memory.
        row: elements from one row to the next; None: given at run time.
        column: elements from one column to the next.
        batch: elements from one matrix to the next, for each axis of the batch; 0 broadcasts.
        load: computes the elements instead (dtype and strides are not used then); its ``key``
            stands in `GemmSpec.key`.
        may_be_off_line: whether a matrix in memory may begin where vectors straddle cache lines.
        is_packed: of B: whether its elements are those of a matrix with these strides as
            `emit_packing` has copied them.
    """

    dtype: DType
    row: Extent
    column: Extent = 1
    batch: tuple[Extent, ...] = ()
    load: Load | None = None
    may_be_off_line: bool = True
    is_packed: bool = False


@dataclass(frozen=True)
class GemmSpec:
    """``C[m, n] = A[m, k] · B[k, n]`` for each matrix of a batch.

    Every element is one chain of fused multiply-adds over ascending k that starts from 0 (see
    `needle.backends.cpu.gemm` for the exception), so that its bits depend on neither m, n, batch,
    tiles, blocks, tasks nor target width.

    Attributes:
        m, n, k: extents; None: given at run time.
        a, b, c: the operands. The elements of a row of C are neighbours (``c.column == 1``) unless
            an epilogue stores them.
        batch: extents of the batch axes.
        dtype: what is computed in; 16-bit operands are converted to float32 on the way.
        epilogue: what becomes of the sums; by default they are stored to C.
        factors: bfloat16, if float32 operands are to be rounded to it before they are multiplied:
            only where the processor multiplies pairs of bfloat16, see `uses_pairs`.
    """

    m: Extent
    n: Extent
    k: Extent
    a: Matrix
    b: Matrix
    c: Matrix
    batch: tuple[Extent, ...] = ()
    dtype: DType = dtypes.float32
    epilogue: Epilogue | None = field(default=None)
    factors: DType | None = None
