"""Matrix products in a program: operands where they lie, the group's other pieces as epilogue.

A batch of matrices that lie one below the other, times one matrix, is one product of more rows: B
is brought to the tiles once, not once for each of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from needle import dtypes
from needle.backends.cpu.emit import Position
from needle.backends.cpu.epilogue import axes_of, fuse
from needle.backends.cpu.gemm import (
    Epilogue,
    GemmKernel,
    GemmSpec,
    Matrix,
    Place,
    Plan,
    can_be_given_packed,
    describe,
    emit_gemm,
    uses_pairs,
)
from needle.backends.cpu.gemm.pair_instructions import round_sums
from needle.backends.cpu.gemm.spec import Extent
from needle.backends.cpu.gemm.varying import emit_sizes
from needle.backends.cpu.kernel import KernelFunction
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.loops import BY_ROWS
from needle.backends.cpu.operands import Index, Operand
from needle.backends.cpu.status import TASKS_WORD
from needle.backends.cpu.target import Target
from needle.compiler.access import View, view_of
from needle.compiler.fusion import Group
from needle.compiler.index import Var
from needle.compiler.rows import VariesError, rows_in
from needle.dtypes import DType
from needle.graph.ir import Value

if TYPE_CHECKING:
    from needle.backends.cpu.tuning.candidates import Choose


@dataclass
class ProductPlan:
    """A product as a kernel of a program; see `AnchorPlan`.

    Attributes:
        group: the kernel's group.
        spec: the product.
        plan: how it is computed.
        a, b: where its operands lie.
        target: the processor.
        threads: into about how many tasks it is split.
        is_stacked: whether the rows of its A are those of all matrices of the batch.
        tasks, workspace: as in any plan.
    """

    group: Group
    spec: GemmSpec
    plan: Plan
    a: View
    b: View
    target: Target
    threads: int
    is_stacked: bool = False
    tasks: int = 1
    workspace: int = 0
    #: Extents and strides that each call gives, by name: marks, see `needle.compiler.rows`.
    open: dict[str, int] = field(default_factory=dict)

    def packed(self) -> GemmKernel | None:
        """Return the product with a second factor that is given packed, if that may be."""
        spec, (base, offset, strides) = self.spec, self.b
        is_whole = not offset and strides == (base.shape[-1], 1) and base.ndim == 2
        if not is_whole or uses_pairs(spec, self.target) or not can_be_given_packed(spec):
            return None
        spec = replace(spec, b=replace(spec.b, is_packed=True))
        return describe(spec, self.target, threads=self.threads)

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        """Emit the kernel: a call of the product's function with the epilogue fused in."""
        f = kernel.f
        is_paired = uses_pairs(self.spec, f.target)
        epilogue = _epilogue(kernel, self.group, is_paired, self.is_stacked)
        spec = replace(self.spec, epilogue=epilogue)
        name = f"{f.name}_product"
        product = emit_gemm(f.module, spec, threads=self.threads, name=name, plan=self.plan)
        a, b = (
            f.pointer(kernel.pointer_of(v.base), kernel.extent(v.offset), v.base.dtype)
            for v in (self.a, self.b)
        )
        sizes = "null"
        if product.parameters:
            known = {name: kernel.extent(number) for name, number in self.open.items()}
            sizes = emit_sizes(f, product, known, self.threads, kernel.word(TASKS_WORD))
        task = f.argument("task")
        product.call(f, a, b, "null", extra="%args", workspace=workspace, sizes=sizes, task=task)


