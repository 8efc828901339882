"""Normalisation layers; the formulas stand with the functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from needle.errors import ArgumentError, ShapeError
from needle.nn import init
from needle.nn.arguments import as_extent
from needle.nn.module import Module
from needle.nn.parameter import Buffer, Parameter
from needle.ops.channel_normalization import batch_norm, group_norm
from needle.ops.engine import as_tensor
from needle.ops.layer_normalization import layer_norm, rms_norm
from needle.shapes import Shape, as_shape, expect_axis
from needle.tensor import Tensor


class _BatchNorm(Module):
    """What batch norms for different numbers of axes share.

    Args:
        num_features: number of channels, the extent of axis 1.
        eps: added to the variance.
        momentum: share of a batch's statistics in the running ones.
        affine: whether there are `weight` and `bias`.
        track_running_stats: whether running statistics are kept, for evaluation.
        dtype: dtype of parameters and statistics.
        device: where they live.
    """

    #: Numbers of axes of an input, and their names for an error.
    _ranks: tuple[int, ...]
    _layout: str

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        name = type(self).__name__
        self.num_features = as_extent(num_features, f"{name}: num_features")
        self.eps = _as_eps(eps, name)
        if not 0 <= momentum <= 1:
            raise ArgumentError(f"{name}: momentum must lie in 0 … 1, got {momentum}")
        self.momentum = momentum
        n = self.num_features
        self.weight = Parameter(init.ones(n, dtype=dtype, device=device)) if affine else None
        self.bias = Parameter(init.zeros(n, dtype=dtype, device=device)) if affine else None
        tracks = track_running_stats
        self.running_mean = Buffer(init.zeros(n, dtype=dtype, device=device)) if tracks else None
        self.running_var = Buffer(init.ones(n, dtype=dtype, device=device)) if tracks else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel, in training by the statistics of the batch.

        Args:
            x: [batch, num_features, ...].

        Returns:
            The same shape.

        Raises:
            ShapeError: another number of axes or channels; in training, a single value for each
                channel.
        """
        x = as_tensor(x)
        if x.ndim not in self._ranks:
            raise ShapeError(
                f"{type(self).__name__}: expected {self._layout}, got shape {list(x.shape)}"
            )
        expect_axis(x.shape, 1, self.num_features, "num_features")
        return batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            self.momentum,
            self.eps,
        )

    def extra_repr(self) -> str:
        """Return features and settings."""
        affine = "" if self.weight is not None else ", affine=False"
        tracks = "" if self.running_mean is not None else ", track_running_stats=False"
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}{affine}{tracks}"


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of [batch, features] or [batch, channels, length].

    ``(x − mean) / √(var + ε) · weight + bias`` for each channel. In training, mean and (biased)
    variance are the batch's, and the running ones follow: ``r ← (1 − momentum) r + momentum s``
    with the unbiased variance; they are used in evaluation.

    Source: S. Ioffe, C. Szegedy, "Batch normalization", 2015.

    Args:
        num_features: number of features or channels, the extent of axis 1.
        eps: added to the variance.
        momentum: share of a batch's statistics in the running ones.
        affine: whether there are `weight` and `bias`.
        track_running_stats: whether running statistics are kept; without, the batch's are used in
            evaluation, too.
        dtype: dtype of parameters and statistics.
        device: where they live.

    Attributes:
        weight: [num_features], one at first; or None.
        bias: [num_features], zero at first; or None.
        running_mean: [num_features], zero at first; or None.
        running_var: [num_features], one at first; or None.

    Example:
        >>> layer = ndl.nn.BatchNorm1d(1, eps=0.0)
        >>> layer(ndl.asarray([[1.0], [3.0]])).tolist()
        [[-1.0], [1.0]]
        >>> layer.running_mean
        Buffer([0.2])
    """

    _ranks = (2, 3)
    _layout = "[batch, features] or [batch, channels, length]"


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of images: [batch, channels, height, width]; see `BatchNorm1d`.

    Args:
        num_features: number of channels, the extent of axis 1.
        eps: added to the variance.
        momentum: share of a batch's statistics in the running ones.
        affine: whether there are `weight` and `bias`.
        track_running_stats: whether running statistics are kept; without, the batch's are used in
            evaluation, too.
        dtype: dtype of parameters and statistics.
        device: where they live.

    Attributes:
        weight: [num_features], one at first; or None.
        bias: [num_features], zero at first; or None.
        running_mean: [num_features], zero at first; or None.
        running_var: [num_features], one at first; or None.

    Example:
        >>> ndl.nn.BatchNorm2d(3)(ndl.ones((2, 3, 4, 4))).shape
        (2, 3, 4, 4)
    """

    _ranks = (4,)
    _layout = "[batch, channels, height, width]"


