"""Scaled dot-product attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.ops.attend import attend
from needle.ops.attention_parts import dropout_threshold
from needle.ops.comparison import logical_and, logical_not, logical_or, where
from needle.ops.dropout import check_probability
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_float_tensor, as_tensor, promoted, widen
from needle.ops.movement import broadcast_to, permute_dims, reshape
from needle.ops.precision import Precision
from needle.ops.record import composite
from needle.ops.reduce import all, any
from needle.ops.samples import Sample, bad, bools, integers, normal
from needle.ops.scan import cumulative_sum
from needle.ops.softmax import softmax
from needle.shapes import Shape, broadcast_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor

_NAME = "scaled_dot_product_attention"


def _check(q: Shape, k: Shape, v: Shape, enable_gqa: bool) -> None:
    if min(len(q), len(k), len(v)) < 2:
        raise ShapeError(
            f"{_NAME}: query, key and value need at least two axes, [..., length, features]; got "
            f"{list(q)}, {list(k)} and {list(v)}"
        )
    if q[-1] != k[-1]:
        raise ShapeError(
            f"{_NAME}: query {list(q)} and key {list(k)} must have the same last axis (features), "
            f"got {q[-1]} and {k[-1]}"
        )
    if k[-2] != v[-2]:
        raise ShapeError(
            f"{_NAME}: key {list(k)} and value {list(v)} must have the same length (last axis but "
            f"one), got {k[-2]} and {v[-2]}"
        )
    if not enable_gqa:
        return
    if min(len(q), len(k), len(v)) < 3 or k[-3] != v[-3] or not k[-3] or q[-3] % k[-3]:
        raise ShapeError(
            f"{_NAME}: with enable_gqa, axis -3 holds heads, as many in key as in value, and a "
            f"divisor of those of the query; got {list(q)}, {list(k)} and {list(v)}"
        )


def weights_shape(q: Shape, k: Shape, v: Shape, enable_gqa: bool) -> Shape:
    """Return the shape of the attention weights: [..., H, L, S].

    Raises:
        ShapeError: the shapes do not fit.
    """
    _check(q, k, v, enable_gqa)
    if enable_gqa:
        batch = broadcast_shapes(q[:-3], k[:-3], op=f"{_NAME}: axes before the heads")
        return (*batch, *q[-3:-1], k[-2])
    batch = broadcast_shapes(q[:-2], k[:-2], op=f"{_NAME}: axes before the length")
    return (*batch, q[-2], k[-2])


def _as_mask(attn_mask: Any, scores: Shape) -> Tensor:
    mask = as_tensor(attn_mask)
    if mask.dtype != dtypes.bool and not dtypes.is_float(mask.dtype):
        raise DTypeError(
            f"{_NAME}: attn_mask must be bool (True allows) or floats (added to the scores), got "
            f"{mask.dtype.name}; write mask != 0"
        )
    if broadcast_shapes(mask.shape, scores, op=f"{_NAME}: attn_mask and scores") != scores:
        raise ShapeError(
            f"{_NAME}: attn_mask {list(mask.shape)} does not broadcast to the scores {list(scores)}"
        )
    return mask


def _heads(x: Tensor, lead: Shape) -> Tensor:
    """Return ``[..., H, n, e]`` as `attend` takes it: [B, n, H, e]."""
    full: Shape = (*lead, *x.shape[-2:])
    x = x if x.shape == full else broadcast_to(x, full)
    four = x if x.ndim == 4 else reshape(x, (math.prod(lead[:-1]), *full[-3:]))
    return _turned(four)


def _turned(x: Tensor) -> Tensor:
    """Exchange length and heads."""
    return apply(permute_dims, x, axes=(0, 2, 1, 3))


def _four_axes(mask: Tensor, scores: Shape) -> Tensor:
    """Return a mask with four axes, those before the heads as one."""
    shape = (1,) * (len(scores) - mask.ndim) + mask.shape
    *batch, heads, length, source = shape
    if math.prod(batch) != 1 and batch != list(scores[:-3]):
        mask = broadcast_to(reshape(mask, shape), (*scores[:-3], heads, length, source))
        batch = list(scores[:-3])
    return reshape(mask, (math.prod(batch), heads, length, source))


def _causal(length: int, source: int) -> Tensor:
    """Return ``[length, source]``: whether the key stands at or before the query's position."""

    def positions(n: int) -> Tensor:
        return cumulative_sum(broadcast_to(as_tensor(1), (n,)))

    result: Tensor = reshape(positions(length), (length, 1)) >= positions(source)
    return result


