"""Contractions: sums of products. Matrix multiplication of all ranks, and what is written with
it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from needle.errors import ShapeError
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply
from needle.ops.movement import permute_dims, reshape
from needle.ops.precision import Precision, operands
from needle.ops.record import Kind, composite, op
from needle.ops.reduce import sum_to_shape
from needle.ops.samples import Sample, bad, integers, normal
from needle.shapes import Shape, Spec, broadcast_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _infer_matmul(x: Spec, y: Spec) -> Spec:
    if x.shape[-1] != y.shape[-2]:
        raise ShapeError(
            f"matmul: shapes {list(x.shape)} and {list(y.shape)} do not fit: the last axis of the "
            f"first ({x.shape[-1]}) must equal the last but one of the second ({y.shape[-2]})"
        )
    batch = broadcast_shapes(x.shape[:-2], y.shape[:-2], op="matmul (batch axes)")
    return Spec((*batch, x.shape[-2], y.shape[-1]), x.dtype)


def _transposed(x: Tensor) -> Tensor:
    n = x.ndim
    return apply(permute_dims, x, axes=(*range(n - 2), n - 1, n - 2))


def _matmul_vjp_x(g: Tensor, y: Tensor, x_shape: Shape) -> Tensor:
    return sum_to_shape(matmul(g, _transposed(y)), x_shape)


def _matmul_vjp_y(g: Tensor, x: Tensor, y_shape: Shape) -> Tensor:
    if len(y_shape) == 2 and x.ndim > 2:
        rows = math.prod(x.shape[:-1])
        x, g = reshape(x, (rows, x.shape[-1])), reshape(g, (rows, g.shape[-1]))
    return sum_to_shape(matmul(_transposed(x), g), y_shape)


def _matmul_flops(x: Spec, y: Spec, out: Spec) -> int:
    return 2 * out.size * x.shape[-1]


def _matmul_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), normal(4, 5)))
    yield Sample((normal(4, 3).T, normal(5, 4).T), label="transposed")
    yield Sample((normal(2, 3, 4), normal(4, 5)), label="batch by matrix")
    yield Sample((normal(2, 3, 4), normal(2, 4, 5)), label="batches")
    yield Sample((normal(2, 1, 3, 4), normal(3, 4, 2)), label="broadcast batches")
    yield Sample((normal(3, 4), normal(2, 4, 5)), label="matrix by batch")
    yield Sample((normal(4), normal(4)), label="vectors")
    yield Sample((normal(3, 4), normal(4)), label="matrix by vector")
    yield Sample((normal(4), normal(2, 4, 5)), label="vector by batch")
    yield Sample((normal(0, 4), normal(4, 5)), label="no rows")
    yield Sample((normal(3, 0), normal(0, 5)), label="no columns")
    yield Sample((normal(33, 17), normal(17, 65)), label="larger")
    yield Sample((integers(-5, 5, 3, 4), integers(-5, 5, 4, 2)), label="integers")
    yield bad(ShapeError, "do not fit", normal(3, 4), normal(3, 4))
    yield bad(ShapeError, "0-d", normal(3, 4), normal())
    yield bad(ShapeError, "batch axes", normal(2, 3, 4), normal(3, 4, 5))


@op(
    kind=Kind.CONTRACTION,
    infer=_infer_matmul,
    reference=widened(np.matmul),
    vjp={
        "x": _matmul_vjp_x,
        "y": _matmul_vjp_y,
    },
    samples=_matmul_samples,
    refuses=True,
    flops=_matmul_flops,
    aliases=("mm", "bmm"),
    peer="matmul",
)
def matmul(x: TensorLike, y: TensorLike) -> Tensor:
    """Matrix product of the last two axes: ``out[…, i, j] = Σₖ x[…, i, k] · y[…, k, j]``.

    Args:
        x: [..., m, k], or a vector [k], which counts as one row.
        y: [..., k, n], or a vector [k], which counts as one column. Axes before the last two
            broadcast. 16-bit floats are multiplied and added in float32.

    Returns:
        [..., m, n], without the axis of a vector.

    Raises:
        ShapeError: the inner extents differ, the batch axes do not broadcast, or an operand is 0-d.

    Example:
        >>> ndl.matmul(ndl.ones((2, 3)), ndl.ones((3, 4))).shape
        (2, 4)
    """
    a, b = operands(matmul, x, y)
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError("matmul: a 0-d tensor has no axis to sum over; multiply with * instead")
    row, column = a.ndim == 1, b.ndim == 1
    if row:
        a = reshape(a, (1, *a.shape))
    if column:
        b = reshape(b, (*b.shape, 1))
    result = apply(matmul, a, b)
    if row or column:
        shape = result.shape[: -1 - row] if column else (*result.shape[:-2], result.shape[-1])
        result = reshape(result, shape)
    return result


def _linear_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), normal(4, 5), normal(5)))
    yield Sample((normal(2, 3, 4), normal(4, 5)), label="no bias")


@composite(
    samples=_linear_samples,
    peer=lambda torch, x, w, b=None: torch.nn.functional.linear(x, w.T, b),
    precision=Precision.LOW,
)
def linear(x: TensorLike, weight: TensorLike, bias: TensorLike | None = None) -> Tensor:
    """Affine map: ``x @ weight + bias``.

    Args:
        x: [..., in_features].
        weight: [in_features, out_features] (PyTorch has it transposed).
        bias: [out_features], or None.

    Returns:
        [..., out_features].

    Raises:
        ShapeError: the extents do not fit.

    Example:
        >>> ndl.linear(ndl.ones((2, 3)), ndl.ones((3, 1)), ndl.ones(1))
        Tensor([[4.],
                [4.]])
    """
    result = matmul(x, weight)
    return result if bias is None else result + bias


__all__ = ["linear", "matmul"]
