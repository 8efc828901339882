"""Loops over arrays around one lowering, for tests: any number of lanes, any target."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from needle import dtypes
from needle.backends.cpu.jit import compile_assembly, load
from needle.backends.cpu.module import Module
from needle.backends.cpu.operands import Operand
from needle.backends.cpu.target import AVX2, AVX512, NEON, SSE2, SSE4, Target, host
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType

Array = Any
Build = Callable[..., Operand]

#: Every instruction set that code is generated for, and those that this machine can run.
EVERY = {"avx512": AVX512, "avx2": AVX2, "sse4": SSE4, "sse2": SSE2, "neon": NEON}
RUNNABLE = {
    "host": host(),
    **{
        name: target
        for name, target in EVERY.items()
        if target.architecture == host().architecture
        and target.vector_bytes <= host().vector_bytes
        and (host().fma or not target.fma)
        and (host().rounding or not target.rounding)
    },
}


def emit_map(
    build: Build, takes: Sequence[DType], gives: DType, lanes: int, target: Target | None = None
) -> Module:
    """Return a module with ``map(inputs …, out, n)``; n is a multiple of the lanes."""
    module = Module(target)
    names = [f"x{i}" for i in range(len(takes))]
    pointers = dict.fromkeys([*names, "out"], "ptr")
    f = MathFunction(module, "map", {**pointers, "n": "i64"}, internal=False)

    def body(i: Any, _: list[Operand]) -> None:
        inputs = [f.load(f"%{n}", i, dtype, lanes) for n, dtype in zip(names, takes, strict=True)]
        result = build(f, *inputs)
        assert result.dtype == gives
        assert result.lanes == lanes
        f.store(result, "%out", i)

    f.loop(0, f.argument("n"), max(lanes, 1), [], body)
    f.end()
    return module


def compile_map(
    build: Build,
    takes: Sequence[DType],
    gives: DType,
    lanes: int | None = None,
    target: Target | None = None,
) -> Callable[..., Array]:
    """Return a function of arrays of one size that maps ``build`` over their elements.

    Args:
        build: from the builder and the loaded operands to the result.
        takes: dtypes of the arrays.
        gives: dtype of the result.
        lanes: 0 for scalars; by default as many as a register holds of the first array.
        target: what to generate code for; this machine by default.
    """
    target = target or host()
    if lanes is None:
        lanes = target.lanes(takes[0])
    library = load(emit_map(build, takes, gives, lanes, target), target)
    kinds = [ctypes.c_void_p] * (len(takes) + 1)
    function = library.function("map", *kinds, ctypes.c_int64)
    step = max(lanes, 1)

    def call(*arrays: Array) -> Array:
        shape = arrays[0].shape
        size = arrays[0].size
        padded = []
        for array, dtype in zip(arrays, takes, strict=True):
            room = np.ones(-(-size // step) * step, dtype)
            room[:size] = array.ravel()
            padded.append(room)
        out = np.empty(padded[0].size, gives)
        function(*(a.ctypes.data for a in (*padded, out)), out.size)
        return out[:size].reshape(shape)

    call.library = library  # type: ignore[attr-defined]
    return call


def calls_of(module: Module, target: Target) -> set[str]:
    """Return the names of the functions outside of the module that its machine code calls."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    text = compile_assembly(module, target)
    called = set(re.findall(r"^\s+(?:callq?|jmpq?|bl|b)\s+\*?([A-Za-z_]\w*)", text, re.MULTILINE))
    defined = set(re.findall(r"^(\w[\w.]*):", text, re.MULTILINE))
    return called - defined


def units(result: Array, exact: Array) -> Array:
    """Return the error of each element in units of the last place of its exact value.

    Infinite where one is NaN, infinite or a zero of a certain sign and the other is not.

    Args:
        result: float32 or float64.
        exact: the same numbers with more digits.
    """
    info = np.finfo(result.dtype)
    with np.errstate(all="ignore"):
        rounded = exact.astype(result.dtype)
        exponent = np.frexp(np.where(np.isfinite(exact), exact, 0))[1] - 1
        # Next to the largest number, where rounding overflows, and among the subnormal ones.
        exponent = np.clip(exponent, info.minexp, info.maxexp - 1)
        unit = np.ldexp(np.ones_like(exact), exponent - info.nmant)
        error = np.abs(result.astype(exact.dtype) - exact) / unit
        wrong = np.isfinite(result) != np.isfinite(rounded)
        wrong |= np.isnan(result) != np.isnan(rounded)
        wrong |= (rounded == 0) & (result == 0) & (np.signbit(result) != np.signbit(rounded))
        same = (result == rounded) & ~np.isfinite(rounded)
        same |= np.isnan(result) & np.isnan(rounded)
    return np.where(wrong, np.inf, np.where(same, 0.0, error)).astype(np.float64)


def all_halves(dtype: DType) -> Array:
    """Return all 65536 numbers of a sixteen-bit floating dtype."""
    return np.arange(65536, dtype=np.uint16).view(dtype)


__all__ = [
    "EVERY",
    "RUNNABLE",
    "all_halves",
    "calls_of",
    "compile_map",
    "dtypes",
    "emit_map",
    "units",
]
