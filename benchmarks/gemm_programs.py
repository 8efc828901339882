"""Matrix products by the kernels alone: no tensors, no autograd; for `benchmarks.gemm`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from needle.arrays import aligned
from needle.backends.cpu import jit, threads
from needle.backends.cpu.gemm import GemmSpec, Matrix, emit_gemm, emit_launch
from needle.backends.cpu.module import Module

UINT8 = np.dtype(np.uint8)


def set_threads(count: int) -> None:
    threads.set_num_threads(count)


def operand(rows: int, columns: int, is_transposed: bool, dtype: str, off: int = 0) -> Any:
    """A matrix of random numbers that begins so many bytes off a cache line."""
    shape = (columns, rows) if is_transposed else (rows, columns)
    kind = np.dtype(dtype)
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
    c = operand(m, n, False, dtype)
    count = threads.get_num_threads()
    spec = GemmSpec(m, n, k, *map(_matrix, (a, b, c)), dtype=a.dtype)
    if sizes == "unknown":
        some = Matrix(a.dtype, None, None)
        spec = GemmSpec(None, None, None, some, some, Matrix(a.dtype, None, 1), dtype=a.dtype)
    module = Module()
    kernel = emit_gemm(module, spec, threads=count)
    name = emit_launch(module, kernel)
    run = jit.load(module).function(name, ctypes.c_void_p)
    given = {"m": m, "n": n, "k": k}
    for letter, x in (("a", a), ("b", b), ("c", c)):
        given |= {f"{letter}_row": x.strides[0] // x.itemsize}
        given |= {f"{letter}_column": x.strides[1] // x.itemsize}
    values = np.array([*kernel.sizes(count, **given), 0] if kernel.parameters else [0], np.int64)
    tasks = int(values[-4:-1].prod()) if kernel.parameters else kernel.tasks
    bytes_ = kernel.plan.workspace_bytes(kernel.spec, kernel.lanes, m)
    workspace = aligned((bytes_ * tasks + 64,), UINT8)
    addresses = [x.ctypes.data for x in (a, b, c, workspace, workspace, values)]
    words = np.array([*addresses, bytes_, tasks], np.int64)
    address = ctypes.c_void_p(words.ctypes.data)
    run(address)
    np.testing.assert_allclose(c, a @ b, rtol=1e-3, atol=1e-3)

    def multiply(keep: Any = (a, b, c, workspace, values, words)) -> None:
        run(address)

    return multiply
