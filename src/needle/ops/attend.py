"""Attention without its matrix of weights: one op, and one for its gradients.

A row of weights is a softmax; of it the op keeps the logarithm of its sum, so that the gradients'
op computes weights again where it needs them, tile by tile: ``P = exp(S − lse)``. With ``dP`` the
cotangent of the weights, that of the scores is ``dS = P · (dP − delta)``, where ``delta`` is the
row's ``Σ P · dP``, which equals ``Σ g · out``: a number for each row. Derivatives of higher order
are written with matrices of weights.

Source: T. Dao, D. Fu, S. Ermon, A. Rudra, C. Ré, "FlashAttention: Fast and Memory-Efficient Exact
Attention with IO-Awareness", 2022.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.ops.attention_parts import (
    ARRAYS,
    TENSORS,
    Options,
    WeightParts,
    dropper,
    join_heads,
    scores_of,
    second_parts,
    split_heads,
    swapped,
)
from needle.ops.attention_samples import (
    state_words,
    torch_attend,
    torch_slopes,
    triple,
    variants,
)
from needle.ops.contraction import matmul
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_float_tensor, as_tensor, promoted, widen
from needle.ops.movement import permute_dims
from needle.ops.random import STATE_WORDS
from needle.ops.record import Kind, joint, op
from needle.ops.reduce import sum, sum_to_shape
from needle.ops.samples import Array, Sample, bad, bools, integers, normal
from needle.shapes import Shape, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from needle.tensor import Tensor

# Shapes and dtypes


def _check(
    name: str, q: Spec, k: Spec, v: Spec, rest: Sequence[Spec], o: Options
) -> tuple[Shape, Shape]:
    """Return the shapes of the result and of what there is for each row; raise if inputs misfit."""
    if not len(q.shape) == len(k.shape) == len(v.shape) == 4:
        raise ShapeError(
            f"{name}: query, key and value have four axes, [batch, length, heads, features]; got "
            f"{list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        )
    b, length, heads, width = q.shape
    source, groups = k.shape[1:3]
    fits = k.shape == (b, source, groups, width) and v.shape[:3] == k.shape[:3]
    if not fits or not groups or heads % groups:
        raise ShapeError(
            f"{name}: for a query {list(q.shape)}, [batch, length, heads, features], the key must "
            "be [batch, source, groups, features] and the value [batch, source, groups, any], with "
            f"groups a divisor of the heads; got {list(k.shape)} and {list(v.shape)}"
        )
    if q.dtype not in (dtypes.float32, dtypes.float64) or not q.dtype == k.dtype == v.dtype:
        raise DTypeError(
            f"{name}: query, key and value must all be float32, or float64; got {q.dtype.name}, "
            f"{k.dtype.name} and {v.dtype.name}; convert with astype()"
        )
    if not 0 <= o.dropout < 1 or o.threshold == 2**32:
        raise ArgumentError(
            f"{name}: dropout, the probability of zeroing a weight, must be at least 0 and less "
            f"than 1, got {o.dropout}"
        )
    weights = (b, heads, length, source)
    extra = o.name(rest)
    if "mask" in extra:
        _check_mask(name, extra["mask"], weights, q.dtype)
    if "offset" in extra and (extra["offset"].shape or extra["offset"].dtype != dtypes.int64):
        found = extra["offset"]
        raise ShapeError(
            f"{name}: the offset of the causal mask is one int64 number, got {found.dtype.name} of "
            f"shape {list(found.shape)}"
        )
    state = extra.get("state")
    if state is not None and (state.shape != (STATE_WORDS,) or state.dtype != dtypes.uint32):
        raise DTypeError(
            f"{name}: the state of a generator is uint32 of shape [{STATE_WORDS}], got "
            f"{state.dtype.name} of shape {list(state.shape)}; take it from "
            "ndl.random.Generator(seed).state"
        )
    return (b, length, heads, v.shape[3]), (b, heads, length)


def _check_mask(name: str, mask: Spec, weights: Shape, dtype: Any) -> None:
    if mask.dtype not in (dtypes.bool, dtype):
        raise DTypeError(
            f"{name}: a mask holds bools, or {dtype.name} as the query does; got {mask.dtype.name}"
        )
    pairs = zip(mask.shape, weights, strict=False)
    if len(mask.shape) != 4 or any(m not in (1, w) for m, w in pairs):
        raise ShapeError(
            f"{name}: a mask has four axes, each 1 or that of the weights {list(weights)}, got "
            f"{list(mask.shape)}"
        )


def _options(rest: Sequence[Any], attrs: dict[str, Any]) -> tuple[Options, dict[str, Any]]:
    """Return the attributes, and the further inputs by name."""
    o = Options(**attrs)
    return o, o.name(rest)


# Forward


def _infer_attend(
    query: Spec,
    key: Spec,
    value: Spec,
    *rest: Spec,
    masked: bool,
    shifted: bool,
    causal: bool,
    scale: float,
    dropout: float,
) -> tuple[Spec, Spec]:
    o = Options(masked, shifted, causal, scale, dropout)
    out, rows = _check("attend", query, key, value, rest, o)
    return Spec(out, query.dtype), Spec(rows, query.dtype)


def _attend(query: Array, key: Array, value: Array, *rest: Array, **attrs: Any) -> Any:
    o, extra = _options(rest, attrs)
    groups = key.shape[2]
    q, k, v = (split_heads(np, x, groups) for x in (query, key, value))
    scores = scores_of(ARRAYS, q, k, extra, o)
    top = np.max(scores, axis=-1, keepdims=True, initial=-math.inf)
    safe = np.where(top == -math.inf, top.dtype.type(0), top)
    weights = np.exp(scores - safe)
    total = np.add.reduce(weights, axis=-1, keepdims=True)
    lse = np.where(total == 0, top.dtype.type(0), safe + np.log(total))
    b, length, heads, _ = query.shape
    drop = dropper(ARRAYS, (b, heads, length, key.shape[1]), groups, extra, o)
    out = np.matmul(drop(weights / np.where(total == 0, total.dtype.type(1), total)), v)
    return join_heads(np, out), lse.reshape(b, heads, length)


def _attend_vjp(
    g: tuple[Tensor, Tensor],
    out: tuple[Tensor, Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rest: tuple[Tensor, ...],
    attrs: dict[str, Any],
) -> Any:
    delta = _delta(g, out)
    return apply(attend_slopes, g[0], query, key, value, out[1], delta, *rest, **attrs)


def _delta(g: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor]) -> Tensor:
    """Return what is taken from the cotangents of a row of weights; lse moves scores likewise."""
    result: Tensor = permute_dims(sum(g[0] * out[0], -1), (0, 2, 1)) - g[1]
    return result


def _attend_vjp_rest(
    g: tuple[Tensor, Tensor],
    out: tuple[Tensor, Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rest: tuple[Tensor, ...],
    attrs: dict[str, Any],
) -> Tensor:
    """Return the cotangent of a mask that is added, the only further input of floats."""
    o, extra = _options(rest, attrs)
    parts = WeightParts(g[0], query, key, value, out[1], _delta(g, out), extra, o)
    return sum_to_shape(parts.joined(parts.slopes), extra["mask"].shape)


def _attend_samples() -> Iterable[Sample]:
    for label, inputs, rest, kwargs in variants():
        yield Sample((*inputs, *rest), kwargs, label=label, has_peer="dropout" not in kwargs)
    q, k, v = triple()
    yield Sample((q[:0], k[:0], v[:0]), label="empty")
    yield bad(ShapeError, "four axes", q[0], k[0], v[0])
    yield bad(ShapeError, "divisor of the heads", q, k[:, :, :2], v[:, :, :2])
    yield bad(ShapeError, "source, groups", q, k, v[:, :5])
    yield bad(ShapeError, "four axes, each 1", q, k, v, bools(4, 6))
    yield bad(ShapeError, "four axes, each 1", q, k, v, bools(2, 3, 4, 5))
    yield bad(DTypeError, "holds bools", q, k, v, integers(0, 2, 2, 3, 4, 6))
    yield bad(ShapeError, "one int64 number", q, k, v, None, np.arange(2), causal=True)
    yield bad(ArgumentError, "causal", q, k, v, None, np.array(2))
    yield bad(ArgumentError, "less than 1", q, k, v, None, None, state_words(), dropout=1.0)
    yield bad(ArgumentError, "state", q, k, v, dropout=0.5)
    yield bad(DTypeError, "state of a generator", q, k, v, None, None, np.arange(6), dropout=0.5)


@op(
    kind=Kind.ATTENTION,
    infer=_infer_attend,
    reference=_attend,
    vjp={**joint(_attend_vjp, "query", "key", "value"), "rest": _attend_vjp_rest},
    samples=_attend_samples,
    flops=lambda q, k, v, *rest, **attrs: _products_flops(q, k, v, attrs, 1, 1),
    is_method=False,
    peer=torch_attend,
)
def attend(
    query: TensorLike,
    key: TensorLike,
    value: TensorLike,
    mask: TensorLike | None = None,
    offset: TensorLike | None = None,
    state: TensorLike | None = None,
    causal: bool = False,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithms of its sums: what `scaled_dot_product_attention` comes down to.

    ``softmax(scale · Q Kᵀ + mask) V``, of which the matrix of weights is never in memory. The axes
    stand as a projection leaves them, with the heads behind the length.

    Args:
        query: Q, [B, L, H, E]. 16-bit floats are computed in float32, and so is the result.
        key: K, [B, S, G, E], with G a divisor of H: a head for each group of query heads.
        value: V, [B, S, G, Ev].
        mask: four axes, each 1 or that of [B, H, L, S]: bools, True where attention is allowed, or
            floats that are added to the scores (−∞ forbids).
        offset: int64, 0-d: how many keys stand before the first query's own; for ``causal``.
        state: of a generator, for ``dropout``. Element (b, h, i, j) of the weights takes word
            ``((b · H + h) · L + i) · 4⌈S/4⌉ + j`` of the stream.
        causal: whether query i is allowed only keys 0 … i + offset.
        scale: what scores are multiplied by.
        dropout: probability of zeroing a weight; the others are divided by 1 − dropout.

    Returns:
        The result, [B, L, H, Ev], and for each row ``ln Σ exp(scores)``, [B, H, L]. A row without
        scores above −∞ is 0, and so is its logarithm: all weights are then 0 in the gradients, too.

    Raises:
        ShapeError: extents that do not fit.
        DTypeError: a mask, offset or state of another dtype.
        ArgumentError: an offset without ``causal``, a probability that is none, or no state for it.

    Example:
        >>> q, v = ndl.zeros((1, 2, 1, 4)), ndl.asarray([[[[1.0]], [[3.0]]]])
        >>> out, lse = ndl.attend(q, q, v, causal=True)
        >>> out[0, :, 0, 0].tolist()
        [1.0, 2.0]
    """
    tensors = _widened(query, key, value)
    rest, attrs = _rest("attend", mask, offset, state, tensors[0], causal, scale, dropout)
    result: Any = apply(attend, *tensors, *rest, **attrs)
    return result


