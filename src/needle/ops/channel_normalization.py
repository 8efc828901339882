"""Normalisation by channels, on axis 1 of [N, C, …]: in groups, or over the batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from needle.config import no_grad
from needle.errors import ArgumentError, ArgumentTypeError, ShapeError
from needle.ops.affine_standardization import affine_standardize, scale_and_shift
from needle.ops.elementwise import TensorLike
from needle.ops.engine import as_float_tensor, as_tensor, widen
from needle.ops.movement import broadcast_to, reshape
from needle.ops.normalization import check_eps, shaped_parameter
from needle.ops.record import composite
from needle.ops.samples import Sample, bad, normal
from needle.ops.transcendental import rsqrt
from needle.shapes import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _channels(x: Tensor, name: str) -> int:
    if x.ndim < 2:
        raise ShapeError(
            f"{name}: expected [N, C, …], channels on axis 1; got a tensor of shape {list(x.shape)}"
        )
    return x.shape[1]


def _parameter(value: Any, like: Tensor, spread: Shape, default: float, name: str) -> Tensor:
    """Return a weight or a bias [C] in the shape in which `affine_standardize` takes it."""
    if value is None:  # x + −0 is x for all x
        return broadcast_to(as_tensor(default, like.dtype), spread)
    return shaped_parameter(value, like, like.shape[1:2], "channels, axis 1", spread, name)


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
    check_eps(eps, "group_norm")
    if num_groups < 1:
        raise ArgumentError(f"group_norm: num_groups must be positive, got {num_groups}")
    if channels % num_groups:
        raise ShapeError(f"group_norm: {num_groups} groups do not divide {channels} channels")
    wide = widen(t)
    size = channels // num_groups
    scale = _parameter(weight, wide, (num_groups, size, 1), 1.0, "group_norm: weight")
    shift = _parameter(bias, wide, (num_groups, size, 1), -0.0, "group_norm: bias")
    grouped = reshape(wide, (t.shape[0], num_groups, size, math.prod(t.shape[2:])))
    y = affine_standardize(grouped, scale, shift, (2, 3), eps)[0]
    return reshape(y, t.shape).astype(t.dtype, copy=False)


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
    check_eps(eps, "batch_norm")
    has_running = running_mean is not None and running_var is not None
    if not has_running and not (training and running_mean is running_var is None):
        raise ArgumentError(
            "batch_norm: needs running_mean and running_var, both of them, unless it is training"
        )
    wide = widen(t)
    spread = (channels, *(1 for _ in t.shape[2:]))
    if has_running:  # in training, too, where they are only written: their shapes are checked
        average = _parameter(running_mean, wide, spread, 0.0, "batch_norm: running_mean")
        variance = _parameter(running_var, wide, spread, 1.0, "batch_norm: running_var")
    scale = _parameter(weight, wide, spread, 1.0, "batch_norm: weight")
    shift = _parameter(bias, wide, spread, -0.0, "batch_norm: bias")
    if training:
        count = t.size // channels if channels else 0
        if count < 2:
            raise ShapeError(
                "batch_norm: training needs more than one value for each channel to take a "
                f"variance of, got shape {list(t.shape)}; use a larger batch (drop_last=True in "
                "the loader drops a last one that is too small), or eval()"
            )
        y, average, variance = affine_standardize(wide, scale, shift, (0, *range(2, t.ndim)), eps)
        if has_running:
            _update(running_mean, average, momentum, "running_mean")
            _update(running_var, variance * (count / (count - 1)), momentum, "running_var")
    else:
        # All that depends on the channel alone is put together first.
        slope = rsqrt(variance + eps) * scale
        y = scale_and_shift(wide, slope, shift - average * slope)
    return y.astype(t.dtype, copy=False)


def _update(running: Any, new: Tensor, momentum: float | Tensor, name: str) -> None:
    if as_tensor(running) is not running:
        raise ArgumentTypeError(
            f"batch_norm: {name} must be a tensor, to be updated in place, got "
            f"{type(running).__name__}"
        )
    with no_grad():
        running += (reshape(new.detach(), running.shape) - running) * momentum


__all__ = ["batch_norm", "group_norm"]