class LayerNorm(Module):
    """Normalisation over the last axes: ``(x − mean) / √(var + ε) · weight + bias``.

    Source: J. Ba, J. Kiros, G. Hinton, "Layer normalization", 2016.

    Args:
        normalized_shape: extents of the last axes, or of the last one.
        eps: added to the variance.
        elementwise_affine: whether there are `weight` and `bias`.
        bias: whether there is a `bias` (with ``elementwise_affine``).
        dtype: dtype of the parameters.
        device: where they live.

    Attributes:
        weight: [*normalized_shape], one at first; or None.
        bias: [*normalized_shape], zero at first; or None.

    Example:
        >>> ndl.nn.LayerNorm(2, eps=0.0)(ndl.asarray([[1.0, 3.0]])).tolist()
        [[-1.0, 1.0]]
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        shape = self.normalized_shape = _as_normalized_shape(normalized_shape, "LayerNorm")
        self.eps = _as_eps(eps, "LayerNorm")
        affine = elementwise_affine
        self.weight = Parameter(init.ones(shape, dtype=dtype, device=device)) if affine else None
        self.bias = (
            Parameter(init.zeros(shape, dtype=dtype, device=device)) if affine and bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axes.

        Args:
            x: [..., *normalized_shape].

        Returns:
            The same shape.

        Raises:
            ShapeError: the last axes have other extents.
        """
        x = as_tensor(x)
        _expect_last(x.shape, self.normalized_shape)
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Return shape and settings."""
        affine = "" if self.weight is not None else ", elementwise_affine=False"
        if self.weight is not None and self.bias is None:
            affine = ", bias=False"
        return f"{_show(self.normalized_shape)}, eps={self.eps}{affine}"


class RMSNorm(Module):
    """Division by the root mean square over the last axes: ``x / √(mean(x²) + ε) · weight``.

    Source: B. Zhang, R. Sennrich, "Root mean square layer normalization", 2019.

    Args:
        normalized_shape: extents of the last axes, or of the last one.
        eps: added to the mean square; the dtype's spacing at 1 if not given.
        elementwise_affine: whether there is a `weight`.
        dtype: dtype of the parameters.
        device: where they live.

    Attributes:
        weight: [*normalized_shape], one at first; or None.

    Example:
        >>> ndl.nn.RMSNorm(2, eps=0.0)(ndl.asarray([[3.0, 3.0]])).tolist()
        [[1.0, 1.0]]
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        shape = self.normalized_shape = _as_normalized_shape(normalized_shape, "RMSNorm")
        self.eps = None if eps is None else _as_eps(eps, "RMSNorm")
        affine = elementwise_affine
        self.weight = Parameter(init.ones(shape, dtype=dtype, device=device)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axes.

        Args:
            x: [..., *normalized_shape].

        Returns:
            The same shape.

        Raises:
            ShapeError: the last axes have other extents.
        """
        x = as_tensor(x)
        _expect_last(x.shape, self.normalized_shape)
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """Return shape and settings."""
        affine = "" if self.weight is not None else ", elementwise_affine=False"
        return f"{_show(self.normalized_shape)}, eps={self.eps}{affine}"


class GroupNorm(Module):
    """Normalisation of groups of channels, for each example on its own.

    Source: Y. Wu, K. He, "Group normalization", 2018.

    Args:
        num_groups: number of groups; 1 normalises over all channels.
        num_channels: number of channels, the extent of axis 1; a multiple of ``num_groups``.
        eps: added to the variance.
        affine: whether there are `weight` and `bias`.
        dtype: dtype of the parameters.
        device: where they live.

    Attributes:
        weight: [num_channels], one at first; or None.
        bias: [num_channels], zero at first; or None.

    Raises:
        ArgumentError: the channels do not divide into the groups.

    Example:
        >>> ndl.nn.GroupNorm(2, 4)(ndl.ones((5, 4, 3, 3))).shape
        (5, 4, 3, 3)
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        self.num_groups = as_extent(num_groups, "GroupNorm: num_groups")
        n = self.num_channels = as_extent(num_channels, "GroupNorm: num_channels")
        if n % self.num_groups:
            raise ArgumentError(
                f"GroupNorm: {n} channels (num_channels) do not divide into {num_groups} groups"
            )
        self.eps = _as_eps(eps, "GroupNorm")
        self.weight = Parameter(init.ones(n, dtype=dtype, device=device)) if affine else None
        self.bias = Parameter(init.zeros(n, dtype=dtype, device=device)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each group of channels of each example.

        Args:
            x: [batch, num_channels, ...].

        Returns:
            The same shape.

        Raises:
            ShapeError: another number of channels.
        """
        x = as_tensor(x)
        expect_axis(x.shape, 1, self.num_channels, "num_channels")
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Return channels and settings."""
        affine = "" if self.weight is not None else ", affine=False"
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}{affine}"


def _as_eps(eps: float, name: str) -> float:
    if not eps >= 0:
        raise ArgumentError(f"{name}: eps must be at least 0, got {eps}")
    return eps


def _as_normalized_shape(shape: Any, name: str) -> Shape:
    extents = as_shape(shape, f"{name}: normalized_shape")
    if not extents or 0 in extents:
        raise ArgumentError(
            f"{name}: normalized_shape needs at least one axis and no extent of 0, got {shape}"
        )
    return extents


def _expect_last(shape: Shape, normalized: Shape) -> None:
    if len(normalized) == 1:
        expect_axis(shape, -1, normalized[0], "normalized_shape")
    elif shape[-len(normalized) :] != normalized:
        raise ShapeError(
            f"expected the last axes {list(normalized)} (normalized_shape), got shape {list(shape)}"
        )


def _show(shape: Shape) -> str:
    return str(shape[0]) if len(shape) == 1 else str(shape)
