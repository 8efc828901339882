"""Matrix products in a program: operands where they lie, the group's other pieces as epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from needle import dtypes
from needle.backends.cpu.emit import Position
from needle.backends.cpu.gemm import (
    Epilogue,
    GemmSpec,
    Matrix,
    Place,
    describe,
    emit_gemm,
    uses_pairs,
)
from needle.backends.cpu.gemm.pair_tile import round_sums
from needle.backends.cpu.kernel import KernelFunction
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.operands import Index, Operand, Segment
from needle.backends.cpu.target import Target
from needle.backends.cpu.vector_math import MathFunction
from needle.backends.cpu.write import write
from needle.compiler.access import View, view_of
from needle.compiler.fusion import Group
from needle.compiler.index import Var
from needle.graph.ir import Value
from needle.ops.record import Kind

#: Instructions of an op and of a random number, about.
_PER_OP, _PER_DRAW = 2, 200


@dataclass
class ProductPlan:
    """A product as a kernel of a program; see `AnchorPlan`."""

    group: Group
    spec: GemmSpec
    a: View
    b: View
    threads: int
    tasks: int = 1
    workspace: int = 0

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        """Emit the kernel: a call of the product's function with the epilogue fused in."""
        f = kernel.f
        is_paired = uses_pairs(self.spec, f.target)
        spec = replace(self.spec, epilogue=_epilogue(kernel, self.group, is_paired))
        product = emit_gemm(f.module, spec, threads=self.threads, name=f"{f.name}_product")
        a, b = (
            f.pointer(kernel.pointer_of(v.base), v.offset, v.base.dtype) for v in (self.a, self.b)
        )
        task = f.argument("task")
        product.call(f, a, b, "null", extra="%args", workspace=workspace, task=task)


def plan_product(
    group: Group, is_stored: Callable[[Value], bool], target: Target, threads: int
) -> ProductPlan:
    """Return the plan of a matrix product."""
    node = group.anchor
    assert node is not None
    x, y = node.inputs
    a, b = view_of(x, is_stored), view_of(y, is_stored)
    assert a is not None
    assert b is not None
    shape = node.result.shape
    dtype = dtypes.accumulation_dtype(node.result.dtype)
    spec = GemmSpec(
        shape[-2],
        shape[-1],
        x.shape[-1],
        _matrix(x, a, shape),
        _matrix(y, b, shape),
        Matrix(dtype, shape[-1], 1, (0,) * (len(shape) - 2)),
        shape[:-2],
        dtype,
    )
    kernel = describe(spec, target, threads=threads)
    return ProductPlan(group, spec, a, b, threads, kernel.tasks, kernel.workspace)


def _matrix(value: Value, view: View, shape: tuple[int, ...]) -> Matrix:
    lead = len(shape) - value.ndim
    batch = [0] * lead + [
        0 if n == 1 else s for n, s in zip(value.shape[:-2], view.strides[:-2], strict=True)
    ]
    # What the program computes lies in its arena, on cache lines; users' arrays lie anywhere.
    is_given = view.base.node is None
    return Matrix(
        value.dtype,
        view.strides[-2],
        view.strides[-1],
        tuple(batch),
        may_be_off_line=is_given,
    )


def _epilogue(kernel: KernelFunction, group: Group, is_paired: bool) -> Epilogue:
    """Return what computes and stores the group's pieces from a vector of sums."""
    first = group.pieces[0]
    axes = [None if i.is_constant else next(iter(i.variables)) for i in first.at]
    shape = first.value.shape
    written = [p for p in group.pieces if kernel.is_written(p.value)]

    def begin(f: Function) -> Any:
        assert isinstance(f, MathFunction)
        part = kernel.part(f, "%extra")
        return part, f.segment()

    def store(f: Function, sums: Operand, at: Place, state: tuple[KernelFunction, Segment]) -> None:
        part, before = state
        e = part.emitter
        e.own_places = {p.value: p.at for p in group.pieces}
        with e.inside(before):
            place_axes(f, e.places, axes, shape, at, e.top)
            column = axes[-1]
            e.vector = column if at.lanes else None
            e.lanes, e.mask = at.lanes, at.mask
            if at.lanes and column is None:
                sums = f.extract(sums, 0)
            is_low = is_paired and first.value.dtype == dtypes.bfloat16 and bool(sums.lanes)
            value = round_sums(f, sums) if is_low else f.convert(sums, first.value.dtype)
            e.bind(first.value, first.at, value, bool(sums.lanes))
            elements = [(p, e.element(p.value, p.at).operand) for p in written]
            for piece, operand in elements:
                write(e, part.pointer_of(piece.value), piece, operand)
            e.vector, e.lanes, e.mask = None, 0, None

    def end(f: Function, state: tuple[KernelFunction, Segment]) -> None:
        state[0].report()

    return Epilogue(store, ("kernel", kernel.f.name), begin, _instructions(kernel, group), end)


def _instructions(kernel: KernelFunction, group: Group) -> int:
    """Return about how many instructions compute and store the pieces after the first."""
    values = [p.value for p in group.pieces[1:]]
    count = 2 + 2 * sum(kernel.is_written(v) for v in values)
    seen = {group.pieces[0].value}
    while values:
        value = values.pop()
        if value.node is None or value in seen or kernel.is_loaded(value):
            continue
        seen.add(value)
        count += _PER_DRAW if value.node.op.kind is Kind.RANDOM else _PER_OP
        values += value.node.inputs
    return count


def place_axes(
    f: Function,
    places: dict[Var, Position],
    axes: list[Var | None],
    shape: tuple[int, ...],
    at: Place,
    level: int,
) -> None:
    """Say where the variables of the product's axes stand."""
    batch: Index = at.batch
    for axis in reversed(range(len(shape) - 2)):
        var = axes[axis]
        if var is None:
            continue
        outermost = all(v is None for v in axes[:axis])
        here = batch if outermost else f.mod_index(batch, shape[axis])
        places[var] = Position(here, level)
        batch = f.floordiv_index(batch, shape[axis])
    for var, number in zip(axes[-2:], (at.row, at.column), strict=True):
        if var is not None:
            places[var] = Position(number, level)
