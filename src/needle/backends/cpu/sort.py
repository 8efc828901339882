"""Sorts as kernels: each line becomes unsigned keys in memory of the task's own, which are sorted.

The keys' order is that of the elements: floats by their bits, −0 as 0, NaN after all numbers. For
the largest first all bits are inverted, so that equal elements keep their order in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from needle import dtypes
from needle.backends.cpu.kernel import KernelFunction
from needle.backends.cpu.loops import Loops, Ranges, shared_tasks
from needle.backends.cpu.operands import Operand
from needle.backends.cpu.sorting import FEW, insertion_sort, radix_sort, smallest
from needle.backends.cpu.target import Target
from needle.backends.cpu.vector_math import MathFunction
from needle.compiler import index as ix
from needle.compiler.access import variables
from needle.compiler.fusion import Group, Piece
from needle.compiler.index import Var
from needle.dtypes import DType
from needle.errors import CompileError
from needle.graph.ir import Value
from needle.ops.ordered import Sort

#: Up to how many of the smallest elements are selected without sorting the others.
SELECTED = 32


@dataclass
class SortPlan:
    """A sort as a kernel of a program; see `AnchorPlan`.

    Attributes:
        piece: the result.
        source: what is sorted.
        loops: variables over its elements.
        along: the variable of the elements of a line.
        descending: whether the largest come first.
        count: how many are wanted.
        shared: the variable whose range tasks share; None if there is none.
    """

    piece: Piece
    source: Value
    loops: tuple[Var, ...]
    along: Var
    descending: bool
    count: int
    shared: Var | None
    tasks: int = 1
    workspace: int = 0

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        """Emit the kernel."""
        if 0 in self.piece.value.shape:
            return
        ranges: Ranges = {}
        if self.shared is not None and self.tasks != 1:
            ranges = {self.shared: kernel.range_of(self.shared.extent, self.tasks)}
        loops = Loops(kernel, ranges)
        lines = [v for v in self.loops if v is not self.along and v.extent != 1]
        lines.sort(key=lambda v: v is not self.shared)
        loops.each(lines, lambda: self._line(kernel, loops, workspace))

    def _line(self, kernel: KernelFunction, loops: Loops, keys: str) -> None:
        f, e, n = kernel.f, kernel.emitter, self.along.extent
        key_dtype = key_dtype_of(self.source.dtype)
        places = f.pointer(keys, self.workspace // 2, dtypes.uint8)
        here = ix.of(self.along)
        at = tuple(ix.of(v) for v in self.loops)
        lanes = f.target.vector_bytes // 8

        def fill() -> None:
            x = f.splat(e.element(self.source, at).operand, e.lanes)
            key = sort_key(f, x)
            if self.descending:
                key = f.binary("xor", key, f.like(2 ** (8 * key.dtype.itemsize) - 1, key))
            place = f.convert(e.lane_indices(here).operand, dtypes.uint32)
            start = e.scalar(here).number
            f.store(key, keys, start, e.mask)
            f.store(place, places, start, e.mask)

        along = self.along
        if n == 1:
            f.store(f.constant(0, dtypes.uint32), places, 0)
        else:
            loops.vectors(along, lanes, fill)
            if self.count <= SELECTED and n >= 4 * self.count:
                name = smallest(f.module, key_dtype, self.count)
            elif n <= FEW:
                name = insertion_sort(f.module, key_dtype)
            else:
                name = radix_sort(f.module, key_dtype)
            f.emit(f"call void @{name}(ptr {keys}, ptr {places}, i64 {n})")
        out = Var("place", self.count)
        shape = self.piece.value.shape
        target = tuple(ix.of(out) if v is along else i for v, i in zip(self.loops, at, strict=True))
        pointer, offset = kernel.pointer_of(self.piece.value), ix.ravel(target, shape)

        def store() -> None:
            place = f.load(places, e.scalar(ix.of(out)).number, dtypes.uint32)
            f.store(f.convert(place, dtypes.int64), pointer, e.scalar(offset).number)

        loops.each([out], store)


def key_dtype_of(dtype: DType) -> DType:
    """Return the unsigned dtype of the keys of elements of ``dtype``."""
    size = dtypes.accumulation_dtype(dtype).itemsize if dtypes.is_float(dtype) else dtype.itemsize
    return np.dtype(f"uint{8 * size}")


def sort_key(f: MathFunction, x: Operand) -> Operand:
    """Return unsigned integers whose order is that of ``x``."""
    key_dtype = key_dtype_of(x.dtype)
    if not x.is_float:
        key = f.convert(x, key_dtype)
        top = 2 ** (8 * key_dtype.itemsize - 1)
        return f.binary("xor", key, f.like(top, key)) if x.is_signed else key
    x = f.convert(x, dtypes.accumulation_dtype(x.dtype))
    bits = f.bitcast(f.add(x, f.like(0, x)), key_dtype)  # −0 + 0 = 0
    width = 8 * key_dtype.itemsize
    sign = f.binary("ashr", bits, f.like(width - 1, bits))
    flipped = f.binary("or", sign, f.like(2 ** (width - 1), bits))
    is_nan = f.compare("uno", x, x)
    return f.select(is_nan, f.like(2**width - 1, bits), f.binary("xor", bits, flipped))


def plan_sort(group: Group, sort: Sort, target: Target, threads: int) -> SortPlan:
    """Return the plan of a group whose anchor sorts.

    Raises:
        CompileError: the axis is too long.
    """
    node = group.anchor
    assert node is not None
    source = node.inputs[0]
    loops = variables(source.shape)
    along = loops[node.attrs["axis"]]
    n = along.extent
    if n >= 1 << 31:
        raise CompileError(f"{node.op.name}: an axis of {n} elements is too long to be sorted")
    count = node.attrs[sort.count] if sort.count else n
    descending = node.attrs[sort.descending]
    lines = [v for v in loops if v is not along and v.extent != 1]
    shared = max(lines, key=lambda v: v.extent) if lines else None
    plan = SortPlan(group.pieces[0], source, loops, along, descending, count, shared)
    if shared is not None:
        # A comparison costs about as much as ten elements of an elementwise op.
        plan.tasks = shared_tasks(10 * source.size, shared, 1, threads)
    # Room for the keys and places of a radix sort, and for a vector beyond the end.
    size = max(key_dtype_of(source.dtype).itemsize, 4)
    plan.workspace = 2 * -(-(2 * n + 64) * size // 64) * 64
    return plan
