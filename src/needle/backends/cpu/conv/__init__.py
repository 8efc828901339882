"""Convolutions: for eager execution of images NCHW, for compiled programs of images channels last.

Eager: implicit matrix products on padded copies of images, extents given at run time. `microkernel`
holds a tile of channels × pixels in registers over all taps; `correlation` emits the loops around
it. `geometry` finds what both work on: the copy's layout, and where in it a tap reads;
`sorted_copy` makes the copy, `weight_copy` one of weights. The gradient by the weight sums over
pixels: `weight_tiles` holds a tile of taps × output channels, `weight_gradient` emits the loops,
`weight_geometry` divides them.

Compiled: all extents known. `spec` says what is to be computed, and `kernel` makes a function of
it: `plan_conv`, `emit_conv`. `phase` turns the forward form and the gradient by the input into
correlations. There are two ways to compute each form, and `plan`, `sums_plan` decide on tiles,
blocks and tasks of the first:

- products of matrices: `dense`, and `dense_sums` for gradients by weights, emit the loops;
  `copying` copies what is read, with zeros around it; `tile` multiplies; `finite` finds out whether
  products with zeros may be left out;
- lane by lane, for depthwise convolution and groups of few channels: `channels`, `channel_sums`;
  `spread` copies a group's channels to the lanes of its results; `strip` multiplies.

By Winograd's algorithm: `winograd` emits the loops, `winograd_weight` transforms the weight,
`tile_transform` what tiles see, `winograd_transform` what their products give; `winograd_plan`
decides. Gradients by 3×3 weights may be sums over tiles: `winograd_sums` emits the loops, and
`winograd_sums_plan` decides.

Of bfloat16: `pairs` emits the forward form, `pair_sums` the gradient by the weight; `pair_plan` and
`pair_sums_plan` decide, `pair_products` multiplies.

`finish` stores sums, or gives them to the epilogue.

Example:
    A convolution of channels-last images, with a bias that the epilogue adds.

    >>> from needle.backends.cpu.conv import ConvSpec, Epilogue, emit_conv
    >>> from needle.backends.cpu.module import Module
    >>> def begin(f):
    ...     return f.value("load ptr, ptr %extra")
    >>> def store(f, sums, at, bias):
    ...     sums = f.add(sums, f.load(bias, at.channel, sums.dtype, at.lanes, at.mask))
    ...     place = f.add_index(f.mul_index(at.image, 32), at.row)
    ...     place = f.add_index(f.mul_index(place, 32), at.column)
    ...     f.store(sums, "%out", f.add_index(f.mul_index(place, 16), at.channel), at.mask)
    >>> spec = ConvSpec("forward", 8, 32, 32, 3, 16, (3, 3), pads=((1, 1), (1, 1)),
    ...                 epilogue=Epilogue(store, "bias", begin))
    >>> kernel = emit_conv(Module(), spec, threads=2)
    >>> kernel.tasks, kernel.workspace % 64
    (2, 0)
"""

from needle.backends.cpu.conv.correlation import WORDS, emit_correlation, slack
from needle.backends.cpu.conv.geometry import Geometry, make_geometry, tasks_of
from needle.backends.cpu.conv.kernel import ConvKernel, ConvPlan, emit_conv, plan_conv
from needle.backends.cpu.conv.spec import ConvSpec, Epilogue, Place, Prologue
from needle.backends.cpu.conv.weight_copy import copy_words, emit_weight_copy
from needle.backends.cpu.conv.weight_geometry import make_weight_geometry
from needle.backends.cpu.conv.weight_gradient import emit_weight_gradient

__all__ = [
    "WORDS",
    "ConvKernel",
    "ConvPlan",
    "ConvSpec",
    "Epilogue",
    "Geometry",
    "Place",
    "Prologue",
    "copy_words",
    "emit_conv",
    "emit_correlation",
    "emit_weight_copy",
    "emit_weight_gradient",
    "make_geometry",
    "make_weight_geometry",
    "plan_conv",
    "slack",
    "tasks_of",
]
