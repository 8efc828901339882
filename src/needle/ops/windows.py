"""Windows of images: as a view, and added up again."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from needle import dtypes
from needle.errors import ArgumentError, ShapeError
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor, widen
from needle.ops.movement import permute_dims, reshape
from needle.ops.record import Kind, op
from needle.ops.samples import Array, Sample, bad, normal
from needle.ops.slicing import pad, strided_slice, unslice
from needle.shapes import Shape, Spec, as_pair

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor

Pair = tuple[int, int]
PairLike = int | Pair


def window_counts(
    size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil: bool, name: str
) -> Pair:
    """Return how many windows fit along each axis, as PyTorch counts them.

    Args:
        size: height and width of the image.
        kernel: height and width of the windows.
        stride: from one window to the next.
        padding: on each side.
        dilation: distance of neighbours within a window.
        ceil: also count a last window that reaches beyond the padding, if it starts before it.
        name: of the op, for the errors.

    Raises:
        ShapeError: not one window fits.
        ArgumentError: so much padding that a window could lie outside of the image.
    """
    counts = []
    for n, k, s, p, d, axis in zip(
        size, kernel, stride, padding, dilation, ("height", "width"), strict=True
    ):
        reach = d * (k - 1) + 1
        if 2 * p > reach:
            raise ArgumentError(
                f"{name}: the padding {p} is more than half of the window's {axis} of {reach}"
            )
        room = n + 2 * p - reach
        count = (room + (s - 1 if ceil else 0)) // s + 1
        if ceil and (count - 1) * s >= n + p:
            count -= 1  # the last window would start in the padding
        if count < 1:
            raise ShapeError(
                f"{name}: the window's {axis} of {reach} (kernel {k}, dilation {d}) is larger than "
                f"the image's {n} plus padding 2·{p}"
            )
        counts.append(count)
    return counts[0], counts[1]


def _infer_windows(x: Spec, *, kernel: Pair, stride: Pair, dilation: Pair) -> Spec:
    rows, columns = window_counts(
        (x.shape[-2], x.shape[-1]), kernel, stride, (0, 0), dilation, False, "windows"
    )
    return Spec((*x.shape[:-2], rows, columns, *kernel), x.dtype)


def view_windows(x: Array, *, kernel: Pair, stride: Pair, dilation: Pair) -> Array:
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = sliding_window_view(x, reach, axis=(-2, -1))
    return view[..., :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _windows_cotangent(
    g: Tensor, x_shape: Shape, kernel: Pair, stride: Pair, dilation: Pair
) -> Tensor:
    return fold_windows(g, (x_shape[-2], x_shape[-1]), stride, dilation)


def _window_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3, 5, 6), 2))
    yield Sample((normal(5, 7), (2, 3), (2, 1)), label="stride")
    yield Sample((normal(1, 7, 7), 3, 2, 2), label="dilation")
    yield Sample((normal(0, 4, 4), 2), label="empty")
    yield bad(ShapeError, "larger than", normal(3, 3), 4)


def _lower_windows(
    b: Any, index: Any, x: Any, *, kernel: Pair, stride: Pair, dilation: Pair
) -> Any:
    *front, row, column, i, j = index
    return x((*front, row * stride[0] + i * dilation[0], column * stride[1] + j * dilation[1]))


@op(
    kind=Kind.MOVEMENT,
    infer=_infer_windows,
    reference=view_windows,
    lower=_lower_windows,
    vjp={"x": _windows_cotangent},
    samples=_window_samples,
    may_alias=True,
    is_method=False,
)
def windows(
    x: TensorLike, kernel: PairLike, stride: PairLike = 1, dilation: PairLike = 1
) -> Tensor:
    """View an image as all its windows: ``out[…, i, j, a, b] = x[…, i·s + a·d, j·s + b·d]``.

    Args:
        x: [..., H, W].
        kernel: height and width of a window.
        stride: from one window to the next, down and across.
        dilation: distance of neighbours within a window.

    Returns:
        [..., rows, columns, kernel height, kernel width], a view.

    Raises:
        ShapeError: a window is larger than the image.

    Example:
        >>> ndl.windows(ndl.reshape(ndl.arange(6), (2, 3)), 2).tolist()
        [[[[0, 1], [3, 4]], [[1, 2], [4, 5]]]]
    """
    t = as_tensor(x)
    if t.ndim < 2:
        raise ShapeError(f"windows: needs at least two axes, got shape {list(t.shape)}")
    return apply(
        windows,
        t,
        kernel=as_pair(kernel, "windows: kernel", minimum=1),
        stride=as_pair(stride, "windows: stride", minimum=1),
        dilation=as_pair(dilation, "windows: dilation", minimum=1),
    )


def _infer_fold(x: Spec, *, size: Pair, stride: Pair, dilation: Pair) -> Spec:
    kernel = (x.shape[-2], x.shape[-1])
    fits = window_counts(size, kernel, stride, (0, 0), dilation, False, "fold_windows")
    if fits != x.shape[-4:-2]:
        raise ShapeError(
            f"fold_windows: an image of {size[0]}×{size[1]} has {fits[0]}×{fits[1]} such windows, "
            f"got {x.shape[-4]}×{x.shape[-3]}"
        )
    return Spec((*x.shape[:-4], *size), x.dtype)


def _fold(x: Array, *, size: Pair, stride: Pair, dilation: Pair) -> Array:
    wide = dtypes.accumulation_dtype(x.dtype)
    result = np.zeros((*x.shape[:-4], *size), wide)
    rows, columns, height, width = x.shape[-4:]
    for a in range(height):
        down = slice(a * dilation[0], a * dilation[0] + rows * stride[0], stride[0])
        for b in range(width):
            across = slice(b * dilation[1], b * dilation[1] + columns * stride[1], stride[1])
            result[..., down, across][..., :rows, :columns] += x[..., a, b]
    return result.astype(x.dtype, copy=False)


#: Up to so many taps are added up in one go, row by row; more of them first along the rows.
_FEW_TAPS = 25


def _fold_by_parts(x: Tensor, *, size: Pair, stride: Pair, dilation: Pair) -> Tensor:
    kernel = (x.shape[-2], x.shape[-1])
    if stride == kernel and dilation == (1, 1):
        return _tiled(x, size)
    wide = widen(x)
    taps = [(a, b) for a in range(kernel[0]) for b in range(kernel[1])]
    if len(taps) <= _FEW_TAPS:
        shares = [_share(wide, a, b, size, stride, dilation) for a, b in taps]
    else:
        # Images of one column, then of all: as many terms as rows and columns, not their product.
        lines = [(*x.shape[:-4], x.shape[-4], size[1])] * kernel[0]
        shares = []
        for a, shape in enumerate(lines):
            row = [_tap(wide, a, b) for b in range(kernel[1])]
            spread = [_spread(t, shape, -1, b * dilation[1], stride[1]) for b, t in enumerate(row)]
            total = functools.reduce(operator.add, spread)
            shares.append(_spread(total, (*x.shape[:-4], *size), -2, a * dilation[0], stride[0]))
    result: Tensor = functools.reduce(operator.add, shares)
    return result.astype(x.dtype, copy=False)


def _tap(x: Tensor, a: int, b: int) -> Tensor:
    """Return what tap (a, b) of each window holds, [..., rows, columns]."""
    front = x.shape[:-2]
    lead = (0,) * len(front)
    part = strided_slice(x, (*lead, a, b), (*front, a + 1, b + 1), (1,) * x.ndim)
    return reshape(part, front)


def _spread(x: Tensor, shape: Shape, axis: int, start: int, step: int) -> Tensor:
    """Put ``x`` into zeros of ``shape``, every step-th element along an axis."""
    axis += len(shape)
    starts, stops, steps = [0] * len(shape), list(shape), [1] * len(shape)
    starts[axis], steps[axis] = start, step
    stops[axis] = start + (x.shape[axis] - 1) * step + 1
    return unslice(x, shape, starts, stops, steps)


def _share(x: Tensor, a: int, b: int, size: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """Return what tap (a, b) of each window adds to the image."""
    part = _tap(x, a, b)
    front = part.shape[:-2]
    first = (a * dilation[0], b * dilation[1])
    last = [f + (n - 1) * s for f, n, s in zip(first, part.shape[-2:], stride, strict=True)]
    return unslice(
        part,
        (*front, *size),
        (*(0 for _ in front), *first),
        (*front, last[0] + 1, last[1] + 1),
        (*(1 for _ in front), *stride),
    )


def _tiled(x: Tensor, size: Pair) -> Tensor:
    """Return windows that lie side by side as an image, with zeros where none fits any more."""
    *front, rows, columns, height, width = x.shape
    n = len(front)
    tiles = permute_dims(x, (*range(n), n, n + 2, n + 1, n + 3))
    image = reshape(tiles, (*front, rows * height, columns * width))
    rest = (size[0] - rows * height, size[1] - columns * width)
    return pad(image, (*(((0, 0),) * n), (0, rest[0]), (0, rest[1]))) if any(rest) else image


def _fold_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 4, 5, 2, 2), (5, 6)))
    yield Sample((normal(2, 5, 2, 3), (5, 7), (2, 1)), label="stride")
    yield Sample((normal(1, 2, 2, 3, 3), (7, 7), 2, 2), label="dilation")
    yield Sample((normal(2, 2, 3, 2, 3), (5, 10), (2, 3)), label="side by side")
    yield Sample((normal(3, 2, 5, 6), (7, 10), (1, 3)), label="many taps")
    yield bad(ShapeError, "such windows", normal(3, 3, 2, 2), (5, 5))


@op(
    kind=Kind.INDEXING,
    infer=_infer_fold,
    reference=_fold,
    decompose=_fold_by_parts,
    vjp={"x": lambda g, x_shape, stride, dilation: windows(g, x_shape[-2:], stride, dilation)},
    samples=_fold_samples,
    is_method=False,
)
def fold_windows(x: TensorLike, size: Pair, stride: PairLike = 1, dilation: PairLike = 1) -> Tensor:
    """Add windows up to an image: the adjoint of `windows`.

    Args:
        x: [..., rows, columns, kernel height, kernel width].
        size: height and width of the image.
        stride: from one window to the next, down and across.
        dilation: distance of neighbours within a window.

    Returns:
        [..., height, width].

    Raises:
        ShapeError: an image of that size has another number of windows.

    Example:
        >>> ndl.fold_windows(ndl.ones((1, 2, 1, 2)), (1, 3))
        Tensor([[1., 2., 1.]])
    """
    t = as_tensor(x)
    if t.ndim < 4:
        raise ShapeError(f"fold_windows: needs at least four axes, got shape {list(t.shape)}")
    return apply(
        fold_windows,
        t,
        size=as_pair(size, "fold_windows: size"),
        stride=as_pair(stride, "fold_windows: stride", minimum=1),
        dilation=as_pair(dilation, "fold_windows: dilation", minimum=1),
    )


__all__ = ["fold_windows", "windows"]
