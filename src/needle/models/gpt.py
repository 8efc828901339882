"""A generative pre-trained transformer: GPT-2's architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from needle import nn
from needle.creation import arange
from needle.errors import ArgumentError, ShapeError
from needle.models.generation import (
    Decoder,
    KeyValueCache,
    as_prompts,
    check_options,
    evaluating,
    generate,
)
from needle.nn import functional as F, init
from needle.random import Generator
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

    def forward(self, x: Tensor, cache: KeyValueCache | None = None, layer: int = 0) -> Tensor:
        """Map [batch, time, width] to the same shape.

        Args:
            x: the sequence, or with a cache what follows the tokens in it.
            cache: keys and values of these, which are added to.
            layer: number of this layer in the cache.
        """
        batch, time, width = x.shape
        qkv = self.qkv(x).reshape(batch, time, 3, self.heads, width // self.heads)
        q, k, v = (part.squeeze(0) for part in qkv.permute_dims((2, 0, 3, 1, 4)).split(1))
        dropout = self.dropout_p if self.training else 0.0
        offset = None
        if cache is not None:
            k, v = cache.extend(layer, k, v)
            offset = cache.position
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, causal_offset=offset
        )
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

    def forward(self, x: Tensor, cache: KeyValueCache | None = None, layer: int = 0) -> Tensor:
        """Map [batch, time, width] to the same shape; see `CausalSelfAttention`."""
        x = x + self.attention(self.norm1(x), cache, layer)
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
        self.decoder = Decoder(self)
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

    def new_cache(self, batch: int) -> KeyValueCache:
        """Return an empty cache of keys and values for ``batch`` sequences."""
        c = self.config
        dtype = self.tokens.weight.dtype
        return KeyValueCache(c.layers, batch, c.heads, c.context, c.width // c.heads, dtype)

    def next_logits(self, tokens: Tensor, cache: KeyValueCache, count: Tensor | int) -> Tensor:
        """Add tokens to those in a cache, and predict the one that follows them.

        Args:
            tokens: [batch, time], behind what the cache holds.
            cache: from `new_cache`; advances by ``count``.
            count: how many of the tokens count, at least 1; others are padding at the end.

        Returns:
            [batch, vocabulary].

        Example:
            >>> config = ndl.models.GPTConfig(vocabulary=9, context=8, layers=1, heads=2, width=8)
            >>> model = ndl.models.GPT(config)
            >>> cache = model.new_cache(batch=1)
            >>> with ndl.no_grad():
            ...     logits = model.next_logits(ndl.asarray([[1, 2, 3]]), cache, 3)
            ...     whole = model(ndl.asarray([[1, 2, 3]]))[:, -1]
            >>> cache.position.item(), bool((abs(logits - whole) < 1e-5).all())
            (3, True)
        """
        x = self.tokens(tokens) + self.positions(cache.places(tokens.shape[1]))
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        cache.position[...] = cache.position + count
        last = x[:, 0] if tokens.shape[1] == 1 else x[:, count - 1]
        return self.norm(last) @ self.tokens.weight.T

    def generate(
        self,
        prompts: Tensor | Sequence[Sequence[int]],
        count: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: int | None = None,
        generator: Generator | None = None,
        compiled: bool = True,
    ) -> list[list[int]]:
        """Continue prompts token by token, in evaluation mode.

        Keys and values of earlier tokens are kept, so a token costs one forward pass of itself; the
        pass and the choice of the token are one native call. A sequence depends on its prompt, its
        number in the batch (by its draws) and the generator, not on the other sequences.

        Args:
            prompts: tokens [batch, time], or lists of tokens, which may differ in length.
            count: how many tokens to add to each.
            temperature: divides the logits; 0 takes the most probable token.
            top_k: draw from the k most probable tokens only.
            top_p: draw from the fewest tokens that have this probability together.
            stop: a token behind which a sequence ends.
            generator: of the draws; the default one if not given.
            compiled: False runs every op eagerly: the same tokens, but for rounding.

        Returns:
            The prompts, each with what follows it, up to and including ``stop``.

        Raises:
            ArgumentError: an option out of its range, an empty prompt, or a prompt that does not
                fit into the context together with what shall follow.
            ArgumentTypeError: tokens that are no integers.

        Example:
            >>> config = ndl.models.GPTConfig(vocabulary=9, context=8, layers=1, heads=2, width=8)
            >>> model = ndl.models.GPT(config)
            >>> [len(tokens) for tokens in model.generate([[1, 2], [3]], 4, top_k=5)]
            [6, 5]
        """
        c = self.config
        rows = as_prompts(prompts, c.vocabulary)
        longest = max(len(row) for row in rows)
        check_options(longest, count, c.context, c.vocabulary, temperature, top_k, top_p)
        with self.decoder.lock, evaluating(self):
            return generate(
                self.decoder,
                rows,
                count,
                context=c.context,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                stop=stop,
                generator=generator,
                compiled=compiled,
            )
