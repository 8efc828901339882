"""The NumPy reference of convolution: images unfolded into matrices, and products of those.

Unfolding writes down, for each weight of the kernel, all pixels that it meets. A convolution is
then one matrix product for each image and group, so that no result depends on the batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from needle.ops.samples import Array
from needle.shapes import Shape, window_extent

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

#: Images are unfolded this many bytes at a time: enough for long matrix products, little enough for
#: the cache. Each image has a product of its own, so its result does not depend on the batch.
_BLOCK_BYTES = 4 << 20


class Window(NamedTuple):
    """How the kernel moves over the image: what all three forms share."""

    kernel: Pair
    stride: Pair
    pads: Pads
    dilation: Pair
    groups: int

    def counts(self, size: Pair, name: str) -> Pair:
        """Return the rows and columns of the result."""
        rows, columns = (
            window_extent(n, k, s, d, p, name, what)
            for n, k, s, d, p, what in zip(
                size, self.kernel, self.stride, self.dilation, self.pads,
                ("height", "width"), strict=True,
            )
        )  # fmt: skip
        return rows, columns

    def unfold(self, x: Array, counts: Pair) -> Array:
        """Return what each weight sees, [N, groups, C/groups · kh · kw, rows · columns]."""
        n, channels, height, width = x.shape
        rows, columns = counts
        if self.kernel == (1, 1) and self.stride == (1, 1) and not np.any(self.pads):
            return x.reshape(n, self.groups, channels // self.groups, height * width)
        padded = np.pad(x, ((0, 0), (0, 0), *self.pads)) if np.any(self.pads) else x
        seen = np.empty((n, channels, *self.kernel, rows, columns), x.dtype)
        for a, b, down, across in self.taps(counts):
            seen[:, :, a, b] = padded[:, :, down, across]
        fan = channels // self.groups * self.kernel[0] * self.kernel[1]
        return seen.reshape(n, self.groups, fan, rows * columns)

    def fold(self, seen: Array, size: Pair, counts: Pair, channels: int) -> Array:
        """Add what each weight sees up to images [N, C, *size]: the adjoint of `unfold`."""
        n = seen.shape[0]
        rows, columns = counts
        (top, bottom), (left, right) = self.pads
        seen = seen.reshape(n, channels, *self.kernel, rows, columns)
        height, width = size
        padded = np.zeros((n, channels, height + top + bottom, width + left + right), seen.dtype)
        for a, b, down, across in self.taps(counts):
            padded[:, :, down, across] += seen[:, :, a, b]
        return padded[:, :, top : top + height, left : left + width]

    def taps(self, counts: Pair) -> Iterable[tuple[int, int, slice, slice]]:
        """Yield each place in the kernel, and the rows and columns of the image that it sees."""
        (rows, columns), (down, across) = counts, self.stride
        for a in range(self.kernel[0]):
            top = a * self.dilation[0]
            for b in range(self.kernel[1]):
                left = b * self.dilation[1]
                yield (
                    a,
                    b,
                    slice(top, top + (rows - 1) * down + 1, down),
                    slice(left, left + (columns - 1) * across + 1, across),
                )

    def block(self, per_image: int, itemsize: int) -> int:
        """Return how many images to unfold at a time."""
        return max(1, _BLOCK_BYTES // max(1, per_image * itemsize))


def _window_of(kernel: Shape, attrs: dict[str, Any]) -> Window:
    return Window((kernel[-2], kernel[-1]), **attrs)


def convolve(x: Array, weight: Array, **attrs: Any) -> Array:
    """Return the convolution; the attributes are those of the op."""
    window = _window_of(weight.shape, attrs)
    n, out = x.shape[0], weight.shape[0]
    counts = window.counts((x.shape[2], x.shape[3]), "conv2d")
    pixels = counts[0] * counts[1]
    matrix = weight.reshape(window.groups, out // window.groups, -1)
    result = np.empty((n, window.groups, out // window.groups, pixels), x.dtype)
    step = window.block(matrix.shape[0] * matrix.shape[2] * pixels, x.itemsize)
    for start in range(0, n, step):
        seen = window.unfold(x[start : start + step], counts)
        np.matmul(matrix, seen, out=result[start : start + step])
    return result.reshape(n, out, *counts)


def convolve_input_grad(g: Array, weight: Array, *, size: Pair, **attrs: Any) -> Array:
    """Return the gradient by the input, of height and width ``size``."""
    window = _window_of(weight.shape, attrs)
    n, out = g.shape[:2]
    counts: Pair = (g.shape[2], g.shape[3])
    matrix = weight.reshape(window.groups, out // window.groups, -1).swapaxes(1, 2)
    cotangent = np.ascontiguousarray(g).reshape(
        n, window.groups, out // window.groups, counts[0] * counts[1]
    )
    result = np.empty((n, weight.shape[1] * window.groups, *size), g.dtype)
    step = window.block(matrix.shape[0] * matrix.shape[1] * cotangent.shape[3], g.itemsize)
    for start in range(0, n, step):
        seen = np.matmul(matrix, cotangent[start : start + step])
        result[start : start + step] = window.fold(seen, size, counts, result.shape[1])
    return result


def convolve_weight_grad(g: Array, x: Array, *, kernel: Pair, **attrs: Any) -> Array:
    """Return the gradient by the weight, of height and width ``kernel``."""
    window = _window_of(kernel, attrs)
    n, out = g.shape[:2]
    counts: Pair = (g.shape[2], g.shape[3])
    inside = x.shape[1] // window.groups
    cotangent = np.ascontiguousarray(g).reshape(
        n, window.groups, out // window.groups, counts[0] * counts[1]
    )
    fan = inside * kernel[0] * kernel[1]
    result = np.zeros((window.groups, out // window.groups, fan), g.dtype)
    step = window.block(window.groups * fan * cotangent.shape[3], g.itemsize)
    for start in range(0, n, step):
        seen = window.unfold(x[start : start + step], counts)
        product = np.matmul(cotangent[start : start + step], seen.swapaxes(2, 3))
        result += product.sum(axis=0)
    return result.reshape(out, inside, *kernel)
