"""Matrix products by the kernels alone: no tensors, no autograd; for `benchmarks.gemm`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from needle import dtypes
from needle.arrays import aligned
from needle.backends.cpu import jit, threads
from needle.backends.cpu.gemm import GemmSpec, Matrix, emit_gemm, emit_launch, uses_pairs
from needle.backends.cpu.module import Module

UINT8 = np.dtype(np.uint8)


def set_threads(count: int) -> None:
    threads.set_num_threads(count)


def operand(rows: int, columns: int, is_transposed: bool, dtype: str, off: int = 0) -> Any:
    """A matrix of random numbers that begins so many bytes off a cache line."""
    shape = (columns, rows) if is_transposed else (rows, columns)
    kind = dtypes.as_dtype(dtype)
    values = np.ndarray(shape, kind, aligned((off + rows * columns * kind.itemsize,), UINT8), off)
    values[...] = np.random.default_rng(0).standard_normal(shape)
    return values.T if is_transposed else values


def _matrix(x: Any) -> Matrix:
    return Matrix(x.dtype, x.strides[0] // x.itemsize, x.strides[1] // x.itemsize)


def product(
    m: int, n: int, k: int, layout: str, dtype: str, sizes: str = "known", off: int = 0
) -> Callable[[], Any]:
    """One product; ``layout`` is n or t for each operand; sizes are known or unknown; operands
    begin ``off`` bytes off a cache line."""
    a = operand(m, k, layout[0] == "t", dtype, off)
    b = operand(k, n, layout[1] == "t", dtype, off)
    count = threads.get_num_threads()
    module = Module()
    wide = dtypes.accumulation_dtype(a.dtype)
    c = operand(m, n, False, dtype)
    if not uses_pairs(GemmSpec(m, n, k, *map(_matrix, (a, b, c)), dtype=wide), module.target):
        c = operand(m, n, False, wide.name)
    spec = GemmSpec(m, n, k, *map(_matrix, (a, b, c)), dtype=wide)
    if sizes == "unknown":
        some = Matrix(a.dtype, None, None)
        spec = GemmSpec(None, None, None, some, some, Matrix(c.dtype, None, 1), dtype=wide)
    kernel = emit_gemm(module, spec, threads=count)
    name = emit_launch(module, kernel)
    run = jit.load(module).function(name, ctypes.c_void_p)
    given = {"m": m, "n": n, "k": k}
    for letter, x in (("a", a), ("b", b), ("c", c)):
        given |= {f"{letter}_row": x.strides[0] // x.itemsize}
        given |= {f"{letter}_column": x.strides[1] // x.itemsize}
    values = np.array([*kernel.sizes(count, **given), 0] if kernel.parameters else [0], np.int64)
    tasks = int(values[-4:-1].prod()) if kernel.parameters else kernel.tasks
    bytes_ = kernel.plan.workspace_bytes(kernel.spec, kernel.lanes, m, n)
    workspace = aligned((bytes_ * tasks + 64,), UINT8)
    addresses = [x.ctypes.data for x in (a, b, c, workspace, workspace, values)]
    words = np.array([*addresses, bytes_, tasks], np.int64)
    address = ctypes.c_void_p(words.ctypes.data)
    run(address)
    near = 1e-3 if wide == a.dtype else 1e-2
    want = a.astype(wide) @ b.astype(wide)
    np.testing.assert_allclose(c.astype(wide), want, rtol=near, atol=near * k**0.5)

    def multiply(keep: Any = (a, b, c, workspace, values, words)) -> None:
        run(address)

    return multiply
