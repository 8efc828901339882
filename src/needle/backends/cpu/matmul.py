"""Products of NumPy arrays by the generated kernels: what eager execution multiplies with.

One kernel serves all extents and layouts of a dtype; it is compiled once per machine. What depends
on shapes and strides (which axes are one, blocks, tasks) is decided once for each, and kept.

Measured: 1.2 µs from Python to native code and back, of which the new array takes 0.2.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from needle import dtypes
from needle.arrays import maker
from needle.backends.cpu.arguments import address, layout
from needle.backends.cpu.eager_code import load_kernel
from needle.backends.cpu.gemm import (
    WORDS,
    GemmKernel,
    GemmSpec,
    Matrix,
    describe,
    emit_gemm,
    emit_launch,
    uses_pairs,
)
from needle.backends.cpu.gemm.plan import FEW_ROWS, NEVER
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import host
from needle.backends.cpu.threads import get_num_threads
from needle.backends.cpu.workspaces import give_back, take
from needle.dtypes import DType
from needle.ops.samples import Array

#: Calls that are remembered; the memory of each is about 1 kB.
MOST_CALLS = 4096

#: From the operands to their product.
Call = Callable[[Array, Array], Array]

_calls: dict[Any, Call] = {}


def matmul(x: Array, y: Array) -> Array | None:
    """Return the product of the last two axes, or None if that is not what the kernels do.

    Args:
        x: [..., m, k], in any layout.
        y: [..., k, n], of the same dtype; the axes before broadcast.

    Returns:
        [..., m, n] of the dtype; None for integers, and for operands that do not fit.
    """
    if x.__class__ is not np.ndarray or y.__class__ is not np.ndarray:
        return None
    key = (x.shape, x.strides, y.shape, y.strides, x.dtype, y.dtype, get_num_threads())
    call = _calls.get(key)
    if call is None:
        found = _make_call(x, y, key[-1])
        if found is None:
            return None
        if len(_calls) >= MOST_CALLS:
            _calls.clear()
        call = _calls[key] = found
    return call(x, y)


class _Axes(NamedTuple):
    """A batch of products of matrices: extents, and strides in elements.

    Attributes:
        m, n, k: of the matrices.
        batch: extents of the batch.
        a, b, c: strides of rows, of columns, and of the batch's axes.
    """

    m: int
    n: int
    k: int
    batch: tuple[int, ...]
    a: tuple[int, ...]
    b: tuple[int, ...]
    c: tuple[int, ...]


def _make_call(x: Array, y: Array, threads: int) -> Call | None:
    """Return what multiplies arrays that lie as these do; None if nothing does."""
    if x.dtype != y.dtype or x.dtype not in dtypes.FLOAT_SET or x.shape[-1] != y.shape[-2]:
        return None
    shape = (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
    dtype = x.dtype
    if 0 in shape or not x.shape[-1]:
        return lambda x, y: np.zeros(shape, dtype)
    for array in (x, y):
        if any(s % dtype.itemsize for s in array.strides) or not array.flags.aligned:
            return lambda x, y: matmul(x.copy(), y.copy())  # type: ignore[return-value]
    axes = _axes(x, y, shape)
    by_rows = axes.a[1] == 1 and axes.a[0] != 1 and dtype.itemsize > 2
    if axes.n == 1 and by_rows and axes.b[0] != 1:
        return lambda x, y: matmul(x, np.ascontiguousarray(y))  # type: ignore[return-value]
    is_dot = axes.n == 1 and by_rows
    # Few rows of x · Wᵀ have kernels of their own: they read W as it lies.
    turned = axes.b[0] == 1 and axes.b[1] != 1 and dtype.itemsize > 2
    few = axes.m if axes.m <= FEW_ROWS and turned else None
    kernel = _kernel(dtype.name, len(axes.batch), is_dot, None if is_dot else few)
    return kernel.bind(axes, shape, dtype, threads)


def _axes(x: Array, y: Array, shape: tuple[int, ...]) -> _Axes:
    """Return the product of x and y with as few axes as it can have."""
    size = x.itemsize
    a, b = (np.broadcast_to(z, (*shape[:-2], *z.shape[-2:])).strides for z in (x, y))
    m, n, k = shape[-2], shape[-1], x.shape[-1]
    steps = [tuple(s // size for s in (*strides[-2:], *strides[:-2])) for strides in (a, b)]
    c = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    rows_a, rows_b = steps
    rows_c = (c[-2], c[-1], *c[:-2])
    batch: list[tuple[int, int, int, int]] = []
    for axis in zip(shape[:-2], rows_a[2:], rows_b[2:], rows_c[2:], strict=True):
        if axis[0] == 1:
            continue
        if batch:
            extent, *outer = batch[-1]
            # Two axes are one where a step of the outer is a walk along the inner.
            if all(o == axis[0] * i for o, i in zip(outer, axis[1:], strict=True)):
                batch[-1] = (extent * axis[0], *axis[1:])
                continue
        batch.append(axis)
    if batch and batch[-1][2] == 0 and batch[-1][1] == m * rows_a[0] and rows_a[1] == 1:
        # One y for all: the rows of all matrices are those of one.
        m *= batch.pop()[0]
    batch = batch or [(1, 0, 0, 0)]
    extents, *strides_ = zip(*batch, strict=True)
    return _Axes(
        m,
        n,
        k,
        extents,
        (*rows_a[:2], *strides_[0]),
        (*rows_b[:2], *strides_[1]),
        (*rows_c[:2], *strides_[2]),
    )


class _Kernel:
    """A loaded kernel for all products of a dtype and a number of batch axes.

    Args:
        product: the kernel.
        run: ``run(description, x, y, out, workspace)``: see `_emit_entry`.
    """

    def __init__(self, product: GemmKernel, run: Callable[..., None]) -> None:
        self.product = product
        self.run = run

    def bind(self, axes: _Axes, shape: tuple[int, ...], dtype: DType, threads: int) -> Call:
        """Return what multiplies arrays with these axes to a new one of ``shape``."""
        product, plan = self.product, self.product.plan
        known = {"m": axes.m, "n": axes.n, "k": axes.k}
        for name, strides in (("a", axes.a), ("b", axes.b), ("c", axes.c)):
            known |= {f"{name}_row": strides[0], f"{name}_column": strides[1]}
            known |= {f"{name}_batch{i}": s for i, s in enumerate(strides[2:])}
        known |= {f"batch{i}": extent for i, extent in enumerate(axes.batch)}
        sizes = product.sizes(threads, **known)
        chosen = dict(zip(product.parameters, sizes, strict=True))
        tasks = math.prod(sizes[-3:])
        packs = plan.pack_a or plan.pack_b or chosen["pack_a"] or chosen["pack_b"] != NEVER
        bytes_ = 0
        if packs or axes.k > chosen["k_block"]:
            bytes_ = plan.workspace_bytes(product.spec, product.lanes, axes.m, axes.n)
        words = np.array([bytes_, tasks, *sizes], np.int64)
        description = words.ctypes.data
        run, needed = self.run, bytes_ * tasks
        object_at = id if layout() else address
        wide = product.spec.c.dtype
        make = maker(shape, wide)

        def call(x: Array, y: Array, words: Array = words) -> Array:
            out = make()
            if not needed:
                run(description, object_at(x), object_at(y), object_at(out), 0)
                return out
            workspace = take(needed)
            run(description, object_at(x), object_at(y), object_at(out), address(workspace))
            give_back(workspace)
            return out

        return call if wide == dtype else lambda x, y: call(x, y).astype(dtype)


@functools.cache
def _kernel(dtype: str, axes: int, is_dot: bool, few: int | None) -> _Kernel:
    """Return the kernel; ``few``: of so many rows, for columns of y that are contiguous."""
    spec = _spec(dtypes.as_dtype(dtype), axes, is_dot, few)
    name = "product"

    def emit(module: Module) -> None:
        product = emit_gemm(module, spec, name="kernel")
        _emit_entry(module, emit_launch(module, product), name)

    run = load_kernel(f"product {spec} {layout()}", name, emit, *[ctypes.c_void_p] * 5)
    return _Kernel(describe(spec, host()), run)


def _spec(dtype: DType, axes: int, is_dot: bool, few: int | None) -> GemmSpec:
    wide = dtypes.accumulation_dtype(dtype)
    batch = (None,) * axes
    some = Matrix(dtype, None, None, batch)
    out = Matrix(wide, None, 1, batch)
    if is_dot:
        rows, vector = Matrix(dtype, None, 1, batch), Matrix(dtype, 1, 1, batch)
        return GemmSpec(None, 1, None, rows, vector, out, batch, wide)
    y = some if few is None else Matrix(dtype, 1, None, batch)
    spec = GemmSpec(few, None, None, some, y, out, batch, wide)
    # Pairs are rounded once where they are multiplied, others by who asked for the product.
    return replace(spec, c=replace(out, dtype=dtype)) if uses_pairs(spec, host()) else spec


def _emit_entry(module: Module, launch: str, name: str) -> None:
    """Emit ``void name(ptr description, ptr x, ptr y, ptr out, ptr workspace)``.

    The description is int64: bytes of a task's workspace, number of tasks, the kernel's sizes. The
    others are arrays, as objects where their layout is known, else their data: so that Python does
    not have to find out the address of the data.
    """
    arguments = dict.fromkeys(("description", "x", "y", "out", "workspace"), "ptr")
    f = Function(module, name, arguments, internal=False)
    where = layout()
    words = f.at_entry(f"alloca [{len(WORDS)} x i64], align 8")
    values: dict[str, str] = {"extra": "null", "workspace": "%workspace"}
    for word, argument in (("a", "x"), ("b", "y"), ("c", "out")):
        values[word] = f"%{argument}"
        if where is not None:
            field = f.pointer(f"%{argument}", where.data, dtypes.uint8)
            values[word] = f.value(f"load ptr, ptr {field}")
    values["sizes"] = f.pointer("%description", 2, dtypes.int64)
    for i, word in enumerate(WORDS[:6]):
        f.emit(f"store ptr {values[word]}, ptr {f.pointer(words, i, dtypes.int64)}")
    for i, word in enumerate(("bytes", "tasks")):
        f.store(f.load("%description", i, dtypes.int64), words, WORDS.index(word))
    f.emit(f"call void @{launch}(ptr {words})")
    f.end()
