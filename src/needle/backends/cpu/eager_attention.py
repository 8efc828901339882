"""Attention of NumPy arrays by the generated kernels: what eager execution attends with.

A kernel serves all lengths, batches, numbers of heads and layouts; it is made for the widths of the
heads, for the kinds of masks, and for dropout or none.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from needle.arrays import maker
from needle.backends.cpu.arguments import address
from needle.backends.cpu.attention import (
    BACKWARD,
    FORWARD,
    KEY_SLOPE,
    QUERY_SLOPE,
    AttentionSpec,
    MaskLayout,
    Work,
    backward_bytes,
    backward_work,
    common_numbers,
    emit_backward,
    emit_forward,
    forward_bytes,
    forward_work,
)
from needle.backends.cpu.eager_code import load_kernel
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import host
from needle.backends.cpu.threads import get_num_threads
from needle.backends.cpu.workspaces import give_back, take
from needle.ops.attention_parts import Options
from needle.ops.samples import Array


def forward(q: Array, k: Array, v: Array, *rest: Array, **attrs: Any) -> tuple[Array, Array] | None:
    """Return what `attend` does; None for what is left to its reference."""
    o = Options(**attrs)
    q, k, v = (_with_rows(x) for x in (q, k, v))
    batch, length, heads, _ = q.shape
    source, groups = k.shape[1:3]
    extra = _prepared(o, rest)
    spec = _spec(o, q, v, extra)
    out = maker((batch, length, heads, v.shape[3]), q.dtype)()
    lse = maker((batch, heads, length), q.dtype)()
    if out.size or lse.size:
        work = forward_work(batch, heads, groups, length, source, o.causal, get_num_threads())
        arrays = {"q": q, "k": k, "v": v, "out": out, "lse": lse, **extra}
        numbers = common_numbers(o, length, source, heads, groups)
        _run(_forward(spec), FORWARD, arrays, numbers, work, forward_bytes(spec, host()))
    return out, lse


def backward(
    g: Array, q: Array, k: Array, v: Array, lse: Array, delta: Array, *rest: Array, **attrs: Any
) -> tuple[Array, Array, Array] | None:
    """Return what `attend_slopes` does; None for what is left to its reference."""
    o = Options(**attrs)
    g, q, k, v, lse, delta = (_with_rows(x) for x in (g, q, k, v, lse, delta))
    batch, length, heads, _ = q.shape
    source, groups = k.shape[1:3]
    extra = _prepared(o, rest)
    spec = _spec(o, q, v, extra)
    found = [maker(x.shape, x.dtype)() for x in (q, k, v)]
    if any(x.size for x in found):
        wants = QUERY_SLOPE | KEY_SLOPE
        threads = get_num_threads()
        work = backward_work(batch, heads, groups, length, source, o.causal, threads, wants)
        arrays = {"q": q, "k": k, "v": v, "g": g, "lse": lse, "delta": delta, **extra}
        arrays |= zip(("dq", "dk", "dv"), found, strict=True)
        numbers = common_numbers(o, length, source, heads, groups)
        _run(_backward(spec), BACKWARD, arrays, numbers, work, backward_bytes(spec))
    return found[0], found[1], found[2]


def _with_rows(x: Array) -> Array:
    """Return an array whose last axis has no gaps."""
    size = x.itemsize
    fits = x.shape[-1] < 2 or x.strides[-1] == size
    if fits and x.flags.aligned and not any(s % size for s in x.strides):
        return x
    return np.ascontiguousarray(x)


def _prepared(o: Options, rest: Sequence[Array]) -> dict[str, Array]:
    """Return the further inputs by name, as the kernel can read them."""
    extra: dict[str, Array] = o.name(rest)
    for name, x in extra.items():
        fits = x.flags.aligned and not any(s % x.itemsize for s in x.strides)
        if not fits or (name == "state" and not x.flags.c_contiguous):
            extra[name] = np.ascontiguousarray(x).reshape(x.shape)
    return extra


def _mask_strides(mask: Array) -> tuple[int, int, int, int]:
    size = mask.itemsize
    a, b, c, d = (0 if n == 1 else s // size for n, s in zip(mask.shape, mask.strides, strict=True))
    return a, b, c, d


def _spec(o: Options, q: Array, v: Array, extra: dict[str, Array]) -> AttentionSpec:
    mask = extra.get("mask")
    layout = None if mask is None else MaskLayout(mask.dtype, _mask_strides(mask))
    return AttentionSpec.of(o, q.dtype, q.shape[3], v.shape[3], layout)


def _run(
    kernel: Callable[..., None],
    names: tuple[str, ...],
    arrays: dict[str, Array],
    numbers: dict[str, int],
    work: Work,
    nbytes: int,
) -> None:
    """Run a kernel on arrays."""
    values = {**numbers, "bytes": nbytes}
    for name, array in arrays.items():
        size = array.itemsize
        if name == "mask":
            axes = ("batch", "head", "query", "key")
            values |= zip((f"mask_{a}" for a in axes), _mask_strides(array), strict=True)
        elif array.ndim == 4:
            strides = zip(("batch", "row", "head"), array.strides, strict=False)
            values |= {f"{name}_{axis}": s // size for axis, s in strides}
        elif array.ndim == 3:
            values |= {f"{name}_batch": array.strides[0] // size}
            values |= {f"{name}_head": array.strides[1] // size}
        values[name] = address(array)
    workspace = take(nbytes * work.tasks)
    values |= {"items": address(work.items), "bounds": address(work.bounds)}
    values["workspace"] = address(workspace)
    words = np.array([values.get(name, 0) for name in names], np.int64)
    kernel(address(words), work.tasks)
    give_back(workspace)


@functools.cache
def _forward(spec: AttentionSpec) -> Callable[..., None]:
    return _kernel("attend", spec, lambda module: emit_forward(module, spec))


@functools.cache
def _backward(spec: AttentionSpec) -> Callable[..., None]:
    return _kernel("attend_slopes", spec, lambda module: emit_backward(module, spec))


def _kernel(name: str, spec: AttentionSpec, emit: Callable[[Module], str]) -> Callable[..., None]:
    """Return ``run(words, tasks)``."""

    def entry(module: Module) -> None:
        task = emit(module)
        f = Function(module, f"{name}_run", {"words": "ptr", "tasks": "i64"}, internal=False)
        tasks = f.argument("tasks")

        def together() -> None:
            module.declare("needle_parallel", "void", ["ptr", "ptr", "i64"])
            f.emit(f"call void @needle_parallel(ptr @{task}, ptr %words, {tasks.typed})")

        def alone() -> None:
            f.emit(f"call void @{task}(ptr %words, i64 0)")

        f.branch(f.compare("eq", tasks, f.operand(1)), alone, together)
        f.end()

    types = (ctypes.c_void_p, ctypes.c_int64)
    return load_kernel(f"{name} {spec}", f"{name}_run", entry, *types)
