"""Normalisation: elements shifted and scaled by the mean and the variance of those around them.

One primitive, `standardize`, serves layer, group and batch normalisation. Its backward pass is
written with the statistics and the result alone, so the input need not be kept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.config import no_grad
from needle.dtypes import accumulation_dtype
from needle.errors import ArgumentError, ArgumentTypeError, AxisError, DTypeError, ShapeError
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_float_tensor, as_tensor, require_float, widen
from needle.ops.movement import reshape
from needle.ops.record import Kind, composite, op
from needle.ops.reduce import mean, sum
from needle.ops.samples import Array, Sample, bad, integers, normal
from needle.ops.transcendental import rsqrt
from needle.shapes import Axis, Shape, Spec, as_shape, normalize_axes, reduced_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from needle.tensor import Tensor


def _infer_standardize(x: Spec, *, axes: Shape, eps: float) -> tuple[Spec, Spec, Spec]:
    statistic = Spec(reduced_shape(x.shape, axes, True), accumulation_dtype(x.dtype))
    return x, statistic, statistic


def _standardize(x: Array, *, axes: Shape, eps: float) -> tuple[Array, Array, Array]:
    wide = x.astype(accumulation_dtype(x.dtype), copy=False)
    count = math.prod(x.shape[a] for a in axes)
    average = np.add.reduce(wide, axis=axes, keepdims=True) / wide.dtype.type(count)
    y = wide - average
    # In two passes: the mean of squares less the square of the mean cancels for large means.
    variance = np.add.reduce(np.square(y), axis=axes, keepdims=True) / wide.dtype.type(count)
    y *= 1 / np.sqrt(variance + wide.dtype.type(eps))
    return y.astype(x.dtype, copy=False), average, variance


def _standardize_vjp(
    g: tuple[Tensor, Tensor, Tensor],
    out: tuple[Tensor, Tensor, Tensor],
    x_shape: Shape,
    axes: Shape,
    eps: float,
) -> Tensor:
    """With ``r = 1/√(var + ε)``: ``r·g + y·b + c``, b and c made of one value for each mean."""
    g_y, g_mean, g_variance = widen(g[0]), g[1], g[2]
    y, variance = widen(out[0]), out[2] + eps
    count = math.prod(x_shape[a] for a in axes)
    r = rsqrt(variance)
    along_y = sum(g_y * y, axes, keepdims=True) / count
    along_one = sum(g_y, axes, keepdims=True) / count
    # x − mean = y / r, so the derivative of the variance, 2 (x − mean) / n, is a multiple of y.
    b = g_variance * (2 / count) * variance * r - along_y * r
    c = g_mean / count - along_one * r
    result: Tensor = g_y * r + y * b + c
    return result.astype(out[0].dtype, copy=False)


def _standardize_samples() -> Iterable[Sample]:
    yield Sample((normal(4, 5),))
    yield Sample((normal(3, 4, 5), (0, 2)), label="two axes")
    yield Sample((normal(3, 4) + 2, 0, 1e-3), label="eps")
    yield Sample((normal(6, 4)[::2].T, -1), label="strided")
    yield Sample((normal(0, 4),), label="empty")
    yield bad(AxisError, "axis 2", normal(3, 4), 2)
    yield bad(DTypeError, "floating dtype", integers(0, 5, 3, 4))
    yield bad(ArgumentError, "eps", normal(3, 4), -1, -1.0)


def _torch_standardize(torch: Any, x: Any, axis: Any = -1, eps: float = 1e-5) -> Any:
    average = x.mean(axis, keepdim=True)
    variance = ((x - average) ** 2).mean(axis, keepdim=True)
    return (x - average) / (variance + eps).sqrt(), average, variance


@op(
    kind=Kind.NORMALIZATION,
    infer=_infer_standardize,
    reference=_standardize,
    vjp={"x": _standardize_vjp},
    samples=_standardize_samples,
    refuses=True,
    flops=lambda x, out, **attrs: 6 * x.size,
    is_method=False,
    peer=_torch_standardize,
)
def standardize(x: TensorLike, axis: Axis = -1, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """Give the elements along axes mean 0 and variance 1: ``(x − mean) / √(variance + ε)``.

    Args:
        x: floats of any shape.
        axis: the axes of the elements that are normalised together; None for all.
        eps: ε, added to the variance; not negative.

    Returns:
        The result, of the shape and dtype of ``x``, and the mean and the (biased) variance, with
        extent 1 at ``axis``, in float32 for 16-bit floats. Gradients flow through all three.

    Raises:
        DTypeError: ``x`` is not floating.
        AxisError: an axis does not exist or is given twice.
        ArgumentError: ``eps`` is negative.

    Example:
        >>> y, mean, variance = ndl.standardize(ndl.asarray([1.0, 3.0]), eps=0.0)
        >>> y, mean, variance
        (Tensor([-1.,  1.]), Tensor([2.]), Tensor([1.]))
    """
    t = as_tensor(x)
    require_float(t, "standardize")
    _check_eps(eps, "standardize")
    result: Any = apply(standardize, t, axes=normalize_axes(axis, t.ndim, "standardize"), eps=eps)
    return result


def _check_eps(eps: float, name: str) -> None:
    if not eps >= 0:
        raise ArgumentError(f"{name}: eps must not be negative, got {eps}")


def _parameter(
    value: Any, like: Tensor, expected: Shape, meaning: str, spread: Shape, name: str
) -> Tensor:
    """Return a weight, a bias or a statistic, shaped to broadcast with the normalised tensor.

    Args:
        value: of shape ``expected``.
        like: whose dtype it gets.
        expected: the shape that it must have.
        meaning: what that shape is.
        spread: the shape in which it broadcasts.
        name: what the error calls it.
    """
    t = as_tensor(value).astype(like.dtype, copy=False)
    if t.shape != expected:
        raise ShapeError(
            f"{name} must have shape {list(expected)} ({meaning}), got {list(t.shape)}"
        )
    return t if expected == spread else reshape(t, spread)


# Over the last axes, for each example by itself


def _last_axes(shape: Shape, normalized_shape: Any, name: str) -> tuple[Shape, Shape]:
    """Return ``normalized_shape`` as a shape, and the axes that it means."""
    last = as_shape(normalized_shape, name)
    if not last or shape[-len(last) :] != last:
        raise ShapeError(
            f"{name}: expected the last axes to be {list(last)} (normalized_shape), got a tensor "
            f"of shape {list(shape)}"
        )
    return last, tuple(range(len(shape) - len(last), len(shape)))


def _layer_norm_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), 4))
    yield Sample((normal(2, 3, 4), (3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)))
    yield Sample((normal(2, 3, 4), (4,), normal(4)), label="no bias")
    yield Sample((normal(3, 4), 4, None, normal(4), 0.1), label="eps")
    yield Sample((normal(0, 4), 4, normal(4), normal(4)), label="empty")
    yield bad(ShapeError, "normalized_shape", normal(3, 4), 3)
    yield bad(ShapeError, "normalized_shape", normal(4), (3, 4))
    yield bad(ShapeError, "weight must have shape", normal(3, 4), 4, normal(3))
    yield bad(ArgumentError, "eps", normal(3, 4), 4, None, None, -1.0)


def _torch_layer_norm(
    torch: Any, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    last = (shape,) if isinstance(shape, int) else shape
    # PyTorch's second derivative fails where there is no weight.
    weight = torch.ones(last, dtype=x.dtype) if weight is None else weight
    return torch.nn.functional.layer_norm(x, last, weight, bias, eps)


@composite(samples=_layer_norm_samples, peer=_torch_layer_norm)
def layer_norm(
    x: TensorLike,
    normalized_shape: int | Sequence[int],
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation: ``(x − mean) / √(variance + ε) · weight + bias`` over the last axes.

    Source: J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", 2016.

    Args:
        x: [..., *normalized_shape]. 16-bit floats are computed in float32.
        normalized_shape: extents of the last axes, over which mean and variance are taken.
        weight: of ``normalized_shape``; 1 if not given.
        bias: of ``normalized_shape``; 0 if not given.
        eps: ε, added to the variance; not negative.

    Raises:
        ShapeError: ``x`` does not end in ``normalized_shape``, or a parameter has another shape.
        ArgumentError: ``eps`` is negative.

    Example:
        >>> ndl.layer_norm(ndl.asarray([[1.0, 3.0], [5.0, 9.0]]), 2, eps=0.0)
        Tensor([[-1.,  1.],
                [-1.,  1.]])
    """
    t = as_float_tensor(x)
    last, axes = _last_axes(t.shape, normalized_shape, "layer_norm")
    _check_eps(eps, "layer_norm")
    y, _, _ = standardize(widen(t), axes, eps)
    if weight is not None:
        y = y * _parameter(weight, y, last, "normalized_shape", last, "layer_norm: weight")
    if bias is not None:
        y = y + _parameter(bias, y, last, "normalized_shape", last, "layer_norm: bias")
    return y.astype(t.dtype, copy=False)


