"""Convolutions as programs of one op, with what the compiler makes of it; for `benchmarks.conv`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import needle as ndl
from needle.arrays import aligned
from needle.backends.cpu import threads
from needle.backends.cpu.conv import ConvSpec
from needle.backends.cpu.executable import build
from needle.compiler import pipeline
from needle.graph import trace
from needle.ops.unfolding import convolve, convolve_input_grad, convolve_weight_grad

set_threads = threads.set_num_threads


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


def convolution(form: str, **sizes: int) -> Callable[[], Any]:
    """One convolution or gradient; it is compared with the reference on part of the images."""
    spec = spec_of(form, **sizes)
    moves: dict[str, Any] = {
        name: getattr(spec, name) for name in ("stride", "pads", "dilation", "groups")
    }
    x, w, y = spec.x_shape, spec.w_shape, spec.y_shape
    function, attrs, shapes = {
        "forward": (ndl.conv2d_nhwc, {}, (x, w)),
        "input_grad": (ndl.conv2d_nhwc_input_grad, {"size": x[1:3]}, (y, w)),
        "weight_grad": (ndl.conv2d_nhwc_weight_grad, {"kernel": spec.kernel}, (y, x)),
    }[form]
    rng = np.random.default_rng(0)
    operands = [aligned(shape, ndl.float32) for shape in shapes]
    for operand in operands:
        operand[...] = rng.standard_normal(operand.shape, np.float32)
    graph = trace(lambda a, b: [function(a, b, **attrs, **moves)], *operands).graph
    executable = build(pipeline.run(graph), threads.get_num_threads())
    (out,) = executable.run(operands)
    check(spec, moves, operands, out)
    return lambda: executable.run(operands)


def check(spec: ConvSpec, moves: dict[str, Any], operands: list[Any], out: Any) -> None:
    """Raise unless the result is the reference's, of the last image at least."""
    first, second = operands
    if spec.form == "weight_grad":
        g, image = (t.transpose(0, 3, 1, 2) for t in operands)
        want = convolve_weight_grad(g, image, kernel=spec.kernel, **moves).transpose(2, 3, 1, 0)
    else:
        image, weight = first[-1:].transpose(0, 3, 1, 2), second.transpose(3, 2, 0, 1)
        if spec.form == "forward":
            want = convolve(image, weight, **moves)
        else:
            size = (spec.height, spec.width)
            want = convolve_input_grad(image, weight, size=size, **moves)
        want, out = want.transpose(0, 2, 3, 1), out[-1:]
    np.testing.assert_allclose(out, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())
