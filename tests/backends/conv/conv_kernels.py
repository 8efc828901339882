"""Compiles convolutions and runs them on NumPy arrays that stand at the edge of readable memory."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

from needle.backends.cpu.conv.kernel import ConvKernel, ConvPlan, emit_conv
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.jit import load
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import AVX2, SSE2, Target, host
from needle.ops.unfolding import convolve, convolve_input_grad, convolve_weight_grad

Array = Any

FORMS = ("forward", "input_grad", "weight_grad")

#: The host's widest vectors, and the narrower ones that it has, too.
TARGETS = {"host": host()}
if host().vector_bytes > AVX2.vector_bytes:
    TARGETS["avx2"] = AVX2
if host().vector_bytes > SSE2.vector_bytes:
    TARGETS["sse2"] = SSE2


def address(array: Array) -> int:
    return array.__array_interface__["data"][0]


def guarded(values: Array, at_end: bool = True) -> Array:
    """Return a copy that ends, or begins, where memory is that must not be touched."""
    libc = ctypes.CDLL(None)
    page = mmap.PAGESIZE
    room = -(-max(values.nbytes, 1) // page) * page
    space = mmap.mmap(-1, room + 2 * page)
    start = page + (room - values.nbytes if at_end else 0)
    copy = np.ndarray(values.shape, values.dtype, space, start)
    copy[...] = values
    if hasattr(mmap, "MAP_ANONYMOUS"):
        first = address(np.frombuffer(space, np.uint8))
        for guard in (first, first + page + room):
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    return copy


def operands(spec: ConvSpec, whole: bool = True) -> tuple[Array, Array]:
    """Return operands of a form, in the kernel's order: small integers, of which sums of products
    are exact in any order, or normal ones."""
    rng = np.random.default_rng(0)
    shapes = {
        "forward": (spec.x_shape, spec.w_shape),
        "input_grad": (spec.y_shape, spec.w_shape),
        "weight_grad": (spec.x_shape, spec.y_shape),
    }
    first, second = (
        (rng.integers(-3, 4, shape) if whole else rng.standard_normal(shape)).astype(spec.dtype)
        for shape in shapes[spec.form]
    )
    return first, second


def expected(spec: ConvSpec, first: Array, second: Array) -> Array:
    """Return what the reference says, computed in float64."""
    attrs: dict[str, Any] = {
        "stride": spec.stride,
        "pads": spec.pads,
        "dilation": spec.dilation,
        "groups": spec.groups,
    }
    first, second = first.astype(np.float64), second.astype(np.float64)
    image = first.transpose(0, 3, 1, 2)
    if spec.form == "weight_grad":
        g = second.transpose(0, 3, 1, 2)
        result = convolve_weight_grad(g, image, kernel=spec.kernel, **attrs)
        return result.transpose(2, 3, 1, 0).astype(spec.dtype)
    weight = second.transpose(3, 2, 0, 1)
    if spec.form == "forward":
        result = convolve(image, weight, **attrs)
    else:
        size = (spec.height, spec.width)
        result = convolve_input_grad(image, weight, size=size, **attrs)
    return result.transpose(0, 2, 3, 1).astype(spec.dtype)


class Compiled:
    """A kernel that is loaded."""

    def __init__(
        self, spec: ConvSpec, threads: int, target: Target, plan: ConvPlan | None = None
    ) -> None:
        module = Module(target)
        self.kernel: ConvKernel = emit_conv(module, spec, threads, internal=False, plan=plan)
        library = load(module, target)
        kinds = [*[ctypes.c_void_p] * 5, ctypes.c_int64]
        self.function = library.function(self.kernel.name, *kinds)

    def __call__(self, first: Array, second: Array, extra: Array | None = None) -> Array:
        """Run all tasks, the last one first, on dirty workspaces; return the result."""
        spec = self.kernel.plan.spec
        out = guarded(np.full(spec.result, 7, spec.dtype))
        first, second = guarded(first), guarded(second, at_end=False)
        for task in reversed(range(self.kernel.tasks)):
            workspace = guarded(np.full(self.kernel.workspace, 0xFF, np.uint8))
            pointers = [first, second, out, extra, workspace]
            self.function(*[0 if p is None else address(p) for p in pointers], task)
        return out