def _rms_norm_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), 4))
    yield Sample((normal(2, 3, 4), (3, 4), normal(3, 4, seed=1)))
    yield Sample((normal(3, 4), 4, None, 0.1), label="eps")
    yield Sample((normal(0, 4), 4), label="empty")
    yield bad(ShapeError, "normalized_shape", normal(3, 4), 3)
    yield bad(ShapeError, "weight must have shape", normal(3, 4), 4, normal(3))
    yield bad(ArgumentError, "eps", normal(3, 4), 4, None, -1.0)


def _torch_rms_norm(torch: Any, x: Any, shape: Any, *rest: Any) -> Any:
    last = (shape,) if isinstance(shape, int) else shape
    return torch.nn.functional.rms_norm(x, last, *rest)


@composite(samples=_rms_norm_samples, peer=_torch_rms_norm)
def rms_norm(
    x: TensorLike,
    normalized_shape: int | Sequence[int],
    weight: TensorLike | None = None,
    eps: float | None = None,
) -> Tensor:
    """Root-mean-square normalisation: ``x / √(mean(x²) + ε) · weight`` over the last axes.

    Source: B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019.

    Args:
        x: [..., *normalized_shape]. 16-bit floats are computed in float32.
        normalized_shape: extents of the last axes, over which the mean is taken.
        weight: of ``normalized_shape``; 1 if not given.
        eps: ε, not negative; the distance from 1 to the next number if not given (of float32 for
            16-bit floats), as in PyTorch.

    Raises:
        ShapeError: ``x`` does not end in ``normalized_shape``, or the weight has another shape.
        ArgumentError: ``eps`` is negative.

    Example:
        >>> ndl.rms_norm(ndl.asarray([3.0, 3.0]), 2, eps=0.0)
        Tensor([1., 1.])
    """
    t = as_float_tensor(x)
    last, axes = _last_axes(t.shape, normalized_shape, "rms_norm")
    wide = widen(t)
    small = float(np.finfo(wide.dtype).eps) if eps is None else eps
    _check_eps(small, "rms_norm")
    y = wide * rsqrt(mean(wide * wide, axes, keepdims=True) + small)
    if weight is not None:
        y = y * _parameter(weight, y, last, "normalized_shape", last, "rms_norm: weight")
    return y.astype(t.dtype, copy=False)