def _widened(*values: TensorLike) -> tuple[Tensor, ...]:
    return promoted(*(widen(as_float_tensor(x)) for x in values))


def _rest(
    name: str,
    mask: TensorLike | None,
    offset: TensorLike | None,
    state: TensorLike | None,
    query: Tensor,
    causal: bool,
    scale: float,
    dropout: float,
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the further inputs and the attributes."""
    if offset is not None and not causal:
        raise ArgumentError(f"{name}: an offset is that of a causal mask; pass causal=True as well")
    if dropout > 0 and state is None:
        raise ArgumentError(
            f"{name}: dropout needs the state of a generator: ndl.random.Generator(seed).state"
        )
    rest: list[Tensor] = []
    if mask is not None:
        m = as_tensor(mask)
        rest.append(m.astype(query.dtype, copy=False) if dtypes.is_float(m.dtype) else m)
    if offset is not None:
        shift = as_tensor(offset)
        is_integer = dtypes.is_integer(shift.dtype)
        rest.append(shift.astype(dtypes.int64, copy=False) if is_integer else shift)
    if dropout > 0 and state is not None:
        rest.append(as_tensor(state))
    o = Options(mask is not None, offset is not None, bool(causal), float(scale), float(dropout))
    return rest, dict(vars(o))


def _products_flops(
    q: Spec, k: Spec, v: Spec, attrs: dict[str, Any], by_key: int, by_value: int
) -> int:
    """Return the operations of products with keys and values; of a causal mask those it leaves."""
    b, length, heads, width = q.shape
    source = k.shape[1]
    pairs = length * source
    if attrs["causal"] and not attrs["shifted"]:
        short = min(length, source)
        pairs = short * (short + 1) // 2 + (length - short) * source
    return 2 * b * heads * pairs * (by_key * width + by_value * v.shape[3])


# Backward


def _infer_slopes(
    cotangent: Spec,
    query: Spec,
    key: Spec,
    value: Spec,
    lse: Spec,
    delta: Spec,
    *rest: Spec,
    masked: bool,
    shifted: bool,
    causal: bool,
    scale: float,
    dropout: float,
) -> tuple[Spec, Spec, Spec]:
    name = "attend_slopes"
    o = Options(masked, shifted, causal, scale, dropout)
    out, rows = _check(name, query, key, value, rest, o)
    for what, spec, shape in (("cotangent", cotangent, out), ("lse", lse, rows)):
        _check_like(name, what, spec, Spec(shape, query.dtype))
    _check_like(name, "delta", delta, Spec(rows, query.dtype))
    return query, key, value


def _check_like(name: str, what: str, spec: Spec, expected: Spec) -> None:
    if spec.shape != expected.shape or spec.dtype != expected.dtype:
        raise ShapeError(
            f"{name}: {what} must be {expected.dtype.name} of shape {list(expected.shape)}, got "
            f"{spec.dtype.name} of shape {list(spec.shape)}"
        )


def _attend_slopes(
    cotangent: Array,
    query: Array,
    key: Array,
    value: Array,
    lse: Array,
    delta: Array,
    *rest: Array,
    **attrs: Any,
) -> Any:
    o, extra = _options(rest, attrs)
    groups = key.shape[2]
    q, k, v, g = (split_heads(np, x, groups) for x in (query, key, value, cotangent))
    b, length, heads, _ = query.shape
    drop = dropper(ARRAYS, (b, heads, length, key.shape[1]), groups, extra, o)
    column = (b, groups, heads // groups, length, 1)
    weights = np.exp(scores_of(ARRAYS, q, k, extra, o) - lse.reshape(column))
    slopes = weights * (drop(np.matmul(g, swapped(ARRAYS, v))) - delta.reshape(column))
    slopes = slopes * slopes.dtype.type(o.scale)

    def gathered(x: Array, y: Array) -> Array:
        """Return the sums of xᵀ y over the heads of a group."""
        product = np.matmul(swapped(ARRAYS, x), y)
        return join_heads(ARRAYS, np.add.reduce(product, axis=2, keepdims=True))

    dq = join_heads(ARRAYS, np.matmul(slopes, k))
    return dq, gathered(slopes, q), gathered(drop(weights), g)


def _slopes_vjp(
    g: tuple[Tensor, Tensor, Tensor],
    cotangent: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    delta: Tensor,
    rest: tuple[Tensor, ...],
    attrs: dict[str, Any],
) -> Any:
    """Return the cotangents of g, Q, K, V, lse and delta.

    With a, b, c those of dQ, dK, dV, that of dS is ``Y = scale · (a Kᵀ + Q bᵀ)``, that of the
    dropped weights ``Z = g cᵀ``, and that of the scores ``U``.
    """
    o, extra = _options(rest, attrs)
    p = WeightParts(cotangent, query, key, value, lse, delta, extra, o)
    a, b, c, y, u = second_parts(p, g, o.scale)
    yp = y * p.weights
    w = p.drop(yp)

    def gathered(x: Tensor) -> Tensor:
        return join_heads(TENSORS, sum(x, 2, keepdims=True))

    def turned(x: Tensor) -> Tensor:
        result: Tensor = swapped(TENSORS, x)
        return result

    to_g = matmul(w, p.v) + matmul(p.drop(p.weights), c)
    to_q = (matmul(u, p.k) + matmul(p.slopes, b)) * o.scale
    to_k = (matmul(turned(u), p.q) + matmul(turned(p.slopes), a)) * o.scale
    to_v = matmul(turned(w), p.g)
    return (
        join_heads(TENSORS, to_g),
        join_heads(TENSORS, to_q),
        gathered(to_k),
        gathered(to_v),
        -p.for_rows(u),
        -p.for_rows(yp),
    )


def _slopes_vjp_rest(
    g: tuple[Tensor, Tensor, Tensor],
    cotangent: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    delta: Tensor,
    rest: tuple[Tensor, ...],
    attrs: dict[str, Any],
) -> Tensor:
    o, extra = _options(rest, attrs)
    p = WeightParts(cotangent, query, key, value, lse, delta, extra, o)
    *_, u = second_parts(p, g, o.scale)
    return sum_to_shape(p.joined(u), extra["mask"].shape)


def _slopes_samples() -> Iterable[Sample]:
    for label, inputs, rest, kwargs in variants():
        q, _, v = inputs
        g = normal(*q.shape[:3], v.shape[3], seed=3)
        rows = q.shape[0], q.shape[2], q.shape[1]
        lse, delta = normal(*rows, seed=4) + 2.0, normal(*rows, seed=5)
        args = (g, *inputs, lse, delta, *rest)
        yield Sample(args, kwargs, label=label, has_peer="dropout" not in kwargs)
    q, k, v = triple()
    g, lse = normal(2, 4, 3, 2), normal(2, 3, 4)
    yield bad(ShapeError, "cotangent must be", g[:1], q, k, v, lse, lse)
    yield bad(ShapeError, "lse must be", g, q, k, v, lse[:1], lse)
    yield bad(ShapeError, "delta must be", g, q, k, v, lse, lse[:, :1])
    yield bad(ShapeError, "divisor of the heads", g, q, k[:, :, :2], v[:, :, :2], lse, lse)
    yield bad(ShapeError, "four axes, each 1", g, q, k, v, lse, lse, bools(2, 3, 4, 5))
    yield bad(ArgumentError, "causal", g, q, k, v, lse, lse, None, np.array(2))
    yield bad(
        ArgumentError, "less than 1", g, q, k, v, lse, lse, None, None, state_words(), dropout=1.0
    )
    wrong = np.arange(6)
    yield bad(DTypeError, "state of", g, q, k, v, lse, lse, None, None, wrong, dropout=0.5)


@op(
    kind=Kind.ATTENTION,
    infer=_infer_slopes,
    reference=_attend_slopes,
    vjp={
        **joint(_slopes_vjp, "cotangent", "query", "key", "value", "lse", "delta"),
        "rest": _slopes_vjp_rest,
    },
    samples=_slopes_samples,
    flops=lambda g, q, k, v, *rest, **attrs: _products_flops(q, k, v, attrs, 3, 2),
    is_method=False,
    peer=torch_slopes,
)
def attend_slopes(
    cotangent: TensorLike,
    query: TensorLike,
    key: TensorLike,
    value: TensorLike,
    lse: TensorLike,
    delta: TensorLike,
    mask: TensorLike | None = None,
    offset: TensorLike | None = None,
    state: TensorLike | None = None,
    causal: bool = False,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend` by query, key and value.

    With S the scores and drop the dropout of weights, ``P = exp(S − lse)`` and
    ``dS = P · (drop(g Vᵀ) − delta)``: ``dQ = scale · dS K``, ``dK = scale · dSᵀ Q`` and
    ``dV = drop(P)ᵀ g``.

    Args:
        cotangent: g, [B, L, H, Ev].
        query: Q, [B, L, H, E].
        key: K, [B, S, G, E].
        value: V, [B, S, G, Ev].
        lse: the second result of `attend`, [B, H, L].
        delta: ``Σ g · out`` of each row, less the cotangent of ``lse``, [B, H, L].
        mask: as `attend` got it.
        offset: as `attend` got it.
        state: as `attend` got it.
        causal: as `attend` got it.
        scale: as `attend` got it.
        dropout: as `attend` got it.

    Returns:
        dQ, dK and dV, of the shapes of query, key and value.

    Raises:
        ShapeError: extents that do not fit.
        DTypeError: a mask, offset or state of another dtype.
        ArgumentError: an offset without ``causal``, a probability that is none, or no state for it.

    Example:
        >>> q, v, g = ndl.zeros((1, 2, 1, 4)), ndl.ones((1, 2, 1, 1)), ndl.ones((1, 2, 1, 1))
        >>> out, lse = ndl.attend(q, q, v, causal=True)
        >>> dq, dk, dv = ndl.attend_slopes(g, q, q, v, lse, ndl.ones((1, 1, 2)), causal=True)
        >>> dv[0, :, 0, 0].tolist()
        [1.5, 0.5]
    """
    tensors = _widened(cotangent, query, key, value, lse, delta)
    rest, attrs = _rest("attend_slopes", mask, offset, state, tensors[1], causal, scale, dropout)
    result: Any = apply(attend_slopes, *tensors, *rest, **attrs)
    return result


__all__ = ["attend", "attend_slopes"]
