"""A matrix product as a function of a module: how it is made, called and given its sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from needle import dtypes
from needle.backends.cpu.gemm.loops import Product
from needle.backends.cpu.gemm.pairs import PairPlan, PairProduct, make_pair_plan, uses_pairs
from needle.backends.cpu.gemm.plan import (
    ALWAYS,
    IF_OFF_LINE,
    NEVER,
    Plan,
    choose_blocks,
    chooses_a,
    costs_of,
    make_plan,
    task_grid,
)
from needle.backends.cpu.gemm.spec import GemmSpec
from needle.backends.cpu.llvm import Function, Index, Module
from needle.backends.cpu.target import Target
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
        spec = self.spec
        return self.plan.workspace_bytes(spec, self.lanes, spec.m or 0, spec.n or 0)

    def sizes(self, threads: int = 1, **known: int) -> list[int]:
        """Return what ``sizes`` is to point to, for values of the unknown extents and strides.

        Args:
            threads: into about how many tasks to split the work, where it pays.
            **known: the values by name, as in `parameters`: ``m``, ``a_row``, ``batch0`` …

        Returns:
            The values of `parameters`, those that are decided here among them; the last three
            multiplied are the number of tasks.
        """
        spec = self.spec
        m, n, k, a_row, a_column, b_row, b_column = (
            known[name] if value is None else value
            for name, value in (
                ("m", spec.m),
                ("n", spec.n),
                ("k", spec.k),
                ("a_row", spec.a.row),
                ("a_column", spec.a.column),
                ("b_row", spec.b.row),
                ("b_column", spec.b.column),
            )
        )
        block, packs = choose_blocks(spec, m, n, k, b_row)
        if b_column != 1 and n > 1:
            packs = True
        values = {**known, "k_block": min(block or self.plan.depth, self.plan.depth)}
        values["pack_a"] = int(chooses_a(spec, m, n, k, a_row, a_column))
        values["pack_b"] = IF_OFF_LINE if packs is None else ALWAYS if packs else NEVER
        batch = 1
        for i, extent in enumerate(spec.batch):
            batch *= known[f"batch{i}"] if extent is None else extent
        tile = (self.plan.rows, self.plan.vectors)
        if isinstance(self.plan, PairPlan):
            grid = self.plan.grid_of((m, n, k), batch, threads)
        else:
            grid = task_grid((m, n, k), batch, tile, self.lanes, threads, costs_of(bool(packs)))
        values |= zip(("batch_tasks", "row_tasks", "column_tasks"), grid, strict=True)
        return [values[name] for name in self.parameters]

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
        names += ["k_block", "pack_a", "pack_b", "batch_tasks", "row_tasks", "column_tasks"]
    return tuple(names)


def emit_gemm(
    module: Module,
    spec: GemmSpec,
    *,
    threads: int = 1,
    name: str = "gemm",
    internal: bool = True,
    plan: Plan | None = None,
) -> GemmKernel:
    """Add a function that computes ``spec`` to ``module``.

    Args:
        module: the module.
        spec: the product.
        threads: into about how many tasks to split the work, where it pays.
        name: a name for people; made unique.
        internal: whether only the module calls it.
        plan: how to compute it; the model's choice by default.

    Returns:
        The kernel: its function's name, tasks and workspace.

    Raises:
        ValueError: the specification contradicts itself.
    """
    unique = module.unique(name)
    kernel = describe(spec, module.target, threads=threads, name=unique, plan=plan)
    function = MathFunction(module, kernel.name, ARGUMENTS, internal=internal)
    make = PairProduct if isinstance(kernel.plan, PairPlan) else Product
    make(function, kernel.spec, kernel.plan, kernel.parameters).emit()
    return replace(kernel, name=function.end())


def packed_bytes(kernel: GemmKernel) -> int:
    """Return how many bytes B takes where `emit_packing` has copied it."""
    spec, vectors = kernel.spec, -(-(kernel.spec.n or 0) // kernel.lanes)
    panels = -(-vectors // kernel.plan.vectors)
    panel = kernel.plan.vectors * kernel.lanes * kernel.plan.depth
    return panels * panel * spec.dtype.itemsize


def emit_packing(module: Module, kernel: GemmKernel) -> Callable[[Function, str, str], None]:
    """Add a function that copies B as a product reads it to which it is given packed.

    Args:
        module: the module.
        kernel: the product; see `can_be_given_packed`.

    Returns:
        What emits a call: ``call(f, b, packed)``.
    """
    spec = replace(kernel.spec, b=replace(kernel.spec.b, is_packed=False), epilogue=None)
    f = MathFunction(module, module.unique("pack"), ARGUMENTS)
    Product(f, spec, kernel.plan, ()).emit_packing()
    made = replace(kernel, name=f.end())
    return lambda f, b, packed: made.call(f, "null", b, "null", workspace=packed)


def describe(
    spec: GemmSpec,
    target: Target,
    *,
    threads: int = 1,
    name: str = "gemm",
    plan: Plan | None = None,
) -> GemmKernel:
    """Return the kernel that `emit_gemm` makes of these arguments, without making it."""
    is_paired = uses_pairs(spec, target)
    spec = _checked(spec, is_paired)
    if plan is None:
        plan = make_pair_plan(spec, threads) if is_paired else make_plan(spec, target, threads)
    return GemmKernel(name, spec, plan, parameters_of(spec), target.lanes(spec.dtype))


def _checked(spec: GemmSpec, is_paired: bool) -> GemmSpec:
    """Return ``spec``, where strides that are never used are 1; raise if it contradicts itself."""
    if spec.n in (0, 1):
        spec = replace(spec, b=replace(spec.b, column=1), c=replace(spec.c, column=1))
    is_stored = spec.epilogue is None and 0 not in (spec.m, spec.n, *spec.batch)
    converts = is_paired and spec.c.dtype == dtypes.bfloat16
    if is_stored and (spec.c.column != 1 or not (spec.c.dtype == spec.dtype or converts)):
        raise ValueError(
            "a product that is stored without an epilogue needs rows of C that are contiguous, of "
            f"dtype {spec.dtype}, not column stride {spec.c.column} and dtype {spec.c.dtype}"
        )
    if spec.factors is not None and not is_paired:
        raise ValueError(
            f"factors are rounded to {spec.factors} only where pairs of bfloat16 are multiplied"
        )
    for name, matrix in (("A", spec.a), ("B", spec.b), ("C", spec.c)):
        if len(matrix.batch) != len(spec.batch) and not matrix.load:
            raise ValueError(
                f"{name} has {len(matrix.batch)} batch strides for {len(spec.batch)} batch axes"
            )
    return spec
