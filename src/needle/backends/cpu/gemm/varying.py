"""Products with an extent that each call gives: in one program for a batch of any size.

Of m, k and the axes of the batch one may be unknown; n and the strides of B are known. What is
decided from the sizes of a known product (`plan`) is decided here by code, at each call, where it
depends on the unknown one. No bit of a result depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping

from needle.backends.cpu.gemm import plan as planning
from needle.backends.cpu.gemm.kernel import GemmKernel
from needle.backends.cpu.gemm.spec import GemmSpec
from needle.backends.cpu.llvm import Function, Index, Operand


def emit_sizes(
    f: Function, kernel: GemmKernel, known: Mapping[str, Index], threads: int, tasks: Operand
) -> str:
    """Emit what ``sizes`` of a kernel's function points to, and return its address.

    Args:
        f: the calling function.
        kernel: the product.
        known: the extents and strides that its specification leaves open, by name.
        threads: into how many tasks it may be split.
        tasks: into how many it is split in this call: 1, or ``threads``.
    """
    values = {**known, **_decisions(f, kernel.spec, kernel.plan.depth, known)}
    grid = _grid(f, kernel, known, threads)
    is_split = f.compare("ne", tasks, f.operand(1))
    for axis, parts in zip(("batch", "row", "column"), grid, strict=True):
        values[f"{axis}_tasks"] = f.select(is_split, f.operand(parts), f.operand(1))
    sizes = f.at_entry(f"alloca [{len(kernel.parameters)} x i64], align 8")
    for i, name in enumerate(kernel.parameters):
        f.store(f.operand(values[name]), sizes, i)
    return sizes


def _decisions(
    f: Function, spec: GemmSpec, depth: int, known: Mapping[str, Index]
) -> dict[str, Index]:
    """Return the length of blocks of k, and whether to pack; see `plan.choose_blocks`."""
    m, k = (known[name] if size is None else size for name, size in (("m", spec.m), ("k", spec.k)))
    n, b_row = spec.n or 0, spec.b.row or 0
    size = spec.dtype.itemsize
    row_bytes = max(b_row, n, 1) * size
    large_k, packed_k = (-(-b // row_bytes) for b in (planning.LARGE, planning.PACKED_FROM))

    def where(x: Index, low: int, then: Index, otherwise: Index) -> Index:
        """Return ``then`` if x ≥ low, else ``otherwise``."""
        if isinstance(x, int):
            return then if x >= low else otherwise
        return f.select(f.compare("sge", x, f.operand(low)), f.operand(then), f.operand(otherwise))

    off: Index = planning.NEVER
    if b_row * size % 64:
        off = planning.ALWAYS
    elif spec.b.may_be_off_line:
        off = planning.IF_OFF_LINE
    pack_b: Index = planning.NEVER
    if n > 64:
        long = where(k, planning.L1_PANEL // 256 + 1, off, planning.NEVER)
        pack_b = where(m, planning.UNALIGNED_FROM_ROWS, long, planning.NEVER)
    many = where(m, planning.PACKED_FROM_ROWS, planning.ALWAYS, pack_b)
    pack_b = where(k, packed_k, many, pack_b)
    block = where(k, planning.K_WHOLE + 1, min(planning.K_BLOCK, depth), depth)
    if spec.m is None:
        block = depth
    if not planning.must_pack_b(spec):
        few, short, rest = planning.SMALL_BLOCKS
        small = where(m, planning.PACKED_FROM_ROWS, block, where(m, few + 1, rest, short))
        block = where(k, large_k, small, block)
    pack_a: Index = 0
    if isinstance(m, int) and spec.a.row == 1 and m > 1 and n >= 256:
        step = known["a_column"] if spec.a.column is None else spec.a.column
        far = where(step, planning.APART // size, 1, 0)
        pack_a = where(k, 128, far, 0)
    return {"k_block": block, "pack_a": pack_a, "pack_b": pack_b}


def _grid(
    f: Function, kernel: GemmKernel, known: Mapping[str, Index], threads: int
) -> tuple[Index, Index, Index]:
    """Return into how many parts batch, rows and columns are split among the threads."""
    spec, plan = kernel.spec, kernel.plan
    if any(extent is None for extent in spec.batch):
        return threads, 1, 1
    across = -(-(spec.n or 0) // (plan.vectors * kernel.lanes))
    if spec.m is None:
        if across < threads:
            return 1, threads, 1
        if across >= 4 * threads:  # packed, B is packed once
            return 1, 1, threads
        # Rows, once each part has several tiles of them: then columns are not read twice.
        m = f.operand(known["m"])
        by_rows = f.compare("sge", m, f.operand(4 * threads * plan.rows))
        rows, columns = (
            f.select(by_rows, f.operand(x), f.operand(y)) for x, y in ((threads, 1), (1, threads))
        )
        return 1, rows, columns
    batch = 1
    for extent in spec.batch:
        batch *= extent or 1
    tile = (plan.rows, plan.vectors)
    extents = (spec.m, spec.n or 0, planning.TYPICAL)
    grid = planning.task_grid(extents, batch, tile, kernel.lanes, threads, planning.costs_of(False))
    if grid == (1, 1, 1):  # too small however long it is, or one tile
        return 1, threads, 1
    return grid
