"""The affine layer."""

from __future__ import annotations

from typing import Any

from needle.nn import init
from needle.nn.arguments import as_extent
from needle.nn.module import Module
from needle.nn.parameter import Parameter
from needle.ops.contraction import linear
from needle.ops.engine import as_tensor
from needle.random import Generator
from needle.shapes import expect_axis
from needle.tensor import Tensor


class Linear(Module):
    """Affine map of the last axis: ``y = x @ W + b``.

    The weight is drawn uniformly in ``±√(6 / in_features)`` (Kaiming, for a rectifier), the bias is
    zero.

    Args:
        in_features: extent of the last axis of the input.
        out_features: extent of the last axis of the result.
        bias: whether there is a bias.
        dtype: dtype of the parameters; float32 if not given.
        device: where they live.
        generator: what the weight is drawn from.

    Attributes:
        weight: [in_features, out_features] (PyTorch has it transposed).
        bias: [out_features], or None.

    Example:
        >>> layer = ndl.nn.Linear(3, 2)
        >>> layer(ndl.ones((5, 3))).shape
        (5, 2)
        >>> layer(ndl.ones((5, 4)))
        Traceback (most recent call last):
        ...
        needle.errors.ShapeError: model: expected last axis 3 (in_features), got 4 in shape [5, 4]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = None,
        device: Any = None,
        generator: Generator | None = None,
    ) -> None:
        self.in_features = as_extent(in_features, "Linear: in_features")
        self.out_features = as_extent(out_features, "Linear: out_features")
        shape = (self.in_features, self.out_features)
        self.weight = Parameter(
            init.kaiming_uniform(shape, dtype=dtype, device=device, generator=generator)
        )
        self.bias = (
            Parameter(init.zeros(self.out_features, dtype=dtype, device=device)) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis.

        Args:
            x: [..., in_features].

        Returns:
            [..., out_features].

        Raises:
            ShapeError: the last axis has another extent.
        """
        x = as_tensor(x)
        expect_axis(x.shape, -1, self.in_features, "in_features")
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the features."""
        bias = "" if self.bias is not None else ", bias=False"
        return f"in_features={self.in_features}, out_features={self.out_features}{bias}"
