"""Convolutions by the generated kernels alone: no tensors, no autograd; for `benchmarks.conv`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from needle import dtypes
from needle.arrays import aligned
from needle.backends.cpu import jit, threads
from needle.backends.cpu.conv import ConvKernel, ConvSpec, emit_conv
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module
from needle.ops.unfolding import convolve, convolve_input_grad, convolve_weight_grad


def set_threads(count: int) -> None:
    threads.set_num_threads(count)


def spec_of(
    form: Any, n: int, size: int, channels: int, out: int, kernel: int, **rest: int
) -> ConvSpec:
    """Return the specification of one row of the table: square images, kernels, strides."""
    stride, dilation = rest.get("stride", 1), rest.get("dilation", 1)
    pad = dilation * (kernel - 1) // 2
    return ConvSpec(
        form,
        n,
        size,
        size,
        channels,
        out,
        (kernel, kernel),
        (stride, stride),
        ((pad, pad), (pad, pad)),
        (dilation, dilation),
        rest.get("groups", 1),
    )


def emit_launch(module: Module, kernel: ConvKernel) -> str:
    """Add ``void name(ptr words)``, which runs all tasks; words are addresses."""
    f = Function(module, module.unique("launch_task"), {"words": "ptr", "task": "i64"})
    pointers = [f.value(f"load ptr, ptr {f.pointer('%words', i, dtypes.int64)}") for i in range(4)]
    task = f.argument("task")
    own = f.pointer(pointers[3], f.mul_index(task, kernel.workspace), dtypes.uint8)
    kernel.call(f, *pointers[:3], workspace=own, task=task)
    body = f.end()
    f = Function(module, module.unique("launch"), {"words": "ptr"}, internal=False)
    if kernel.tasks == 1:
        f.emit(f"call void @{body}(ptr %words, i64 0)")
    else:
        module.declare("needle_parallel", "void", ["ptr", "ptr", "i64"])
        f.emit(f"call void @needle_parallel(ptr @{body}, ptr %words, i64 {kernel.tasks})")
    return f.end()


def convolution(form: str, **sizes: int) -> Callable[[], Any]:
    """One convolution or gradient; it is compared with the reference on part of the images."""
    spec = spec_of(form, **sizes)
    shapes = {
        "forward": (spec.x_shape, spec.w_shape),
        "input_grad": (spec.y_shape, spec.w_shape),
        "weight_grad": (spec.x_shape, spec.y_shape),
    }[spec.form]
    rng = np.random.default_rng(0)
    first, second, out = (aligned(s, dtypes.float32) for s in (*shapes, spec.result))
    for operand in (first, second):
        operand[...] = rng.standard_normal(operand.shape, np.float32)
    module = Module()
    kernel = emit_conv(module, spec, threads.get_num_threads())
    name = emit_launch(module, kernel)
    run = jit.load(module).function(name, ctypes.c_void_p)
    workspace = aligned((max(kernel.workspace * kernel.tasks, 1),), dtypes.uint8)
    words = np.array([x.ctypes.data for x in (first, second, out, workspace)], np.int64)
    address = ctypes.c_void_p(words.ctypes.data)
    run(address)
    check(spec, first, second, out)

    def call(keep: Any = (first, second, out, workspace, words)) -> None:
        run(address)

    return call


def check(spec: ConvSpec, first: Any, second: Any, out: Any) -> None:
    """Raise unless the result is the reference's, of the last image at least."""
    attrs: dict[str, Any] = {
        "stride": spec.stride,
        "pads": spec.pads,
        "dilation": spec.dilation,
        "groups": spec.groups,
    }
    if spec.form == "weight_grad":
        image, g = first.transpose(0, 3, 1, 2), second.transpose(0, 3, 1, 2)
        want = convolve_weight_grad(g, image, kernel=spec.kernel, **attrs).transpose(2, 3, 1, 0)
    else:
        image, weight = first[-1:].transpose(0, 3, 1, 2), second.transpose(3, 2, 0, 1)
        if spec.form == "forward":
            want = convolve(image, weight, **attrs)
        else:
            size = (spec.height, spec.width)
            want = convolve_input_grad(image, weight, size=size, **attrs)
        want, out = want.transpose(0, 2, 3, 1), out[-1:]
    np.testing.assert_allclose(out, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())
