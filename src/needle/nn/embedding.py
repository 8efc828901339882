"""The embedding layer."""

from __future__ import annotations

from typing import Any

from needle.config import no_grad
from needle.errors import OutOfRangeError
from needle.nn import init
from needle.nn.arguments import as_extent
from needle.nn.module import Module
from needle.nn.parameter import Parameter
from needle.ops.gather import embedding
from needle.random import Generator
from needle.shapes import as_index
from needle.tensor import Tensor


class Embedding(Module):
    """A row of a table for each index: ``y[…] = weight[x[…]]``.

    Args:
        num_embeddings: number of rows.
        embedding_dim: width of a row.
        padding_idx: index of a row that starts as zero and gets no gradient; negative ones count
            from the end.
        dtype: dtype of the table.
        device: where it lives.
        generator: what it is drawn from (standard normal).

    Attributes:
        weight: [num_embeddings, embedding_dim].

    Raises:
        OutOfRangeError: there is no row ``padding_idx``.

    Example:
        >>> layer = ndl.nn.Embedding(10, 3)
        >>> layer(ndl.asarray([[1, 2], [9, 0]])).shape
        (2, 2, 3)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: Any = None,
        device: Any = None,
        generator: Generator | None = None,
    ) -> None:
        self.num_embeddings = as_extent(num_embeddings, "Embedding: num_embeddings")
        self.embedding_dim = as_extent(embedding_dim, "Embedding: embedding_dim")
        self.padding_idx = None
        shape = (self.num_embeddings, self.embedding_dim)
        table = init.normal(shape, dtype=dtype, device=device, generator=generator)
        if padding_idx is not None:
            place = as_index(padding_idx, "Embedding: padding_idx")
            if not -self.num_embeddings <= place < self.num_embeddings:
                raise OutOfRangeError(
                    f"Embedding: padding_idx {place} is outside of {self.num_embeddings} rows"
                )
            self.padding_idx = place % self.num_embeddings
            with no_grad():
                table[self.padding_idx] = 0.0
        self.weight = Parameter(table)

    def forward(self, x: Tensor) -> Tensor:
        """Look up the rows.

        Args:
            x: integers of any shape, 0 to num_embeddings − 1.

        Returns:
            [..., embedding_dim].

        Raises:
            OutOfRangeError: an index without a row.
            DTypeError: the indices are no integers.
        """
        return embedding(x, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        """Return the sizes."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