# Over channels: axis 1 of [N, C, …]


def _channels(x: Tensor, name: str) -> int:
    if x.ndim < 2:
        raise ShapeError(
            f"{name}: expected [N, C, …], channels on axis 1; got a tensor of shape {list(x.shape)}"
        )
    return x.shape[1]


def _channelwise(value: Any, like: Tensor, name: str) -> Tensor:
    spread = (like.shape[1], *(1 for _ in like.shape[2:]))
    return _parameter(value, like, spread[:1], "channels, axis 1", spread, name)


def _group_norm_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 6, 3), 3))
    yield Sample((normal(2, 6, 2, 2), 2, normal(6), normal(6, seed=1)))
    yield Sample((normal(3, 4), 2, None, None, 0.1), label="eps")
    yield bad(ShapeError, "do not divide", normal(2, 6, 3), 4)
    yield bad(ShapeError, "weight must have shape", normal(2, 6, 3), 3, normal(3))
    yield bad(ShapeError, "channels on axis 1", normal(6), 3)
    yield bad(ArgumentError, "num_groups", normal(2, 6, 3), 0)


@composite(samples=_group_norm_samples, peer="nn.functional.group_norm")
def group_norm(
    x: TensorLike,
    num_groups: int,
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group normalisation: each example's channels in groups, each group by its own statistics.

    One group normalises over all channels; as many groups as channels is instance normalisation.

    Source: Y. Wu, K. He, "Group Normalization", 2018.

    Args:
        x: [N, C, …]. 16-bit floats are computed in float32.
        num_groups: number of groups, which divides C.
        weight: [C]; 1 if not given.
        bias: [C]; 0 if not given.
        eps: ε, added to the variance; not negative.

    Raises:
        ShapeError: the groups do not divide the channels, or a parameter has another shape.
        ArgumentError: ``num_groups`` is not positive; ``eps`` is negative.

    Example:
        >>> ndl.group_norm(ndl.asarray([[1.0, 3.0, 5.0, 9.0]]), 2, eps=0.0)
        Tensor([[-1.,  1., -1.,  1.]])
    """
    t = as_float_tensor(x)
    channels = _channels(t, "group_norm")
    _check_eps(eps, "group_norm")
    if num_groups < 1:
        raise ArgumentError(f"group_norm: num_groups must be positive, got {num_groups}")
    if channels % num_groups:
        raise ShapeError(f"group_norm: {num_groups} groups do not divide {channels} channels")
    per_group = math.prod(t.shape[1:]) // num_groups
    grouped = reshape(widen(t), (t.shape[0], num_groups, per_group))
    y = reshape(standardize(grouped, -1, eps)[0], t.shape)
    if weight is not None:
        y = y * _channelwise(weight, y, "group_norm: weight")
    if bias is not None:
        y = y + _channelwise(bias, y, "group_norm: bias")
    return y.astype(t.dtype, copy=False)


def _batch_norm_samples() -> Iterable[Sample]:
    statistics = [0.5, -0.25, 0.0, 1.0], [1.0, 0.5, 2.0, 0.25]
    parameters = normal(4), normal(4, seed=1)
    yield Sample((normal(5, 4), None, None, *parameters, True), label="training")
    yield Sample((normal(2, 4, 3, 3), None, None, *parameters, True), label="training images")
    yield Sample((normal(5, 4), None, None, None, None, True, 0.1, 0.2), label="plain, eps")
    yield Sample((normal(5, 4), *statistics, *parameters), label="evaluation")
    yield Sample((normal(2, 4, 3), *statistics), label="evaluation, plain")
    yield Sample((normal(0, 4), *statistics), label="evaluation of nothing")
    yield bad(ShapeError, "more than one value", normal(1, 4), None, None, None, None, True)
    yield bad(ShapeError, "more than one value", normal(0, 4), None, None, None, None, True)
    yield bad(ArgumentError, "running_mean and running_var", normal(5, 4), None, None)
    yield bad(ShapeError, "running_var must have shape", normal(5, 4), statistics[0], [1.0])
    yield bad(ShapeError, "weight must have shape", normal(5, 4), *statistics, normal(3))
    yield bad(ShapeError, "channels on axis 1", normal(4), *statistics)


def _torch_batch_norm(torch: Any, x: Any, running_mean: Any, running_var: Any, *rest: Any) -> Any:
    if running_mean is not None:
        running_mean = torch.tensor(running_mean, dtype=x.dtype)
        running_var = torch.tensor(running_var, dtype=x.dtype)
    return torch.nn.functional.batch_norm(x, running_mean, running_var, *rest)


@composite(samples=_batch_norm_samples, peer=_torch_batch_norm)
def batch_norm(
    x: TensorLike,
    running_mean: TensorLike | None,
    running_var: TensorLike | None,
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalisation: ``(x − mean) / √(variance + ε) · weight + bias`` for each channel.

    In training, mean and variance are the batch's, over all axes but the channels', and the running
    ones, if given, are updated in place: ``running ← (1 − momentum) · running + momentum · new``,
    where the new variance is the unbiased one, as in PyTorch. Otherwise the running ones are used.

    Source: S. Ioffe, C. Szegedy, "Batch Normalization", 2015.

    Args:
        x: [N, C, …]. 16-bit floats are computed in float32.
        running_mean: [C], a tensor if it is to be updated; may be None in training.
        running_var: [C], likewise.
        weight: [C]; 1 if not given.
        bias: [C]; 0 if not given.
        training: whether to use the statistics of the batch.
        momentum: share of the new statistics in the running ones.
        eps: ε, added to the variance; not negative.

    Raises:
        ShapeError: ``x`` has no channels, or in training fewer than two values for each; a
            statistic or a parameter has another shape than [C].
        ArgumentError: no running statistics outside of training, or one without the other; ``eps``
            is negative.

    Example:
        >>> mean, var = ndl.zeros(1), ndl.ones(1)
        >>> x = ndl.asarray([[1.0], [3.0]])
        >>> ndl.batch_norm(x, mean, var, training=True, eps=0.0).tolist(), mean, var
        ([[-1.0], [1.0]], Tensor([0.2]), Tensor([1.1]))
    """
    t = as_float_tensor(x)
    channels = _channels(t, "batch_norm")
    _check_eps(eps, "batch_norm")
    has_running = running_mean is not None and running_var is not None
    if not has_running and not (training and running_mean is running_var is None):
        raise ArgumentError(
            "batch_norm: needs running_mean and running_var, both of them, unless it is training"
        )
    wide = widen(t)
    if has_running:  # in training, too, where they are only written
        average = _channelwise(running_mean, wide, "batch_norm: running_mean")
        variance = _channelwise(running_var, wide, "batch_norm: running_var")
    scale = None if weight is None else _channelwise(weight, wide, "batch_norm: weight")
    shift = None if bias is None else _channelwise(bias, wide, "batch_norm: bias")
    if training:
        count = t.size // channels if channels else 0
        if count < 2:
            raise ShapeError(
                "batch_norm: training needs more than one value for each channel to take a "
                f"variance of, got shape {list(t.shape)}; use a larger batch (drop_last=True in "
                "the loader drops a last one that is too small), or eval()"
            )
        y, average, variance = standardize(wide, (0, *range(2, t.ndim)), eps)
        if has_running:
            _update(running_mean, average, momentum, "running_mean")
            _update(running_var, variance * (count / (count - 1)), momentum, "running_var")
        y = y if scale is None else y * scale
        y = y if shift is None else y + shift
    else:
        # Two passes: all that depends on the channel alone is put together first.
        slope = rsqrt(variance + eps)
        slope = slope if scale is None else slope * scale
        offset = -average * slope
        y = wide * slope + (offset if shift is None else offset + shift)
    return y.astype(t.dtype, copy=False)


def _update(running: Any, new: Tensor, momentum: float | Tensor, name: str) -> None:
    if as_tensor(running) is not running:
        raise ArgumentTypeError(
            f"batch_norm: {name} must be a tensor, to be updated in place, got "
            f"{type(running).__name__}"
        )
    with no_grad():
        running += (reshape(new.detach(), running.shape) - running) * momentum


__all__ = ["batch_norm", "group_norm", "layer_norm", "rms_norm", "standardize"]
