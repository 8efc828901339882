"""Convolutions of NumPy arrays by the generated kernels: what eager execution convolves with.

One kernel serves all correlations of a dtype: extents, strides and places are data. The gradient by
the input is made of correlations of the cotangent, one for each remainder of places modulo the
stride. The gradient by the weight has a kernel of its own. Kernels of one pixel are products of
matrices, and left to those.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from needle import dtypes
from needle.arrays import aligned_zeros, maker
from needle.backends.cpu.arguments import address
from needle.backends.cpu.conv import (
    copy_words,
    emit_correlation,
    emit_weight_copy,
    emit_weight_gradient,
    make_geometry,
    make_weight_geometry,
    slack,
    tasks_of,
)
from needle.backends.cpu.conv.geometry import PARALLEL_FROM
from needle.backends.cpu.eager_code import load_kernel
from needle.backends.cpu.matmul import matmul
from needle.backends.cpu.target import host
from needle.backends.cpu.threads import get_num_threads
from needle.backends.cpu.workspaces import give_back, take
from needle.config import modes
from needle.ops.elementwise import widened
from needle.ops.samples import Array
from needle.ops.unfolding import Pair, Sweep, Window, phases, scatter

#: Weights of more bytes than this are read far apart only once, to be copied.
CACHED_BYTES = 1 << 15
#: Geometries that are remembered: each has two numbers for each tap.
MOST_GEOMETRIES = 512


def convolution(first: Array, second: Array, **attrs: Any) -> Array | None:
    """Return what one of the three forms of convolution does, or None for what is left to NumPy.

    Args:
        first: the image, or the cotangent.
        second: the weight; of the gradient by the weight, the image.
        attrs: those of the op: the gradients have one more each.

    Returns:
        The result; None for integers.
    """
    if first.dtype not in dtypes.FLOAT_SET or first.dtype != second.dtype:
        return None
    form = _input_grad if "size" in attrs else _weight_grad if "kernel" in attrs else _forward
    result: Array = form(first, second, **attrs)
    return result


@widened
def _forward(x: Array, weight: Array, **attrs: Any) -> Array:
    window = Window((weight.shape[2], weight.shape[3]), **attrs)
    counts = window.counts((x.shape[2], x.shape[3]), "conv2d")
    groups = window.groups
    kernels = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    sweeps = window.sweeps(counts)
    product = _product(x, kernels, sweeps)
    if product is not None:
        return product
    out = maker((len(x), len(weight), *counts), x.dtype)()
    _correlate(x, kernels, sweeps, out)
    return out


def _product(x: Array, kernels: Array, sweeps: tuple[Sweep, Sweep]) -> Array | None:
    """Return the correlation with kernels of one pixel as a product of matrices, if it is one."""
    groups, outs, depth = kernels.shape[:3]
    seen = _pixels_seen(x, sweeps)
    if seen is None or depth == 1:
        return None
    n, _, rows, columns = seen.shape
    product = matmul(kernels[..., 0, 0], seen.reshape(n, groups, depth, rows * columns))
    return None if product is None else product.reshape(n, groups * outs, rows, columns)


def _is_finite(weight: Array) -> bool:
    """Whether no weight is infinite or NaN; seldom False where only their sum overflows."""
    return bool(np.isfinite(modes.state.quiet(np.add.reduce, weight, axis=None)))


def _pixels_seen(x: Array, sweeps: tuple[Sweep, Sweep]) -> Array | None:
    """Return the pixels that a kernel of one pixel reads, [N, C, rows, columns], without gaps; None
    for other kernels, and where some lie outside of the image."""
    down, across = sweeps
    if down.taps > 1 or across.taps > 1:
        return None
    (outputs, rows), (others, columns) = (
        sweep.inside(0, size) for sweep, size in zip(sweeps, x.shape[2:], strict=True)
    )
    if (outputs, others) != (slice(0, down.extent), slice(0, across.extent)):
        return None
    return np.ascontiguousarray(x[:, :, rows, columns])


@widened
def _input_grad(g: Array, weight: Array, *, size: Pair, **attrs: Any) -> Array:
    outs, depth, kh, kw = weight.shape
    window = Window((kh, kw), **attrs)
    down, across = window.sweeps((g.shape[2], g.shape[3]))
    groups = window.groups
    if (kh, kw) != (1, 1) and not _is_finite(weight):
        # Correlated with zeros around the cotangent, an infinite weight would make NaN of them.
        return scatter(g, weight, size, (down, across), groups, matmul)
    adjoint = weight.reshape(groups, outs // groups, depth, kh, kw).swapaxes(1, 2)
    shape = (len(g), groups * depth, *size)
    pairs = [(a, b) for a in phases(down, size[0]) for b in phases(across, size[1])]
    # Without strides, the one correlation writes all places.
    is_whole = bool(pairs) and (down.stride, across.stride) == (1, 1)
    out = None if is_whole else aligned_zeros(shape, g.dtype)
    for a, b in pairs:
        kernels, inner = adjoint[..., a.taps, b.taps], (a.sweep, b.sweep)
        product = _product(g, kernels, inner)
        if product is not None and out is None:
            return product
        out = maker(shape, g.dtype)() if out is None else out
        if product is None:
            _correlate(g, kernels, inner, out[:, :, a.inputs, b.inputs])
        else:
            out[:, :, a.inputs, b.inputs] = product
    assert out is not None
    return out


@widened
def _weight_grad(g: Array, x: Array, *, kernel: Pair, **attrs: Any) -> Array:
    window = Window(kernel, **attrs)
    groups = window.groups
    shape = (g.shape[1], x.shape[1] // groups, *kernel)
    if not g.size or not x.size or not math.prod(shape):
        return aligned_zeros(shape, g.dtype)
    out = maker((*kernel, *shape[1::-1]), g.dtype)()
    sweeps = window.sweeps((g.shape[2], g.shape[3]))
    seen = _pixels_seen(x, sweeps)
    if seen is not None:  # packed, so that they are read where they lie
        x, sweeps = seen, (_plain(sweeps[0]), _plain(sweeps[1]))
    x, g = np.ascontiguousarray(x), np.ascontiguousarray(g)
    description, sums, elements, work = _describe_weights(
        x.shape, g.shape[1] // groups, groups, sweeps, x.itemsize
    )
    tasks = get_num_threads() if work >= PARALLEL_FROM else 1
    # One memory for the sums and for each task's own: it is kept from call to call.
    workspace = take((sums + elements * tasks) * x.itemsize)
    pointers = [p.ctypes.data for p in (description, g, x, out, workspace)]
    words = [*pointers, pointers[-1] + sums * x.itemsize, elements, tasks]
    _weight_kernel(x.dtype.name)(address(np.array(words, np.int64)))
    give_back(workspace)
    return out.transpose(3, 2, 0, 1)  # as it is called; it lies as weights of layers do


def _plain(sweep: Sweep) -> Sweep:
    return Sweep(1, 1, 1, 0, sweep.extent)


@functools.lru_cache(MOST_GEOMETRIES)
def _describe_weights(
    x: tuple[int, ...], outs: int, groups: int, sweeps: tuple[Sweep, Sweep], itemsize: int
) -> tuple[Array, int, int, int]:
    """Return the description of a gradient by the weight, the elements of all sums and of a
    workspace, and how many multiply-adds it takes."""
    lanes = host().vector_bytes // itemsize
    geometry, tables = make_weight_geometry(x, outs, groups, sweeps, lanes, itemsize)
    words = np.concatenate([np.array(geometry.values(), np.int64), tables])
    sums = geometry.pieces * geometry.chunks * geometry.sums
    elements = geometry.lane_sums + geometry.copy + geometry.panel
    return words, sums, elements, geometry.work


@functools.cache
def _weight_kernel(dtype: str) -> Callable[..., None]:
    """Return ``run(words)``; see `conv.weight_gradient.WORDS`."""
    name = "weight_gradient"
    return load_kernel(
        f"{name} {dtype}",
        name,
        lambda module: emit_weight_gradient(module, dtypes.as_dtype(dtype), name),
        ctypes.c_void_p,
    )


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
    if kernels.nbytes > CACHED_BYTES and not _taps_are_neighbours(kernels):
        kernels = _with_taps_together(kernels)
    description, elements, tasks = _describe(
        x.shape, kernels.shape, kernels.strides, out.strides, sweeps, size, get_num_threads()
    )
    workspace = take(elements * size * tasks)
    pointers = (description, x, kernels, out, workspace)
    words = np.array([*(p.ctypes.data for p in pointers), elements, tasks], np.int64)
    _kernel(x.dtype.name)(address(words))
    give_back(workspace)


def _taps_are_neighbours(kernels: Array) -> bool:
    _, rows, columns = kernels.shape[2:]
    return kernels.strides[2:] == tuple(kernels.itemsize * n for n in (rows * columns, columns, 1))


def _with_taps_together(kernels: Array) -> Array:
    """Return a copy of kernels in row-major order."""
    copy = maker(kernels.shape, kernels.dtype)()
    words = [kernels.ctypes.data, copy.ctypes.data, *copy_words(kernels, get_num_threads())]
    _copy_kernel(kernels.dtype.name)(address(np.array(words, np.int64)))
    return copy


@functools.cache
def _copy_kernel(dtype: str) -> Callable[..., None]:
    """Return ``run(words)``; see `conv.weight_copy.WORDS`."""
    name = "copy_weights"
    return load_kernel(
        f"{name} {dtype}",
        name,
        lambda module: emit_weight_copy(module, dtypes.as_dtype(dtype), name),
        ctypes.c_void_p,
    )


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
