"""Activation functions as modules; the formulas stand with the functions."""

from __future__ import annotations

from needle.errors import ArgumentError
from needle.nn.module import Module
from needle.ops import activation
from needle.ops.engine import as_float_tensor
from needle.ops.softmax import log_softmax, softmax
from needle.ops.transcendental import tanh
from needle.shapes import as_index
from needle.tensor import Tensor


class ReLU(Module):
    """Rectified linear unit: ``max(x, 0)``; see `needle.relu`.

    Example:
        >>> ndl.nn.ReLU()(ndl.asarray([-1.0, 2.0]))
        Tensor([0., 2.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each element.

        Args:
            x: any shape.
        """
        return activation.relu(x)


class LeakyReLU(Module):
    """``x`` where positive, else ``slope · x``; see `needle.leaky_relu`.

    Args:
        negative_slope: the slope below 0.

    Example:
        >>> ndl.nn.LeakyReLU(0.1)(ndl.asarray([-1.0, 2.0]))
        Tensor([-0.1,  2. ])
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each element.

        Args:
            x: any shape.
        """
        return activation.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        """Return the slope."""
        return f"negative_slope={self.negative_slope}"


class GELU(Module):
    """Gaussian error linear unit: ``x · Φ(x)``; see `needle.gelu`.

    Args:
        approximate: "none", or "tanh" for the approximation that GPT-2 uses.

    Raises:
        ArgumentError: another value of ``approximate``.

    Example:
        >>> ndl.nn.GELU(approximate="tanh")(ndl.asarray([0.0])).item()
        0.0
    """

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ArgumentError(f"GELU: approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each element.

        Args:
            x: any shape.
        """
        return activation.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        """Return the approximation, if one is used."""
        return "" if self.approximate == "none" else f"approximate={self.approximate!r}"


class SiLU(Module):
    """Sigmoid linear unit: ``x · sigmoid(x)``; see `needle.silu`.

    Example:
        >>> ndl.nn.SiLU()(ndl.asarray([0.0])).item()
        0.0
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each element.

        Args:
            x: any shape.
        """
        return activation.silu(x)


class Sigmoid(Module):
    """Logistic sigmoid: ``1 / (1 + e⁻ˣ)``; see `needle.sigmoid`.

    Example:
        >>> ndl.nn.Sigmoid()(ndl.asarray([0.0])).item()
        0.5
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each element.

        Args:
            x: any shape.
        """
        return activation.sigmoid(x)


class Tanh(Module):
    """Hyperbolic tangent; see `needle.tanh`.

    Example:
        >>> ndl.nn.Tanh()(ndl.asarray([0.0])).item()
        0.0
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each element.

        Args:
            x: any shape.
        """
        return tanh(x)


class Softplus(Module):
    """Smooth rectifier: ``ln(1 + e^(βx)) / β``; see `needle.softplus`.

    Args:
        beta: the larger, the closer to the rectifier; positive.

    Raises:
        ArgumentError: ``beta`` is not positive.

    Example:
        >>> round(ndl.nn.Softplus()(ndl.asarray([0.0])).item(), 4)
        0.6931
    """

    def __init__(self, beta: float = 1.0) -> None:
        if not beta > 0:
            raise ArgumentError(f"Softplus: beta must be positive, got {beta}")
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each element.

        Args:
            x: any shape.
        """
        if self.beta == 1:
            return activation.softplus(x)
        result: Tensor = activation.softplus(as_float_tensor(x) * self.beta) / self.beta
        return result

    def extra_repr(self) -> str:
        """Return β, if it is not 1."""
        return "" if self.beta == 1 else f"beta={self.beta}"


class Softmax(Module):
    """Exponentials along an axis, normalised to the sum 1; see `needle.softmax`.

    For training, give the logits to `CrossEntropyLoss`, which is exact where this one rounds to 0.

    Args:
        axis: the axis.

    Example:
        >>> ndl.nn.Softmax()(ndl.zeros(2))
        Tensor([0.5, 0.5])
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = as_index(axis, "Softmax: axis")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise along the axis.

        Args:
            x: any shape with that axis.
        """
        return softmax(x, self.axis)

    def extra_repr(self) -> str:
        """Return the axis."""
        return f"axis={self.axis}"


class LogSoftmax(Module):
    """Logarithm of the softmax along an axis; see `needle.log_softmax`.

    Args:
        axis: the axis.

    Example:
        >>> bool((ndl.nn.LogSoftmax()(ndl.zeros(4)).exp() == 0.25).all())
        True
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = as_index(axis, "LogSoftmax: axis")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise along the axis.

        Args:
            x: any shape with that axis.
        """
        return log_softmax(x, self.axis)

    def extra_repr(self) -> str:
        """Return the axis."""
        return f"axis={self.axis}"