def plan_product(
    group: Group,
    is_stored: Callable[[Value], bool],
    target: Target,
    threads: int,
    choose: Choose | None = None,
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
    is_stacked = _is_stacked(x, a, y)
    extents = (math.prod(shape[:-1]), shape[-1]) if is_stacked else shape
    spec = GemmSpec(
        extents[-2],
        extents[-1],
        x.shape[-1],
        _matrix(x, a, extents),
        _matrix(y, b, extents),
        Matrix(dtype, extents[-1], 1, (0,) * (len(extents) - 2)),
        extents[:-2],
        dtype,
    )
    spec, varying = _opened(spec)
    if varying and uses_pairs(spec, target):
        raise VariesError("an extent of a product of pairs of bfloat16 varies")
    chosen = choose(spec) if choose else None
    assert chosen is None or isinstance(chosen, Plan)
    kernel = describe(spec, target, threads=threads, plan=chosen)
    rows = kernel.plan.most_rows if spec.m is None else spec.m
    workspace = kernel.plan.workspace_bytes(spec, kernel.lanes, rows, spec.n or 0)
    tasks = BY_ROWS if varying else kernel.tasks
    return ProductPlan(
        group, spec, kernel.plan, a, b, target, threads, is_stacked, tasks, workspace, varying
    )


def give_packed(plans: Iterable[tuple[Group, object]], fixed: Value) -> GemmKernel | None:
    """Have products take their second factor packed, which stays the same for many calls.

    Args:
        plans: all groups of a program, with their plans where they have one.
        fixed: an input of the program.

    Returns:
        A product that shows how to pack it; None if it is read in another way, too.
    """
    found: list[tuple[ProductPlan, GemmKernel]] = []
    for group, plan in plans:
        reads = [v for p in group.pieces for v, _ in p.reads if v is fixed]
        if not reads:
            continue
        if not isinstance(plan, ProductPlan) or len(reads) != 1 or plan.b.base is not fixed:
            return None
        kernel = plan.packed()
        if kernel is None or (found and kernel.plan.vectors != found[0][1].plan.vectors):
            return None
        found.append((plan, kernel))
    for plan, kernel in found:
        plan.spec, plan.plan = kernel.spec, kernel.plan
        plan.tasks, plan.workspace = kernel.tasks, kernel.workspace
    return found[0][1] if found else None


def _is_stacked(x: Value, view: View, y: Value) -> bool:
    """Whether the rows of all matrices of ``x`` are equally far apart, and ``y`` is one matrix."""
    if x.ndim < 3 or y.ndim != 2 or not x.size or x.shape[-2] == 1 or any(map(rows_in, x.shape)):
        return False
    step = view.strides[-2]
    for n, stride in zip(x.shape[-2::-1], view.strides[-2::-1], strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


def _opened(spec: GemmSpec) -> tuple[GemmSpec, dict[str, int]]:
    """Return a specification that leaves open what each call gives, and that by name.

    Raises:
        VariesError: the number of columns varies.
    """
    varying: dict[str, int] = {}

    def known(name: str, number: Extent) -> Extent:
        if number is None or not rows_in(number):
            return number
        varying[name] = number
        return None

    def matrix(name: str, m: Matrix) -> Matrix:
        return replace(
            m,
            row=known(f"{name}_row", m.row),
            column=known(f"{name}_column", m.column),
            batch=tuple(known(f"{name}_batch{i}", s) for i, s in enumerate(m.batch)),
        )

    opened = replace(
        spec,
        m=known("m", spec.m),
        n=known("n", spec.n),
        k=known("k", spec.k),
        a=matrix("a", spec.a),
        b=matrix("b", spec.b),
        c=matrix("c", spec.c),
        batch=tuple(known(f"batch{i}", n) for i, n in enumerate(spec.batch)),
    )
    if opened.n is None or opened.b.row is None or opened.b.column is None:
        raise VariesError("the number of columns of a matrix product varies")
    return opened, varying


def _matrix(value: Value, view: View, shape: tuple[int, ...]) -> Matrix:
    lead = max(len(shape) - value.ndim, 0)
    batch = [0] * lead + [
        0 if n == 1 else s
        for n, s in zip(value.shape[:-2], view.strides[:-2], strict=True)
        if len(shape) > 2
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


def _epilogue(kernel: KernelFunction, group: Group, is_paired: bool, is_stacked: bool) -> Epilogue:
    """Return what computes and stores the group's pieces from a vector of sums."""
    first = group.pieces[0]
    axes = axes_of(first)
    shape = first.value.shape

    def stand(f: Function, places: dict[Var, Position], at: Place, level: int) -> None:
        if is_stacked:
            batch, row = f.floordiv_index(at.row, shape[-2]), f.mod_index(at.row, shape[-2])
            at = at._replace(batch=batch, row=row)
        place_axes(f, places, axes, shape, at, level)

    def convert(f: Function, sums: Operand, dtype: DType) -> Operand:
        is_low = is_paired and dtype == dtypes.bfloat16 and bool(sums.lanes)
        return round_sums(f, sums) if is_low else f.convert(sums, dtype)

    return Epilogue(**fuse(kernel, group, stand, convert)._asdict())


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
        if not outermost:
            batch = f.floordiv_index(batch, shape[axis])
    for var, number in zip(axes[-2:], (at.row, at.column), strict=True):
        if var is not None:
            places[var] = Position(number, level)
