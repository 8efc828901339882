"""Attention by its matrices of weights: in NumPy for references, in tensors for second gradients.

Heads stand in five axes here, [batch, groups, heads of a group, length, features].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle.ops.comparison import where
from needle.ops.contraction import matmul
from needle.ops.engine import as_tensor
from needle.ops.movement import broadcast_to, permute_dims, reshape
from needle.ops.random import random_bits
from needle.ops.reduce import sum
from needle.ops.scan import cumulative_sum
from needle.ops.transcendental import exp
from needle.shapes import Shape

if TYPE_CHECKING:
    from needle.tensor import Tensor

#: Words of random bits that a row of weights begins at multiples of: a block of the cipher.
WORDS_PER_BLOCK = 4


@dataclass(frozen=True)
class Options:
    """The attributes of both ops.

    Attributes:
        masked: whether there is a mask, first of the further inputs.
        shifted: whether there is an offset of the causal mask, next of them.
        causal: whether query i is allowed only the keys up to i + offset.
        scale: what scores are multiplied by.
        dropout: probability of zeroing a weight; if above 0, the last of the further inputs is the
            state of a generator.
    """

    masked: bool = False
    shifted: bool = False
    causal: bool = False
    scale: float = 1.0
    dropout: float = 0.0

    @property
    def threshold(self) -> int:
        """Weights are kept whose random word is at least this."""
        return dropout_threshold(self.dropout)

    def name(self, rest: Sequence[Any]) -> dict[str, Any]:
        """Return the further inputs by their names: mask, offset, state."""
        named = zip(
            ("mask", "offset", "state"), (self.masked, self.shifted, self.dropout > 0), strict=True
        )
        return dict(zip([n for n, there in named if there], rest, strict=True))


def dropout_threshold(p: float) -> int:
    """Return the least random word with which a weight is kept."""
    return round(p * 2**32)


def padded_row(keys: int) -> int:
    """Return the distance of two rows of weights in the stream of random words.

    Element (b, h, i, j) of the weights takes word ``((b · H + h) · L + i) · padded_row(S) + j``.
    """
    return -(-keys // WORDS_PER_BLOCK) * WORDS_PER_BLOCK


TENSORS = SimpleNamespace(
    matmul=matmul,
    exp=exp,
    where=where,
    reshape=reshape,
    permute_dims=permute_dims,
    sum=sum,
    arange=lambda n: cumulative_sum(broadcast_to(as_tensor(1), (n,))) - 1,
    bits=lambda state, shape: random_bits(state, shape)[0],
)
ARRAYS = SimpleNamespace(
    matmul=np.matmul,
    exp=np.exp,
    where=np.where,
    reshape=np.reshape,
    permute_dims=np.transpose,
    sum=lambda x, axis, keepdims=False: np.add.reduce(x, axis=axis, keepdims=keepdims),
    arange=np.arange,
    bits=lambda state, shape: random_bits.op.reference(state, shape=shape)[0],
)


def split_heads(xp: Any, x: Any, groups: int) -> Any:
    """Return [B, n, H, e] as [B, groups, H / groups, n, e]."""
    b, n, h, e = x.shape
    return xp.permute_dims(xp.reshape(x, (b, n, groups, h // groups, e)), (0, 2, 3, 1, 4))


def join_heads(xp: Any, x: Any) -> Any:
    """Undo `split_heads`."""
    b, groups, each, n, e = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 3, 1, 2, 4)), (b, n, groups * each, e))


def swapped(xp: Any, x: Any) -> Any:
    """Return matrices turned round."""
    return xp.permute_dims(x, (0, 1, 2, 4, 3))


def _in_groups(xp: Any, x: Any, groups: int) -> Any:
    """Return what has axes [b, H or 1, …] with the heads in groups."""
    b, h, *rest = x.shape
    g = groups if h > 1 else 1
    return xp.reshape(x, (b, g, h // g, *rest))


def scores_of(xp: Any, q: Any, k: Any, extra: dict[str, Any], o: Options) -> Any:
    """Return the scores, −∞ where attention is forbidden."""
    groups, dtype = k.shape[1], q.dtype
    scores = xp.matmul(q * dtype.type(o.scale), swapped(xp, k))
    mask = extra.get("mask")
    if mask is not None:
        mask = _in_groups(xp, mask, groups)
        is_bool = mask.dtype == dtypes.bool
        scores = xp.where(mask, scores, dtype.type(-math.inf)) if is_bool else scores + mask
    if o.causal:
        length, source = scores.shape[-2:]
        last = xp.reshape(xp.arange(length), (length, 1)) + extra.get("offset", 0)
        scores = xp.where(xp.arange(source) <= last, scores, dtype.type(-math.inf))
    return scores


def dropper(xp: Any, shape: Shape, groups: int, extra: dict[str, Any], o: Options) -> Any:
    """Return the function that drops weights, or cotangents of weights, of [B, H, L, S]."""
    if not o.dropout:
        return lambda x: x
    bits = xp.bits(extra["state"], (*shape[:-1], padded_row(shape[-1])))[..., : shape[-1]]
    kept = _in_groups(xp, bits >= np.uint32(o.threshold), groups)

    def drop(x: Any) -> Any:
        zero = x.dtype.type(0)
        return xp.where(kept, x * x.dtype.type(1 / (1 - o.dropout)), zero)

    return drop


class WeightParts:
    """The matrices that the gradients are made of, [batch, groups, heads, L, S]."""

    def __init__(
        self,
        g: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lse: Tensor,
        delta: Tensor,
        extra: dict[str, Any],
        o: Options,
    ) -> None:
        groups = key.shape[2]
        xp = TENSORS
        self.groups = groups
        self.q, self.k, self.v, self.g = (
            split_heads(xp, x, groups) for x in (query, key, value, g)
        )
        b, length, heads, _ = query.shape
        self.weights_shape = (b, heads, length, key.shape[1])
        self.drop = dropper(xp, self.weights_shape, groups, extra, o)
        self.weights = exp(scores_of(xp, self.q, self.k, extra, o) - self.along(lse))
        #: dP − delta
        self.centred = self.drop(matmul(self.g, swapped(xp, self.v))) - self.along(delta)
        #: dS
        self.slopes = self.weights * self.centred

    def along(self, x: Tensor) -> Tensor:
        """Return [B, H, L] as it broadcasts to the weights."""
        b, heads, length = x.shape
        return reshape(x, (b, self.groups, heads // self.groups, length, 1))

    def joined(self, x: Tensor) -> Tensor:
        """Return a matrix as [B, H, L, S]."""
        return reshape(x, self.weights_shape)

    def for_rows(self, x: Tensor) -> Tensor:
        """Return the sums of a matrix's rows as [B, H, L]."""
        return sum(self.joined(x), -1)


def second_parts(
    p: WeightParts, g: tuple[Tensor, Tensor, Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return a, b, c, Y and U; see `needle.ops.attend`."""
    a, b, c = (split_heads(TENSORS, x, p.groups) for x in g)
    y = (matmul(a, swapped(TENSORS, p.k)) + matmul(p.q, swapped(TENSORS, b))) * scale
    z = matmul(p.g, swapped(TENSORS, c))
    return a, b, c, y, p.weights * (y * p.centred + p.drop(z))
