"""Attention of NumPy arrays by the generated kernels: what eager execution attends with.

A kernel serves all lengths, batches, numbers of heads and layouts; it is made for the widths of the
heads, for the kinds of masks, and for dropout or none.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from needle.arrays import maker
from needle.backends.cpu.arguments import address
from needle.backends.cpu.attention import (
    BACKWARD,
    FORWARD,
    KEY_SLOPE,
    QUERY_SLOPE,
    AttentionSpec,
    Work,
    backward_bytes,
    backward_work,
    common_numbers,
    emit_backward,
    emit_forward,
    forward_bytes,
    forward_work,
    stride_words,
)
from needle.backends.cpu.eager_code import load_kernel
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import host
from needle.backends.cpu.threads import get_num_threads
from needle.backends.cpu.workspaces import give_back, take
from needle.dtypes import DType
from needle.ops.attention_parts import Options
from needle.ops.samples import Array
from needle.shapes import Shape

#: Layouts of calls that are remembered.
MOST_CALLS = 512


def forward(q: Array, k: Array, v: Array, *rest: Array, **attrs: Any) -> tuple[Array, Array]:
    """Return what `attend` does."""
    o = Options(**attrs)
    given = {"q": _with_rows(q), "k": _with_rows(k), "v": _with_rows(v)}
    batch, length, heads, _ = q.shape
    out = maker((batch, length, heads, v.shape[3]), q.dtype)()
    lse = maker((batch, heads, length), q.dtype)()
    if out.size or lse.size:
        _run(True, o, {**given, **_prepared(o, rest), "out": out, "lse": lse})
    return out, lse


def backward(
    g: Array, q: Array, k: Array, v: Array, lse: Array, delta: Array, *rest: Array, **attrs: Any
) -> tuple[Array, Array, Array]:
    """Return what `attend_slopes` does."""
    o = Options(**attrs)
    given = {"g": g, "q": q, "k": k, "v": v, "lse": lse, "delta": delta}
    given = {name: _with_rows(x) for name, x in given.items()}
    dq, dk, dv = (maker(x.shape, x.dtype)() for x in (q, k, v))
    if dq.size or dk.size or dv.size:
        _run(False, o, {**given, **_prepared(o, rest), "dq": dq, "dk": dk, "dv": dv})
    return dq, dk, dv


def _with_rows(x: Array) -> Array:
    """Return an array whose last axis has no gaps."""
    fits = x.shape[-1] < 2 or x.strides[-1] == x.itemsize
    return x if fits and _is_regular(x) else np.ascontiguousarray(x)


def _is_regular(x: Array) -> bool:
    """Whether an array's elements lie at multiples of their size."""
    size = x.itemsize
    return x.flags.aligned and all(s % size == 0 for s in x.strides)


def _prepared(o: Options, rest: Sequence[Array]) -> dict[str, Array]:
    """Return the further inputs by name, as the kernel can read them."""
    extra: dict[str, Array] = o.name(rest)
    for name, x in extra.items():
        if not _is_regular(x) or (name == "state" and not x.flags.c_contiguous):
            extra[name] = np.ascontiguousarray(x).reshape(x.shape)
    return extra


class _Call(NamedTuple):
    """A call on arrays of known layouts: all but their addresses.

    Attributes:
        run: the kernel.
        words: what it is told.
        places: of the arrays' addresses among the words, and that of the workspace.
        nbytes: of the workspace.
        work: what the tasks do; the words hold its address.
    """

    run: Callable[..., None]
    words: Array
    places: list[int]
    nbytes: int
    work: Work


def _run(is_forward: bool, o: Options, arrays: dict[str, Array]) -> None:
    """Run a kernel on arrays."""
    layouts = tuple([(name, x.shape, x.strides, x.dtype) for name, x in arrays.items()])
    call = _call(is_forward, o, layouts, get_num_threads())
    words = call.words.copy()
    workspace = take(call.nbytes)
    words[call.places] = [*map(address, arrays.values()), address(workspace)]
    call.run(address(words), call.work.tasks)
    give_back(workspace)


@functools.lru_cache(MOST_CALLS)
def _call(
    is_forward: bool, o: Options, layouts: tuple[tuple[str, Shape, Shape, DType], ...], threads: int
) -> _Call:
    """Return a call for arrays of these names, shapes, strides and dtypes."""
    numbers: dict[str, int] = {}
    for name, shape, strides, dtype in layouts:
        elements = tuple(s // dtype.itemsize for s in strides)
        numbers |= stride_words(name, shape, elements)
    found = {name: (shape, dtype) for name, shape, _, dtype in layouts}
    (batch, length, heads, width), dtype = found["q"]
    source, groups = found["k"][0][1:3]
    numbers |= common_numbers(o, length, source, heads, groups)
    mask = found["mask"][1] if o.masked else None
    spec = AttentionSpec.of(o, dtype, width, found["v"][0][3], mask, numbers)
    sizes = (batch, heads, groups, length, source, o.causal, threads)
    if is_forward:
        names, run, work = FORWARD, _forward(spec), forward_work(*sizes)
        nbytes = forward_bytes(spec, host())
    else:
        names, run = BACKWARD, _backward(spec)
        work, nbytes = backward_work(*sizes, QUERY_SLOPE | KEY_SLOPE), backward_bytes(spec)
    numbers |= {"bytes": nbytes, "items": address(work.items), "bounds": address(work.bounds)}
    words = np.array([numbers.get(name, 0) for name in names], np.int64)
    places = [names.index(name) for name in (*found, "workspace")]
    return _Call(run, words, places, nbytes * work.tasks, work)


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
