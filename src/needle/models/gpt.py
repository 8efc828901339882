"""A generative pre-trained transformer: GPT-2's architecture."""

from __future__ import annotations

from dataclasses import dataclass

from needle import nn
from needle.creation import arange
from needle.errors import ArgumentError, ShapeError
from needle.nn import functional as F, init
from needle.tensor import Tensor


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a `GPT`; the defaults are GPT-2 small's, of 124,439,808 parameters.

    Attributes:
        vocabulary: number of tokens.
        context: the longest sequence.
        layers: number of transformer blocks.
        heads: number of attention heads.
        width: of the residual stream, a multiple of ``heads``.
        dropout: probability of dropping a unit.
    """

    vocabulary: int = 50257
    context: int = 1024
    layers: int = 12
    heads: int = 12
    width: int = 768
    dropout: float = 0.0


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a place sees only itself and what came before.

    Args:
        config: the sizes.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout_p = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.projection = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, width] to the same shape."""
        batch, time, width = x.shape
        qkv = self.qkv(x).reshape(batch, time, 3, self.heads, width // self.heads)
        q, k, v = (part.squeeze(0) for part in qkv.permute_dims((2, 0, 3, 1, 4)).split(1))
        dropout = self.dropout_p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.permute_dims((0, 2, 1, 3)).reshape(batch, time, width)
        return self.dropout(self.projection(y))


class GPTBlock(nn.Module):
    """Attention and a perceptron, each behind a layer norm and around a residual connection.

    Args:
        config: the sizes.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = CausalSelfAttention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * config.width, config.width),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, width] to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder-only transformer with learnt positions; the head shares the embedding's weights.

    Source: A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.

    Args:
        config: the sizes.

    Raises:
        ArgumentError: the width is no multiple of the number of heads.

    Example:
        >>> config = ndl.models.GPTConfig(vocabulary=65, context=32, layers=2, heads=2, width=32)
        >>> ndl.models.GPT(config)(ndl.zeros((2, 16), dtype="int64")).shape
        (2, 16, 65)
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ArgumentError(
                f"GPT: the width {config.width} is no multiple of the {config.heads} heads"
            )
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.Sequential(*(GPTBlock(config) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.width)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights of 0.02, and smaller where they add to the residual stream."""
        residual = 0.02 / (2 * self.config.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                adds = name.endswith(("projection.weight", "mlp.2.weight"))
                init.normal_(parameter, 0.0, residual if adds else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict the next token at each place: [batch, time] to [batch, time, vocabulary].

        Raises:
            ShapeError: the sequence is longer than the context.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.config.context:
            raise ShapeError(
                f"expected tokens [batch, time] with time at most {self.config.context} (context), "
                f"got shape {list(tokens.shape)}"
            )
        places = arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions(places))
        return self.norm(self.blocks(x)) @ self.tokens.weight.T
