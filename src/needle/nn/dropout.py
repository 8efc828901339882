"""Dropout."""

from __future__ import annotations

from needle.nn import functional as F
from needle.nn.arguments import as_probability
from needle.nn.module import Module
from needle.random import Generator
from needle.tensor import Tensor


class Dropout(Module):
    """In training, zeroes elements at random and scales the others by ``1 / (1 − p)``.

    Source: N. Srivastava et al., "Dropout: a simple way to prevent neural networks from
    overfitting", 2014.

    Args:
        p: probability of an element to be zeroed, 0 to 1.
        generator: what is drawn from; the default generator if not given.

    Raises:
        ArgumentError: ``p`` lies outside of 0 … 1.

    Example:
        >>> layer = ndl.nn.Dropout(0.5)
        >>> sorted(set(layer(ndl.ones(100)).tolist()))
        [0.0, 2.0]
        >>> layer.eval()(ndl.ones(2))
        Tensor([1., 1.])
    """

    def __init__(self, p: float = 0.5, *, generator: Generator | None = None) -> None:
        self.p = as_probability(p, "Dropout: p")
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements in training, else return ``x``.

        Args:
            x: any shape.
        """
        return F.dropout(x, self.p, self.training, self.generator)

    def extra_repr(self) -> str:
        """Return the probability."""
        return f"p={self.p}"
