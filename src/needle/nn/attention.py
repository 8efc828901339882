"""Multi-head attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from needle import dtypes
from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.nn import functional as F, init
from needle.nn.arguments import as_extent, as_probability
from needle.nn.linear import Linear
from needle.nn.module import Module
from needle.nn.parameter import Parameter
from needle.ops.attention import masked_softmax
from needle.ops.comparison import where
from needle.ops.contraction import linear, matmul
from needle.ops.engine import as_tensor, widen
from needle.ops.joining import split
from needle.ops.unstack import unstack
from needle.random import Generator
from needle.shapes import Shape, expect_axis
from needle.tensor import Tensor


class MultiheadAttention(Module):
    """Attention in several heads, each with its part of the features.

    ``concat(head₁, …) @ W_out + b_out`` with ``headᵢ = softmax(Qᵢ Kᵢᵀ / √d) Vᵢ`` and Q, K, V linear
    in query, key and value. Masks mean what they do in PyTorch's module: where a bool mask is True,
    attention is *forbidden*.

    Source: A. Vaswani et al., "Attention is all you need", 2017.

    Args:
        embed_dim: extent of the last axis of query, key, value and result.
        num_heads: number of heads, a divisor of ``embed_dim``.
        dropout: probability of zeroing an attention weight, in training.
        bias: whether the projections have biases.
        kdim: extent of the last axis of the key; ``embed_dim`` if not given.
        vdim: extent of the last axis of the value; ``embed_dim`` if not given.
        batch_first: whether the batch is axis 0, and the length axis 1.
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weights are drawn from (Xavier, uniform).

    Attributes:
        in_proj_weight: [embed_dim, 3 · embed_dim], for query, key and value, in this order; None
            where ``kdim`` or ``vdim`` differs from ``embed_dim``.
        q_proj_weight: then [embed_dim, embed_dim], with ``k_proj_weight``, [kdim, embed_dim], and
            ``v_proj_weight``, [vdim, embed_dim]; else None.
        in_proj_bias: [3 · embed_dim], zero at first; or None.
        out_proj: the `Linear` layer that mixes the heads.

    Raises:
        ArgumentError: ``embed_dim`` is no multiple of ``num_heads``.

    Example:
        >>> attention = ndl.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = ndl.ones((3, 5, 8))
        >>> y, weights = attention(x, x, x)
        >>> y.shape, weights.shape
        ((3, 5, 8), (3, 5, 5))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        dtype: Any = None,
        device: Any = None,
        generator: Generator | None = None,
    ) -> None:
        name = type(self).__name__
        n = self.embed_dim = as_extent(embed_dim, f"{name}: embed_dim")
        self.num_heads = as_extent(num_heads, f"{name}: num_heads")
        if n % self.num_heads:
            raise ArgumentError(
                f"{name}: {n} features (embed_dim) do not divide into {num_heads} heads"
            )
        self.kdim = n if kdim is None else as_extent(kdim, f"{name}: kdim")
        self.vdim = n if vdim is None else as_extent(vdim, f"{name}: vdim")
        self.dropout = as_probability(dropout, f"{name}: dropout")
        self.batch_first = batch_first
        drawn = {"dtype": dtype, "device": device, "generator": generator}
        self.in_proj_weight = self.q_proj_weight = self.k_proj_weight = self.v_proj_weight = None
        if self.kdim == self.vdim == n:
            self.in_proj_weight = Parameter(init.xavier_uniform((n, 3 * n), **drawn))
        else:
            self.q_proj_weight = Parameter(init.xavier_uniform((n, n), **drawn))
            self.k_proj_weight = Parameter(init.xavier_uniform((self.kdim, n), **drawn))
            self.v_proj_weight = Parameter(init.xavier_uniform((self.vdim, n), **drawn))
        self.in_proj_bias = (
            Parameter(init.zeros(3 * n, dtype=dtype, device=device)) if bias else None
        )
        self.out_proj = Linear(n, n, bias, **drawn)
        init.xavier_uniform_(self.out_proj.weight, generator=generator)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from each place of the query to the places of the key.

        Args:
            query: [target, batch, embed_dim] ([batch, target, embed_dim] with ``batch_first``), or
                [target, embed_dim].
            key: the same layout, with the source's length, and ``kdim`` as last axis.
            value: the key's shape, but for ``vdim`` as last axis.
            key_padding_mask: [batch, source], or [source]: True, or −∞, where the key is padding.
            need_weights: whether to return the attention weights; without, it takes less time.
            attn_mask: [target, source] or [batch · num_heads, target, source]: bools, True where
                attention is forbidden, or floats that are added to the scores.
            average_attn_weights: whether the weights are averaged over the heads.
            is_causal: whether place i sees only places 0 … i; no mask is needed for that.

        Returns:
            The result, of the query's shape, and the weights, [batch, target, source] or
            [batch, num_heads, target, source], or None.

        Raises:
            ShapeError: the shapes do not fit.
            DTypeError: a mask of integers.
        """
        query, key, value = as_tensor(query), as_tensor(key), as_tensor(value)
        is_single = query.ndim == 2
        self._check(query.shape, key.shape, value.shape)
        q, k, v = self._heads(query, key, value)
        mask = self._mask(key_padding_mask, attn_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = matmul(widen(q) / math.sqrt(q.shape[-1]), k.permute_dims((0, 1, 3, 2)))
            weights = masked_softmax(scores, mask, is_causal).astype(v.dtype, copy=False)
            weights = F.dropout(weights, dropout)
            y = matmul(weights, v)
            weights = weights.mean(axis=1) if average_attn_weights else weights
            weights = weights.squeeze(0) if is_single else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        y = y.permute_dims((0, 2, 1, 3)).reshape(y.shape[0], y.shape[2], self.embed_dim)
        y = self.out_proj(y)
        if is_single:
            return y.squeeze(0), weights
        return (y if self.batch_first else y.permute_dims((1, 0, 2))), weights

    def _check(self, query: Shape, key: Shape, value: Shape) -> None:
        layout = "[batch, length, embed_dim]" if self.batch_first else "[length, batch, embed_dim]"
        if len(query) not in (2, 3) or len(key) != len(query):
            raise ShapeError(
                f"expected query and key as {layout} or [length, embed_dim], "
                f"got {list(query)} and {list(key)}"
            )
        expect_axis(query, -1, self.embed_dim, "embed_dim")
        expect_axis(key, -1, self.kdim, "embed_dim" if self.kdim == self.embed_dim else "kdim")
        if value != (*key[:-1], self.vdim):
            expected = (
                f"the key's shape {list(key)}"
                if self.vdim == self.kdim
                else f"shape {[*key[:-1], self.vdim]}: the key's, with vdim as last axis"
            )
            raise ShapeError(f"expected a value of {expected}, got {list(value)}")
        batch = 0 if self.batch_first else 1
        if len(query) == 3 and query[batch] != key[batch]:
            raise ShapeError(
                f"expected query and key of one batch, got {query[batch]} and {key[batch]} "
                f"examples in {list(query)} and {list(key)}, which are read as {layout}"
            )

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return Q, K and V as [batch, num_heads, length, embed_dim / num_heads]."""
        bias = self.in_proj_bias
        if self.in_proj_weight is not None and query is key and key is value:
            # Self-attention: one product for all three.
            x = linear(self._batched(query), self.in_proj_weight, bias)
            batch, length, _ = x.shape
            x = x.reshape(batch, length, 3, self.num_heads, self.embed_dim // self.num_heads)
            return unstack(x.permute_dims((2, 0, 3, 1, 4)))
        weights: Sequence[Tensor]
        if self.in_proj_weight is not None:
            weights = split(self.in_proj_weight, self.embed_dim, axis=1)
        else:
            separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            weights = cast("tuple[Parameter, ...]", separate)
        biases = (None,) * 3 if bias is None else split(bias, self.embed_dim)
        parts = []
        for x, weight, b in zip((query, key, value), weights, biases, strict=True):
            y = linear(self._batched(x), weight, b)
            shape = (*y.shape[:2], self.num_heads, self.embed_dim // self.num_heads)
            parts.append(y.reshape(shape).permute_dims((0, 2, 1, 3)))
        return tuple(parts)

    def _batched(self, x: Tensor) -> Tensor:
        """Return ``x`` as [batch, length, embed_dim]."""
        if x.ndim == 2:
            return x.expand_dims(0)
        return x if self.batch_first else x.permute_dims((1, 0, 2))

    def _mask(self, padding: Any, attention: Any, q: Tensor, k: Tensor) -> Tensor | None:
        """Return both masks as one that is added to the scores, or True where allowed."""
        batch, heads, target, _ = q.shape
        source = k.shape[2]
        mask = None
        if attention is not None:
            mask = _as_mask(attention, "attn_mask")
            if mask.shape == (batch * heads, target, source):
                mask = mask.reshape(batch, heads, target, source)
            elif mask.shape != (target, source):
                raise ShapeError(
                    f"expected attn_mask as {[target, source]} (target, source) or "
                    f"{[batch * heads, target, source]} (batch · num_heads, target, source), "
                    f"got {list(mask.shape)}"
                )
        if padding is not None:
            pad = _as_mask(padding, "key_padding_mask")
            if pad.ndim == 1 and batch == 1:
                pad = pad.expand_dims(0)
            if pad.shape != (batch, source):
                raise ShapeError(
                    f"expected key_padding_mask as {[batch, source]} (batch, source), "
                    f"got {list(pad.shape)}"
                )
            pad = pad.reshape(batch, 1, 1, source)
            mask = pad if mask is None else _both(mask, pad)
        return mask

    def extra_repr(self) -> str:
        """Return the sizes and what is not as usual."""
        shown = [str(self.embed_dim), str(self.num_heads)]
        shown += [f"dropout={self.dropout}"] if self.dropout else []
        shown += [f"kdim={self.kdim}"] if self.kdim != self.embed_dim else []
        shown += [f"vdim={self.vdim}"] if self.vdim != self.embed_dim else []
        shown += ["batch_first=True"] if self.batch_first else []
        return ", ".join(shown)


def _as_mask(mask: Any, name: str) -> Tensor:
    """Return a mask as `scaled_dot_product_attention` takes it, where True allows."""
    tensor = as_tensor(mask)
    if tensor.dtype == dtypes.bool:
        return ~tensor
    if not dtypes.is_float(tensor.dtype):
        raise DTypeError(
            f"{name}: expected bools (True forbids) or floats (added to the scores), "
            f"got {tensor.dtype.name}; convert with astype('bool')"
        )
    return tensor


def _both(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == dtypes.bool and b.dtype == dtypes.bool:
        return a & b
    return _added(a) + _added(b)


def _added(mask: Tensor) -> Tensor:
    """Return a mask as what is added to the scores."""
    return where(mask, 0.0, -float("inf")) if mask.dtype == dtypes.bool else mask
