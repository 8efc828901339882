"""TensorFlow 1's names, where they differ from needle's, as functions over tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from needle import creation, dtypes, ops, random
from needle.nn import functional as F, init
from needle.static import images
from needle.tensor import Tensor


def _reduction(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduced(
        input_tensor: Tensor, axis: Any = None, keepdims: bool = False, keep_dims: bool = False
    ) -> Tensor:
        axes = tuple(axis) if isinstance(axis, list) else axis
        return reduce(input_tensor, axis=axes, keepdims=keepdims or keep_dims)

    return reduced


def _cast(x: Tensor, dtype: Any) -> Tensor:
    return ops.astype(x, dtypes.as_dtype(dtype))


def _identity(input: Tensor) -> Tensor:
    return ops.clone(input)


def _matmul(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    a = a.mT if transpose_a else a
    return ops.matmul(a, b.mT if transpose_b else b)


def _one_hot(indices: Tensor, depth: int) -> Tensor:
    return ops.astype(F.one_hot(indices, depth), dtypes.float32)


def _random_normal(
    shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: Any = dtypes.float32
) -> Tensor:
    return random.randn(tuple(shape), dtype=dtype) * stddev + mean


def _truncated_normal(
    shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: Any = dtypes.float32
) -> Tensor:
    bounds = mean - 2 * stddev, mean + 2 * stddev
    return init.truncated_normal(tuple(shape), mean, stddev, *bounds, dtype=dtype)


def _random_uniform(
    shape: Any, minval: float = 0.0, maxval: float = 1.0, dtype: Any = dtypes.float32
) -> Tensor:
    return random.rand(tuple(shape), dtype=dtype) * (maxval - minval) + minval


def _shape(input: Tensor) -> Tensor:
    return creation.asarray(list(input.shape), dtype=dtypes.int64)


def _reshape(tensor: Tensor, shape: Any) -> Tensor:
    return ops.reshape(tensor, tuple(shape))


def _transpose(a: Tensor, perm: Any = None) -> Tensor:
    return ops.permute_dims(a, tuple(range(a.ndim))[::-1] if perm is None else tuple(perm))


def _concat(values: Any, axis: int) -> Tensor:
    return ops.concat(values, axis=axis)


def _argmax(input: Tensor, axis: int | None = None) -> Tensor:
    return ops.argmax(input, axis=axis)


def _stop_gradient(input: Tensor) -> Tensor:
    return input.detach()


def _zeros(shape: Any, dtype: Any = dtypes.float32) -> Tensor:
    return creation.zeros(tuple(shape), dtype=dtype)


def _ones(shape: Any, dtype: Any = dtypes.float32) -> Tensor:
    return creation.ones(tuple(shape), dtype=dtype)


def _add_n(inputs: Any) -> Tensor:
    first, *rest = inputs
    return sum(rest, first)


def _squared_difference(x: Tensor, y: Tensor) -> Tensor:
    difference = x - y
    return difference * difference


def _fill(dims: Any, value: Any) -> Tensor:
    return creation.full(tuple(dims), value)


#: By the name in the namespace of `needle.static`.
NAMES: dict[str, Callable[..., Any]] = {
    "reduce_sum": _reduction(ops.sum),
    "reduce_mean": _reduction(ops.mean),
    "reduce_max": _reduction(ops.max),
    "reduce_min": _reduction(ops.min),
    "reduce_prod": _reduction(ops.prod),
    "reduce_all": _reduction(ops.all),
    "reduce_any": _reduction(ops.any),
    "cast": _cast,
    "identity": _identity,
    "matmul": _matmul,
    "one_hot": _one_hot,
    "truncated_normal": _truncated_normal,
    "random_normal": _random_normal,
    "random_uniform": _random_uniform,
    "shape": _shape,
    "reshape": _reshape,
    "transpose": _transpose,
    "concat": _concat,
    "argmax": _argmax,
    "stop_gradient": _stop_gradient,
    "zeros": _zeros,
    "ones": _ones,
    "add_n": _add_n,
    "squared_difference": _squared_difference,
    "fill": _fill,
}


def _softmax_cross_entropy(labels: Tensor, logits: Tensor, axis: int = -1) -> Tensor:
    return -(labels * F.log_softmax(logits, axis=axis)).sum(axis=axis)


def _sparse_softmax_cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _sigmoid_cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def _bias_add(value: Tensor, bias: Tensor) -> Tensor:
    return value + bias


#: By the name in `needle.static.nn`; all else there is `needle.nn.functional`'s.
NN_NAMES: dict[str, Callable[..., Any]] = {
    "softmax_cross_entropy_with_logits": _softmax_cross_entropy,
    "softmax_cross_entropy_with_logits_v2": _softmax_cross_entropy,
    "sparse_softmax_cross_entropy_with_logits": _sparse_softmax_cross_entropy,
    "sigmoid_cross_entropy_with_logits": _sigmoid_cross_entropy,
    "bias_add": _bias_add,
    "conv2d": images.conv2d,
    "max_pool": images.max_pool,
    "dropout": images.dropout,
}
