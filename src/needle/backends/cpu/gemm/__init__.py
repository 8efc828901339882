"""Matrix products: ``C = A · B`` for any extents, layouts and dtypes, with what follows fused in.

Products of bfloat16 are summed in another order where the processor multiplies pairs of them: see
`pairs`.

`emit_gemm` adds a function for a `GemmSpec` to a module. From the outside in: `plan` decides on
tiles, blocks and tasks; `kernel` emits the loops over them; `packing` copies operands into the
order in which they are read; `microkernel` multiplies, a tile of C in registers at a time.

Every element of C is one chain of fused multiply-adds over ascending k, started from 0. Its bits
depend on neither the other rows, nor columns, batch, tiles, blocks of k, number of tasks, nor the
width of the vectors; and the epilogue runs once per element, on the finished sum.

Example:
    A layer with bias, written by the epilogue; the bias is the first of the pointers in ``extra``.

    >>> from needle import dtypes
    >>> from needle.backends.cpu.gemm import Epilogue, GemmSpec, Matrix, emit_gemm
    >>> from needle.backends.cpu.llvm import Module
    >>> def begin(f):
    ...     return f.value("load ptr, ptr %extra")
    >>> def store(f, sums, at, bias):
    ...     sums = f.add(sums, f.load(bias, at.column, sums.dtype, at.lanes, at.mask))
    ...     offset = f.add_index(f.mul_index(at.row, 10), at.column)
    ...     f.store(sums, "%c", offset, at.mask)
    >>> x, w, y = (Matrix(dtypes.float32, row) for row in (64, 10, 10))
    >>> spec = GemmSpec(32, 10, 64, x, w, y, epilogue=Epilogue(store, "bias", begin))
    >>> kernel = emit_gemm(Module(), spec, name="layer")
    >>> kernel.tasks, kernel.workspace
    (1, 0)
"""

from needle.backends.cpu.gemm.kernel import (
    ARGUMENTS,
    GemmKernel,
    describe,
    emit_gemm,
    emit_packing,
    packed_bytes,
    parameters_of,
)
from needle.backends.cpu.gemm.launch import WORDS, emit_launch
from needle.backends.cpu.gemm.pairs import uses_pairs
from needle.backends.cpu.gemm.plan import Plan, can_be_given_packed, make_plan
from needle.backends.cpu.gemm.spec import Epilogue, GemmSpec, Load, Matrix, Place

__all__ = [
    "ARGUMENTS",
    "WORDS",
    "Epilogue",
    "GemmKernel",
    "GemmSpec",
    "Load",
    "Matrix",
    "Place",
    "Plan",
    "can_be_given_packed",
    "describe",
    "emit_gemm",
    "emit_launch",
    "emit_packing",
    "make_plan",
    "packed_bytes",
    "parameters_of",
    "uses_pairs",
]
