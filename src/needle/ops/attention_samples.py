"""What attention is tested with: inputs that go together, and PyTorch's way to say the same."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from needle.ops.samples import Array, bools, normal


def _torch_scores(
    torch: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    offset: Any = None,
    state: Any = None,
    *,
    causal: bool = False,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> Any:
    """Return q, k, v as [B, H, n, e] with as many heads, and the scores."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if causal:
        allowed = torch.ones(scores.shape[2:], dtype=torch.bool).tril(int(offset or 0))
        scores = scores.masked_fill(~allowed, -math.inf)
    return q, k, v, scores


def torch_attend(torch: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what `attend` does."""
    _, _, v, scores = _torch_scores(torch, *args, **kwargs)
    return (torch.softmax(scores, -1) @ v).transpose(1, 2), torch.logsumexp(scores, -1)


def torch_slopes(torch: Any, g: Any, q: Any, k: Any, v: Any, *rest: Any, **kwargs: Any) -> Any:
    """Return what `attend_slopes` does."""
    lse, delta, *rest = rest  # type: ignore[assignment]
    qh, kh, vh, scores = _torch_scores(torch, q, k, v, *rest, **kwargs)
    weights = torch.exp(scores - lse[..., None])
    gh = g.transpose(1, 2)
    slopes = weights * (gh @ vh.transpose(2, 3) - delta[..., None]) * kwargs.get("scale", 1.0)

    def gathered(x: Any, like: Any) -> Any:
        b, n, groups, e = like.shape
        return x.reshape(b, groups, -1, n, e).sum(2).transpose(1, 2)

    dk, dv = slopes.transpose(2, 3) @ qh, weights.transpose(2, 3) @ gh
    return (slopes @ kh).transpose(1, 2), gathered(dk, k), gathered(dv, v)


def triple() -> tuple[Array, Array, Array]:
    """Return query, key and value."""
    return normal(2, 4, 3, 5), normal(2, 6, 3, 5, seed=1), normal(2, 6, 3, 2, seed=2)


def state_words() -> Array:
    """Return the state of a generator."""
    return np.array([1, 2, 3, 4, 5, 6], dtype=np.uint32)


def variants() -> Iterable[tuple[str, tuple[Array, ...], tuple[Any, ...], dict[str, Any]]]:
    """Yield labels, query, key and value, further inputs and options that go together."""
    first = _, k, v = triple()
    yield "", first, (), {"scale": 0.4}
    yield "causal", first, (), {"causal": True}
    yield "offset", first, (None, np.array(2)), {"causal": True}
    mask = bools(2, 3, 4, 6)
    mask[..., 0] = True
    yield "bool mask", first, (mask,), {}
    yield "keys masked", first, (mask[:, :1, :1],), {}
    yield "additive mask", first, (normal(1, 3, 4, 6),), {"causal": True}
    yield "grouped heads", (normal(2, 3, 4, 5), k[:, :, :2], v[:, :, :2]), (mask[:, :1, :3],), {}
    options = {"dropout": 0.5, "causal": True}
    yield "dropout", first, (None, np.array(1), state_words()), options
