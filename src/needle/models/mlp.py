"""Multilayer perceptrons, plain and residual."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from needle import nn
from needle.errors import ArgumentError
from needle.tensor import Tensor


class MLP(nn.Module):
    """A multilayer perceptron: linear layers with an activation between them.

    Args:
        sizes: number of inputs, of units in each hidden layer, and of outputs.
        activation: makes the activation module.
        dropout: probability of dropping a hidden unit.

    Raises:
        ArgumentError: fewer than two sizes.

    Example:
        >>> model = ndl.models.MLP(784, 128, 64, 10)
        >>> model(ndl.zeros((32, 1, 28, 28))).shape
        (32, 10)
    """

    def __init__(
        self,
        *sizes: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ArgumentError(f"MLP: needs at least the inputs and the outputs, got {sizes}")
        layers: list[nn.Module] = [nn.Flatten()]
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            if i:
                layers.append(activation())
                if dropout:
                    layers.append(nn.Dropout(dropout))
            layers.append(nn.Linear(inputs, outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, …] to [batch, outputs]; the axes after the first are flattened."""
        return self.layers(x)


class MLPResNet(nn.Module):
    """A perceptron with residual blocks.

    ``Linear → ReLU``, then blocks ``x + (Linear → norm → ReLU → Dropout → Linear → norm)(x)``, each
    followed by ReLU, then ``Linear``. Inside a block the width is half of ``hidden``.

    Args:
        inputs: number of inputs.
        hidden: width between the blocks; even.
        blocks: number of residual blocks.
        classes: number of outputs.
        norm: makes the normalisation of a width.
        dropout: probability of dropping a unit inside a block.

    Example:
        >>> ndl.models.MLPResNet(784, hidden=100)(ndl.zeros((8, 784))).shape
        (8, 10)
    """

    def __init__(
        self,
        inputs: int,
        hidden: int = 100,
        blocks: int = 3,
        classes: int = 10,
        norm: Callable[[int], nn.Module] = nn.BatchNorm1d,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU()]
        for _ in range(blocks):
            inside = nn.Sequential(
                nn.Linear(hidden, hidden // 2),
                norm(hidden // 2),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(hidden // 2, hidden),
                norm(hidden),
            )
            layers += [nn.Residual(inside), nn.ReLU()]
        layers.append(nn.Linear(hidden, classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, …] to [batch, classes]."""
        return self.layers(x)
