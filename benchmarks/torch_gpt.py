"""`needle.models.GPT`, written with PyTorch: parameters in the same order, a cache for decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm and around a residual connection."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def heads_of(self, x: torch.Tensor) -> Any:
        """Return queries, keys and values, each [batch, heads, time, width / heads]."""
        batch, time, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, width // self.heads)
        return parts.permute(2, 0, 3, 1, 4)

    def rest(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Return the block's result from what its attention gives."""
        x = x + self.dropout(self.projection(attended.transpose(1, 2).reshape(x.shape)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.heads_of(x)
        dropout = self.dropout.p if self.training else 0.0
        return self.rest(
            x, F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        )


class GPT(nn.Module):
    """Predicts the next token at each place; logits come as [batch · time, vocabulary]."""

    def __init__(
        self,
        vocabulary: int,
        context: int,
        layers: int,
        heads: int,
        width: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        shape = (1, heads, context, width // heads)
        self.cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(layers)]
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, 0.0, 0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return (self.norm(x) @ self.tokens.weight.T).flatten(0, 1)

    def next_token(self, token: torch.Tensor, at: int) -> torch.Tensor:
        """Return the most probable token behind one at a place, [1, 1] both: eagerly, attention
        reads only what has been written."""
        x = self.tokens(token) + self.positions.weight[at]
        for block, (keys, values) in zip(self.blocks, self.cache, strict=True):
            q, k, v = block.heads_of(x)
            keys[:, :, at : at + 1], values[:, :, at : at + 1] = k, v
            seen = slice(0, at + 1)
            x = block.rest(
                x, F.scaled_dot_product_attention(q, keys[:, :, seen], values[:, :, seen])
            )
        return (self.norm(x[:, -1]) @ self.tokens.weight.T).argmax(-1, keepdim=True)

    def next_token_anywhere(self, token: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """The same for a place that is a tensor, [1], so that one compiled program serves all."""
        x = self.tokens(token) + self.positions(at)
        mask = torch.arange(self.positions.num_embeddings) <= at[:, None]
        for block, (keys, values) in zip(self.blocks, self.cache, strict=True):
            q, k, v = block.heads_of(x)
            keys.index_copy_(2, at, k)
            values.index_copy_(2, at, v)
            x = block.rest(x, F.scaled_dot_product_attention(q, keys, values, attn_mask=mask))
        return (self.norm(x[:, -1]) @ self.tokens.weight.T).argmax(-1, keepdim=True)
