"""Convolutions of NumPy arrays by the generated kernels: what eager execution convolves with.

One kernel serves all correlations of a dtype: extents, strides and places are data. The gradient by
the input is made of correlations of the cotangent, one for each remainder of places modulo the
stride.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from needle import dtypes
from needle.arrays import aligned_zeros, maker
from needle.backends.cpu.arguments import address
from needle.backends.cpu.conv import emit_correlation, make_geometry, slack, tasks_of
from needle.backends.cpu.eager_code import load_kernel
from needle.backends.cpu.target import host
from needle.backends.cpu.threads import get_num_threads
from needle.backends.cpu.workspaces import give_back, take
from needle.ops.elementwise import widened
from needle.ops.samples import Array
from needle.ops.unfolding import Pair, Sweep, Window, phases

#: Geometries that are remembered: each has two numbers for each tap.
MOST_GEOMETRIES = 512


def convolution(first: Array, second: Array, **attrs: Any) -> Array | None:
    """Return what one of the three forms of convolution does, or None for what is left to NumPy.

    Args:
        first: the image, or the cotangent.
        second: the weight; of the gradient by the weight, the image.
        attrs: those of the op: the gradients have one more each.

    Returns:
        The result; None for integers, and for the gradient by the weight.
    """
    is_float = first.dtype in dtypes.FLOAT_SET and first.dtype == second.dtype
    if not is_float or "kernel" in attrs:
        return None
    form = _input_grad if "size" in attrs else _forward
    result: Array = form(first, second, **attrs)
    return result


@widened
def _forward(x: Array, weight: Array, **attrs: Any) -> Array:
    window = Window((weight.shape[2], weight.shape[3]), **attrs)
    counts = window.counts((x.shape[2], x.shape[3]), "conv2d")
    out = maker((len(x), len(weight), *counts), x.dtype)()
    groups = window.groups
    kernels = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    _correlate(x, kernels, window.sweeps(counts), out)
    return out


@widened
def _input_grad(g: Array, weight: Array, *, size: Pair, **attrs: Any) -> Array:
    outs, depth, kh, kw = weight.shape
    window = Window((kh, kw), **attrs)
    down, across = window.sweeps((g.shape[2], g.shape[3]))
    groups = window.groups
    adjoint = weight.reshape(groups, outs // groups, depth, kh, kw).swapaxes(1, 2)
    shape = (len(g), groups * depth, *size)
    pairs = [(a, b) for a in phases(down, size[0]) for b in phases(across, size[1])]
    # Without strides, the one correlation writes all places.
    is_whole = bool(pairs) and (down.stride, across.stride) == (1, 1)
    out = maker(shape, g.dtype)() if is_whole else aligned_zeros(shape, g.dtype)
    for a, b in pairs:
        kernels = adjoint[..., a.taps, b.taps]
        _correlate(g, kernels, (a.sweep, b.sweep), out[:, :, a.inputs, b.inputs])
    return out


def _correlate(x: Array, kernels: Array, sweeps: tuple[Sweep, Sweep], out: Array) -> None:
    """Write the correlation of [N, C, H, W] with [G, O/G, C/G, kh, kw] to ``out``."""
    if not out.size:
        return
    if not x.size or not kernels.size:
        out[...] = 0
        return
    x = np.ascontiguousarray(x)
    size = x.itemsize
    if any(s % size for s in kernels.strides) or not kernels.flags.aligned:
        kernels = kernels.copy()
    description, elements, tasks = _describe(
        x.shape, kernels.shape, kernels.strides, out.strides, sweeps, size, get_num_threads()
    )
    workspace = take(elements * size * tasks)
    pointers = (description, x, kernels, out, workspace)
    words = np.array([*(p.ctypes.data for p in pointers), elements, tasks], np.int64)
    _kernel(x.dtype.name)(address(words))
    give_back(workspace)


@functools.lru_cache(MOST_GEOMETRIES)
def _describe(
    x: tuple[int, ...],
    kernels: tuple[int, ...],
    kernel_strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    sweeps: tuple[Sweep, Sweep],
    itemsize: int,
    threads: int,
) -> tuple[Array, int, int]:
    """Return the description of a correlation, the elements of a workspace, and how many tasks."""
    geometry, tables = make_geometry(
        x,
        kernels,
        tuple(s // itemsize for s in kernel_strides),
        tuple(s // itemsize for s in out_strides),
        sweeps,
        itemsize,
        threads,
    )
    lanes = host().vector_bytes // itemsize
    elements = -(-(geometry.copy + slack(lanes)) // 64) * 64
    words = np.concatenate([np.array(geometry.values(), np.int64), tables])
    return words, elements, tasks_of(geometry, threads)


@functools.cache
def _kernel(dtype: str) -> Callable[..., None]:
    """Return ``run(words)``; see `conv.WORDS`."""
    name = "correlate"
    return load_kernel(
        f"{name} {dtype}",
        name,
        lambda module: emit_correlation(module, dtypes.as_dtype(dtype), name),
        ctypes.c_void_p,
    )
