"""Compiles products and runs them on NumPy arrays that stand at the edge of readable memory."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from needle.backends.cpu.gemm import GemmKernel, GemmSpec, Plan, emit_gemm
from needle.backends.cpu.jit import Library, load
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import AVX2, SSE2, Target, host

Array = Any

#: The host's widest vectors, and the narrower ones that it has, too.
TARGETS = {"host": host()}
if host().vector_bytes > AVX2.vector_bytes:
    TARGETS["avx2"] = AVX2
if host().vector_bytes > SSE2.vector_bytes:
    TARGETS["sse2"] = SSE2


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


def address(array: Array) -> int:
    return array.__array_interface__["data"][0]


class Guards:
    """Copies of arrays that begin, or end, where memory is that must not be touched."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None) if hasattr(mmap, "MAP_ANONYMOUS") else None

    def copy(self, values: Array, at_end: bool = True) -> Array:
        """Return a copy of all the memory below ``values``, seen with the strides of ``values``."""
        base = values
        while isinstance(base.base, np.ndarray):
            base = base.base
        page = mmap.PAGESIZE
        room = -(-max(base.nbytes, 1) // page) * page
        space = mmap.mmap(-1, room + 2 * page)
        start = page + (room - base.nbytes if at_end else 0)
        shift = address(values) - address(base)
        np.ndarray(base.shape, base.dtype, space, start)[...] = base
        copy = np.ndarray(values.shape, values.dtype, space, start + shift, values.strides)
        if self._libc is not None:
            first = address(np.frombuffer(space, np.uint8))
            for guard in (first, first + page + room):
                forbidden = self._libc.mprotect(
                    ctypes.c_void_p(guard), ctypes.c_size_t(page), ctypes.c_int(0)
                )
                assert forbidden == 0
        return copy


@pytest.fixture
def guards() -> Guards:
    return Guards()


@dataclass
class Compiled:
    """A kernel that is loaded."""

    kernel: GemmKernel
    library: Library

    def __call__(
        self,
        a: Array,
        b: Array,
        c: Array,
        *,
        sizes: dict[str, int] | None = None,
        extra: Array | None = None,
        threads: int = 1,
    ) -> Array:
        """Run all tasks, the last one first, on dirty workspaces; return C.

        ``sizes`` and ``threads`` are for kernels that are given their sizes when they run.
        """
        kernel = self.kernel
        sizes = sizes or {}
        count = kernel.tasks
        given = np.zeros(len(kernel.parameters), np.int64)
        m, n = kernel.spec.m, kernel.spec.n
        if kernel.parameters:
            given[:] = kernel.sizes(threads, **sizes)
            count = int(given[-3:].prod())
            m, n = sizes.get("m", m), sizes.get("n", n)
        bytes_ = kernel.plan.workspace_bytes(kernel.spec, kernel.lanes, m or 0, n or 0)
        function = self.library.function(kernel.name, *[ctypes.c_void_p] * 6, ctypes.c_int64)
        for task in reversed(range(count)):
            workspace = Guards().copy(np.full(bytes_, 0xFF, np.uint8))
            pointers = [a, b, c, extra, workspace, given]
            function(*[0 if p is None else address(p) for p in pointers], task)
        return c


@pytest.fixture
def compile_product(target: Target) -> Callable[..., Compiled]:
    def compiled(
        spec: GemmSpec, threads: int = 1, target: Target = target, plan: Plan | None = None
    ) -> Compiled:
        module = Module(target)
        kernel = emit_gemm(module, spec, threads=threads, internal=False, plan=plan)
        return Compiled(kernel, load(module, target))

    return compiled