def _masked(scores: Tensor, mask: Tensor | None, is_causal: bool) -> tuple[Tensor, Tensor | None]:
    """Return the scores with −∞ where attention is forbidden, and which queries may attend at all.

    A query to which all keys are forbidden would have no softmax; it is left unmasked here.
    """
    length, source = scores.shape[-2:]
    allowed = _causal(length, source) if is_causal else None
    if mask is None:
        # Every query may attend to the first key.
        return (scores, None) if allowed is None else (where(allowed, scores, -math.inf), None)
    if mask.dtype == dtypes.bool:
        allowed = mask if allowed is None else logical_and(mask, allowed)
        is_alive = any(allowed, -1, keepdims=True)
        return where(logical_or(allowed, logical_not(is_alive)), scores, -math.inf), is_alive
    bias = widen(mask).astype(scores.dtype, copy=False)
    if allowed is not None:
        bias = where(allowed, bias, -math.inf)
    is_alive = logical_not(all(bias == -math.inf, -1, keepdims=True))
    return scores + where(is_alive, bias, 0.0), is_alive


def masked_softmax(scores: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Return attention weights: a softmax over the keys, 0 for queries that may attend to none.

    Args:
        scores: [..., L, S].
        mask: broadcasts to the scores; True where attention is allowed, or what is added to them.
        is_causal: whether query i is allowed only keys 0 … i.
    """
    scores, is_alive = _masked(scores, mask, is_causal)
    weights = softmax(scores, -1)
    return weights if is_alive is None else where(is_alive, weights, 0.0)


def _samples() -> Iterable[Sample]:
    q, k, v = normal(2, 3, 4, 5), normal(2, 3, 6, 5, seed=1), normal(2, 3, 6, 2, seed=2)
    yield Sample((q, k, v))
    yield Sample((q[0, 0], k[0, 0], v[0, 0]), label="one head")
    yield Sample((q, k, v), {"scale": 0.3}, label="scale")
    yield Sample((q, k, v), {"is_causal": True}, label="causal")
    yield Sample((k, q, normal(2, 3, 4, 2)), {"is_causal": True}, label="causal, longer query")
    mask = bools(4, 6)
    mask[:, 0] = True
    yield Sample((q, k, v, mask), label="bool mask")
    yield Sample((q, k, v, normal(2, 1, 4, 6)), label="additive mask")
    dead = mask.copy()
    dead[1] = False
    yield Sample((q, k, v, dead), label="query without keys")
    additive = np.where(dead, 0.5, -np.inf).tolist()
    yield Sample((q, k, v, additive), label="query without keys, additive", has_peer=False)
    yield Sample(
        (
            normal(2, 6, 4, 5),
            normal(2, 3, 7, 5, seed=1),
            normal(2, 3, 7, 5, seed=2),
            bools(6, 4, 7),
        ),
        {"enable_gqa": True},
        label="grouped heads",
    )
    yield Sample((q, k[:, :, :0], v[:, :, :0]), label="no keys", has_peer=False)
    yield Sample((q, k[0], v[:1]), label="broadcast")
    yield Sample((normal(2, 1, 3, 4, 5), normal(3, 1, 6, 5), v[0], normal(2, 2, 1, 4, 6)[:, :1]),
                 label="five axes")  # fmt: skip
    yield Sample(
        (q, k, v), {"is_causal": True, "causal_offset": np.array(2)}, label="offset", has_peer=False
    )
    state = np.array([1, 2, 3, 4, 5, 6], dtype=np.uint32)
    yield Sample(
        (q, k, v), {"dropout_p": 0.5, "dropout_state": state}, label="dropout", has_peer=False
    )
    yield bad(ShapeError, "last axis", q, normal(2, 3, 6, 4), v)
    yield bad(ShapeError, "same length", q, k, normal(2, 3, 5, 2))
    yield bad(ShapeError, "two axes", normal(5), k, v)
    yield bad(ShapeError, "do not broadcast", q, normal(2, 2, 6, 5), v)
    yield bad(ShapeError, "enable_gqa", normal(2, 4, 4, 5), k, v, enable_gqa=True)
    yield bad(ShapeError, "attn_mask", q, k, v, bools(4, 5))
    yield bad(ShapeError, "attn_mask", q, k, v, bools(5, 2, 3, 4, 6))
    yield bad(DTypeError, "attn_mask", q, k, v, integers(0, 2, 4, 6))
    yield bad(ArgumentError, "from 0 to 1", q, k, v, dropout_p=-0.1)
    yield bad(ArgumentError, "needs dropout_state", q, k, v, dropout_p=0.5)
    yield bad(ArgumentError, "is_causal=True", q, k, v, causal_offset=np.array(2))
    yield bad(ShapeError, "one int64 number", q, k, v, is_causal=True, causal_offset=np.arange(2))


@composite(
    samples=_samples, peer="nn.functional.scaled_dot_product_attention", precision=Precision.LOW
)
def scaled_dot_product_attention(
    query: TensorLike,
    key: TensorLike,
    value: TensorLike,
    attn_mask: TensorLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal_offset: TensorLike | None = None,
    dropout_state: TensorLike | None = None,
) -> Tensor:
    """Attention: ``softmax(scale · Q Kᵀ + mask) V``.

    Computed tile by tile: memory grows with the lengths, not with their product. Gradients are,
    too, but for that by a mask of floats, and those of second order. A row's bits depend on neither
    the batch, the other queries nor the number of threads; a query that is the only one is summed
    in another order.

    Sources: A. Vaswani et al., "Attention Is All You Need", 2017; T. Dao et al., "FlashAttention:
    Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022.

    Args:
        query: Q, [..., H, L, E]; axes before L broadcast with those of key and value.
        key: K, [..., H, S, E].
        value: V, [..., H, S, Ev]. 16-bit floats are computed in float32.
        attn_mask: broadcasts to [..., H, L, S]: bools, True where attention is allowed, or floats
            that are added to the scores (−∞ forbids). A query to which all keys are forbidden gets
            0, without gradients.
        dropout_p: probability with which attention weights are zeroed; the others are divided by
            1 − p.
        is_causal: whether query i is allowed only keys 0 … i; with ``attn_mask``, both hold.
        scale: 1/√E if not given.
        enable_gqa: whether key and value may have fewer heads, each of which then serves a group of
            neighbouring query heads.
        causal_offset: int64, 0-d: how many keys stand before that of query 0, as when keys are
            kept from call to call; query i is then allowed keys 0 … i + offset.
        dropout_state: state of a generator; needed for ``dropout_p`` above 0.
            `needle.nn.functional.scaled_dot_product_attention` takes it itself.

    Returns:
        [..., H, L, Ev].

    Raises:
        ShapeError: extents that must be equal differ.
        DTypeError: a mask of integers.
        ArgumentError: ``dropout_p`` is no probability, or needs ``dropout_state``; an offset
            without a causal mask.

    Example:
        >>> q = ndl.zeros((1, 2, 4))
        >>> v = ndl.asarray([[[1.0], [3.0]]])
        >>> ndl.scaled_dot_product_attention(q, q, v, is_causal=True)
        Tensor([[[1.],
                 [2.]]])
    """
    q, k, v = promoted(*(as_float_tensor(t) for t in (query, key, value)))
    shape = weights_shape(q.shape, k.shape, v.shape, enable_gqa)
    dtype = q.dtype
    factor = 1 / math.sqrt(q.shape[-1] or 1) if scale is None else scale
    mask = None if attn_mask is None else _as_mask(attn_mask, shape)
    check_probability(dropout_p, _NAME)
    if dropout_p and dropout_state is None:
        raise ArgumentError(
            f"{_NAME}: dropout_p needs dropout_state, the state of a generator; the function of "
            "this name in needle.nn.functional takes it from one"
        )
    if causal_offset is not None and not is_causal:
        raise ArgumentError(f"{_NAME}: causal_offset moves a causal mask; pass is_causal=True too")
    own = -3 if enable_gqa else -2  # with grouped heads, those are no axis that broadcasts
    lead = broadcast_shapes(*(x.shape[:own] for x in (q, k, v)), op=_NAME)
    if enable_gqa:
        heads, groups = (*lead, q.shape[-3]), (*lead, k.shape[-3])
    else:
        heads = groups = lead or (1,)
    if mask is not None:
        mask = _four_axes(mask, (*heads, *shape[-2:]))
    drops = dropout_p if dropout_threshold(dropout_p) < 2**32 else 0.0
    out, _ = attend(
        _heads(q, heads),
        _heads(k, groups),
        _heads(v, groups),
        mask,
        causal_offset,
        dropout_state,
        causal=is_causal,
        scale=factor,
        dropout=drops,
    )
    result = _turned(out)
    if dropout_p and not drops:  # all weights
        result = where(as_tensor(False), result, 0.0)
    shape = (*(heads if enable_gqa else lead), q.shape[-2], v.shape[-1])
    result = result if result.shape == shape else reshape(result, shape)
    return result.astype(dtype, copy=False)


__all__ = ["scaled_dot_product_attention"]
