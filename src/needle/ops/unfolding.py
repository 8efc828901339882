"""The NumPy reference of convolution: images unfolded into matrices, and products of those.

An image is unfolded along its rows only: copied once for each column of the kernel, shifted by it,
and with the rows sorted by their remainder modulo the stride. What row i of the kernel sees of all
pixels of the result is then a slice of rows, and as a matrix [kw · C, pixels] a view that can be
multiplied as it is:

    result = Σᵢ weight[:, :, i, :] as [O, kw · C] @ patches from row i on as [kw · C, pixels]

One layout serves all strides, dilations, paddings and groups, and is kh times smaller than what
unfolding in both directions (im2col) writes and reads back; measured, that halves the time of most
convolutions. As many images are taken at a time as stay in the cache, or as many rows where one
image is too large, so what is unfolded at a time stays below about 16 MiB.

Batch invariance: each image is multiplied by itself, in products whose extents depend on the shape
of an image alone. So no bit of `convolve` and `convolve_input_grad` for one image depends on the
batch that it is in. `convolve_weight_grad` sums over the batch and makes no such promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from needle.ops.samples import Array
from needle.shapes import window_extent

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

#: As many images are unfolded at a time as fit into this share of the second-level cache.
_IMAGES_BYTES = 1 << 20

#: An image that unfolds into more than this is taken in blocks of rows. Few large blocks are better
#: than many: rows at their borders are unfolded for both.
_ROWS_BYTES = 8 << 20

#: The gradient by the weight sums over pixels inside of a matrix product, which pays with so many.
_SUMMED_PIXELS = 256


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

    def sweeps(self, counts: Pair) -> tuple[Sweep, Sweep]:
        """Return how it moves down and across, for a result of ``counts`` rows and columns."""
        down, across = (
            Sweep(k, s, d, -p[0], c)
            for k, s, d, p, c in zip(
                self.kernel, self.stride, self.dilation, self.pads, counts, strict=True
            )
        )
        return down, across


class Sweep(NamedTuple):
    """How the kernel moves along one axis: output t reads t·stride + i·dilation + offset by tap i.

    What it reads outside of the image is zero.

    Attributes:
        taps: extent of the kernel.
        stride: steps of the input from one output to the next.
        dilation: steps of the input from one tap to the next.
        offset: where the first tap of the first output reads: minus the padding.
        extent: number of outputs.
    """

    taps: int
    stride: int
    dilation: int
    offset: int
    extent: int

    def part(self, outputs: slice) -> Sweep:
        """Return the sweep of some of the outputs."""
        return self._replace(
            offset=self.offset + outputs.start * self.stride, extent=outputs.stop - outputs.start
        )

    def inside(self, shift: int, size: int) -> tuple[slice, slice]:
        """Return which outputs read inside of ``size`` inputs ``shift`` after tap 0, and what."""
        first = self.offset + shift
        start = min(max(0, -(first // self.stride)), self.extent)
        stop = min(self.extent, (size - 1 - first) // self.stride + 1)
        if stop <= start:
            return slice(0, 0), slice(0, 0)
        begin, last = first + start * self.stride, first + (stop - 1) * self.stride
        return slice(start, stop), slice(begin, last + 1, self.stride)


class Slots(NamedTuple):
    """Which rows of an image are unfolded: those of one remainder modulo the stride in one slot.

    Attributes:
        remainders: the remainder of each slot.
        rows: rows in each slot.
        taps: slot and first row of what each row of the kernel sees.
    """

    remainders: tuple[int, ...]
    rows: int
    taps: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, down: Sweep) -> Slots:
        """Return the slots that a sweep needs."""
        places = [divmod(i * down.dilation, down.stride) for i in range(down.taps)]
        remainders = tuple(sorted({remainder for _, remainder in places}))
        rows = down.extent + max(row for row, _ in places)
        return cls(remainders, rows, tuple((remainders.index(r), row) for row, r in places))


def _unfold(x: Array, patches: Array, slots: Slots, down: Sweep, across: Sweep) -> None:
    """Copy [n, G, C, H, W] to patches [n, G, kw, C, slot, row, columns]; zeros around stay."""
    tall = down._replace(extent=slots.rows)
    for slot, remainder in enumerate(slots.remainders):
        to_rows, from_rows = tall.inside(remainder, x.shape[3])
        for j in range(across.taps):
            to_columns, from_columns = across.inside(j * across.dilation, x.shape[4])
            patches[:, :, j, :, slot, to_rows, to_columns] = x[..., from_rows, from_columns]


def _seen(patches: Array, slot: int, row: int, rows: int) -> Array:
    """View what a row of the kernel sees as matrices [n, G, kw · C, pixels]."""
    n, groups, kw, channels, _, _, columns = patches.shape
    return as_strided(
        patches[:, :, :, :, slot, row:],
        (n, groups, kw * channels, rows * columns),
        (*patches.strides[:2], patches.strides[3], patches.itemsize),
    )


def _row_blocks(row_bytes: int, down: Sweep) -> Iterator[tuple[slice, Sweep]]:
    """Cut the rows of the result into blocks of equal extent that unfold into `_ROWS_BYTES`."""
    count = max(1, -(-row_bytes * down.extent // _ROWS_BYTES))
    step = max(1, -(-down.extent // count))
    for start in range(0, down.extent, step):
        rows = slice(start, min(down.extent, start + step))
        yield rows, down.part(rows)


def _image_blocks(n: int, image_bytes: int) -> Iterator[slice]:
    step = max(1, _IMAGES_BYTES // max(1, image_bytes))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def _correlate(x: Array, weight: Array, down: Sweep, across: Sweep, groups: int) -> Array:
    """Return ``Σ weight[o, c, i, j] · x[n, c, down(y, i), across(x, j)]``, over c, i and j."""
    n, channels, height, width = x.shape
    out, depth, kh, kw = weight.shape
    counts = (down.extent, across.extent)
    x = x.reshape(n, groups, depth, height, width)
    matrices = weight.reshape(groups, out // groups, depth, kh, kw).transpose(3, 0, 1, 4, 2)
    matrices = np.ascontiguousarray(matrices).reshape(kh, groups, out // groups, kw * depth)
    result = np.empty((n, groups, out // groups, counts[0] * counts[1]), x.dtype)
    if down == (1, 1, 1, 0, height) and across == (1, 1, 1, 0, width):
        # The kernel is one pixel: images are what it sees.
        np.matmul(matrices[0], x.reshape(n, groups, depth, height * width), out=result)
        return result.reshape(n, out, *counts)
    row_bytes = (kw * channels * len(Slots.of(down).remainders) + out) * counts[1] * x.itemsize
    for rows, part in _row_blocks(row_bytes, down):
        slots = Slots.of(part)
        pixels = slice(rows.start * counts[1], rows.stop * counts[1])
        patches, seen, product = np.empty(0), [], np.empty(0)
        for images in _image_blocks(n, row_bytes * slots.rows):
            k = images.stop - images.start
            if not len(patches):
                shape = (k, groups, kw, depth, len(slots.remainders), slots.rows, counts[1])
                patches = np.zeros(shape, x.dtype)
                seen = [_seen(patches, slot, row, part.extent) for slot, row in slots.taps]
                product = np.empty((k, *result.shape[1:3], pixels.stop - pixels.start), x.dtype)
            _unfold(x[images], patches[:k], slots, part, across)
            total = result[images, :, :, pixels]
            np.matmul(matrices[0], seen[0][:k], out=total)
            for i in range(1, kh):
                total += np.matmul(matrices[i], seen[i][:k], out=product[:k])
    return result.reshape(n, out, *counts)


def _correlate_cotangent(x: Array, g: Array, down: Sweep, across: Sweep, groups: int) -> Array:
    """Return ``Σ g[n, o, y, x] · x[n, c, down(y, i), across(x, j)]`` as [O, C/groups, kh, kw].

    Images with few pixels lie side by side in one matrix, so that it has enough to sum over.
    """
    n, channels, height, width = x.shape
    out, (kh, kw) = g.shape[1], (down.taps, across.taps)
    depth, columns = channels // groups, across.extent
    x = x.reshape(n, groups, depth, height, width)
    g = g.reshape(n, groups, out // groups, down.extent, columns)
    total = np.zeros((kh, groups, out // groups, kw * depth), x.dtype)
    row_bytes = (kw * channels * len(Slots.of(down).remainders) + out) * columns * x.itemsize
    for rows, part in _row_blocks(row_bytes, down):
        slots = Slots.of(part)
        image_bytes = row_bytes * slots.rows
        side_by_side = part.extent * columns < _SUMMED_PIXELS
        if side_by_side:
            # Four times what pays; in bytes at most what a large image takes.
            share = min(4 * _SUMMED_PIXELS // (part.extent * columns), _ROWS_BYTES // image_bytes)
            image_bytes = _IMAGES_BYTES // max(1, share)
        else:
            image_bytes += out * kw * depth * x.itemsize
        patches = storage = np.empty(0)
        for images in _image_blocks(n, image_bytes):
            k = images.stop - images.start
            if len(patches) != k:
                batch, side = (1, k) if side_by_side else (k, 1)
                shape = (batch, groups, kw, depth, len(slots.remainders), slots.rows, side, columns)
                storage = np.zeros(shape, x.dtype)
                patches = storage[0].transpose(5, 0, 1, 2, 3, 4, 6)
                if not side_by_side:
                    patches = storage[..., 0, :]
                storage = storage.reshape(*shape[:6], side * columns)
            _unfold(x[images], patches, slots, part, across)
            cotangent = g[images, :, :, rows]
            if side_by_side:
                cotangent = cotangent.transpose(1, 2, 3, 0, 4)
            cotangent = cotangent.reshape(len(storage), groups, out // groups, -1)
            for i, (slot, row) in enumerate(slots.taps):
                seen = _seen(storage, slot, row, part.extent).swapaxes(2, 3)
                total[i] += np.matmul(cotangent, seen).sum(axis=0)
    result = total.reshape(kh, groups, out // groups, kw, depth).transpose(1, 2, 4, 0, 3)
    return np.ascontiguousarray(result).reshape(out, depth, kh, kw)


class Phase(NamedTuple):
    """Inputs ``start, start + stride, …``, whose gradient is a correlation of stride 1.

    Attributes:
        inputs: which inputs.
        taps: the taps that read them, in the order in which `sweep` meets them.
        sweep: over the cotangent.
    """

    inputs: slice
    taps: slice
    sweep: Sweep


def phases(sweep: Sweep, size: int) -> Iterator[Phase]:
    """Split the adjoint of a sweep over ``size`` inputs into correlations.

    Output t reads input y by tap i if ``y = t·stride + i·dilation + offset``. Inputs of one
    remainder modulo the stride are read by every step-th tap, and from one of these taps to the
    next t falls by ``step·dilation / stride``. Inputs that no tap reads are in no phase.
    """
    stride, dilation = sweep.stride, sweep.dilation
    step = stride // math.gcd(stride, dilation)
    for remainder in range(min(stride, size)):
        shift = remainder - sweep.offset
        taps = [i for i in range(sweep.taps) if (shift - i * dilation) % stride == 0]
        if taps:
            yield Phase(
                slice(remainder, size, stride),
                slice(taps[-1], taps[0] - 1 if taps[0] else None, -step),
                Sweep(
                    taps=len(taps),
                    stride=1,
                    dilation=step * dilation // stride,
                    offset=(shift - taps[-1] * dilation) // stride,
                    extent=-(-(size - remainder) // stride),
                ),
            )


def scatter(
    g: Array,
    weight: Array,
    size: Pair,
    sweeps: tuple[Sweep, Sweep],
    groups: int,
    multiply: Callable[[Array, Array], Any] = np.matmul,
) -> Array:
    """Return the adjoint of `_correlate` in the image: each pixel of the cotangent scatters to
    those that it saw, and meets no zeros around them."""
    (down, across), n, (out, depth, kh, kw) = sweeps, len(g), weight.shape
    channels, columns = groups * depth, across.extent
    g = g.reshape(n, groups, out // groups, down.extent, columns)
    matrix = weight.reshape(groups, out // groups, depth * kh * kw).swapaxes(1, 2)
    result = np.zeros((n, channels, *size), g.dtype)
    row_bytes = channels * kh * kw * columns * g.itemsize
    for rows, part in _row_blocks(row_bytes, down):
        for images in _image_blocks(n, row_bytes * part.extent):
            cotangent = g[images, :, :, rows].reshape(-1, *g.shape[1:3], part.extent * columns)
            shares = multiply(matrix, cotangent)
            shares = shares.reshape(-1, channels, kh, kw, part.extent, columns)
            for i in range(kh):
                from_rows, to_rows = part.inside(i * part.dilation, size[0])
                for j in range(kw):
                    from_columns, to_columns = across.inside(j * across.dilation, size[1])
                    share = shares[:, :, i, j, from_rows, from_columns]
                    result[images, :, to_rows, to_columns] += share
    return result


def convolve(x: Array, weight: Array, **attrs: Any) -> Array:
    """Return the convolution; the attributes are those of the op."""
    window = Window((weight.shape[2], weight.shape[3]), **attrs)
    counts = window.counts((x.shape[2], x.shape[3]), "conv2d")
    return _correlate(x, weight, *window.sweeps(counts), window.groups)


def convolve_input_grad(g: Array, weight: Array, *, size: Pair, **attrs: Any) -> Array:
    """Return the gradient by the input, of height and width ``size``."""
    window = Window((weight.shape[2], weight.shape[3]), **attrs)
    return scatter(g, weight, size, window.sweeps((g.shape[2], g.shape[3])), window.groups)


def convolve_weight_grad(g: Array, x: Array, *, kernel: Pair, **attrs: Any) -> Array:
    """Return the gradient by the weight, of height and width ``kernel``."""
    window = Window(kernel, **attrs)
    sweeps = window.sweeps((g.shape[2], g.shape[3]))
    return _correlate_cotangent(x, g, *sweeps, window.groups)
