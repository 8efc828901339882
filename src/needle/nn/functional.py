"""Functions of neural networks, under PyTorch's names and with its argument order.

Nearly all are ops, listed here for those who know them as ``F.…``. What is defined here is what
an op must not do: draw random numbers (dropout), or take PyTorch's spelling of an argument where
the array API standard has another (pad).

What differs from PyTorch: ``axis`` for ``dim``; `linear` takes the weight as [in, out]; a target
must have the shape of the predictions, and the mean over an empty batch is an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from needle import creation, dtypes
from needle.devices import META
from needle.errors import ArgumentError, ShapeError
from needle.ops import attention as _attention, slicing as _slicing
from needle.ops.activation import gelu, leaky_relu, relu, sigmoid, silu, softplus
from needle.ops.attention_parts import padded_row
from needle.ops.channel_normalization import batch_norm, group_norm
from needle.ops.contraction import linear
from needle.ops.convolution import conv2d
from needle.ops.cross_entropy import cross_entropy, nll_loss
from needle.ops.dropout import check_probability, drop
from needle.ops.elementwise import TensorLike
from needle.ops.engine import as_float_tensor, as_tensor
from needle.ops.gather import embedding, one_hot
from needle.ops.layer_normalization import layer_norm, rms_norm
from needle.ops.loss import (
    binary_cross_entropy_with_logits,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)
from needle.ops.pooling import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    max_pool2d,
)
from needle.ops.random import STATE_WORDS
from needle.ops.signals import (
    adaptive_avg_pool1d,
    adaptive_max_pool1d,
    avg_pool1d,
    conv1d,
    conv_transpose1d,
    max_pool1d,
)
from needle.ops.softmax import log_softmax, softmax
from needle.ops.transcendental import tanh
from needle.ops.transposed_convolution import conv_transpose2d
from needle.random import Generator, default_generator
from needle.shapes import Shape
from needle.tensor import Tensor


def _random_bits(shape: Shape, like: Tensor, generator: Generator | None) -> Tensor:
    """Return random words, or only their shape where ``like`` has no values either."""
    if like.device is META:
        return creation.empty(shape, dtype=dtypes.uint32, device=META)
    return (generator or default_generator()).random_bits(shape)


def _reserved(words: int, like: Tensor, generator: Generator | None) -> Tensor:
    """Return the state to draw so many words from, or only its shape; see `_random_bits`."""
    if like.device is META:
        return creation.empty((STATE_WORDS,), dtype=dtypes.uint32, device=META)
    return (generator or default_generator()).reserve(words)


def dropout(
    x: TensorLike, p: float = 0.5, training: bool = True, generator: Generator | None = None
) -> Tensor:
    """Zero elements at random and scale the others by ``1/(1 − p)``; see `needle.drop`.

    Args:
        x: any shape; integers become float32.
        p: probability of an element to be zeroed, from 0 to 1.
        training: whether to do so at all; otherwise ``x`` comes back as it is.
        generator: draws the bits; the default generator if not given.

    Raises:
        ArgumentError: ``p`` is not from 0 to 1.

    Example:
        >>> import needle.nn.functional as F
        >>> F.dropout(ndl.ones(4), p=0.5, generator=ndl.random.Generator(0))
        Tensor([0., 2., 2., 2.])
        >>> F.dropout(ndl.ones(4), training=False)
        Tensor([1., 1., 1., 1.])
    """
    check_probability(p, "dropout")
    t = as_float_tensor(x)
    if not training or p == 0:
        return t
    return drop(t, _random_bits(t.shape, t, generator), p)


def scaled_dot_product_attention(
    query: TensorLike,
    key: TensorLike,
    value: TensorLike,
    attn_mask: TensorLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    generator: Generator | None = None,
    *,
    causal_offset: TensorLike | None = None,
) -> Tensor:
    """Attention, ``softmax(scale · Q Kᵀ + mask) V``, with dropout of the weights.

    As in PyTorch, dropout takes place whenever ``dropout_p`` is above 0: pass 0 at evaluation.

    Args:
        query: Q, [..., H, L, E]; axes before L broadcast with those of key and value.
        key: K, [..., H, S, E].
        value: V, [..., H, S, Ev].
        attn_mask: broadcasts to [..., H, L, S]: bools, True where attention is allowed, or floats
            that are added to the scores. A query to which all keys are forbidden gets 0.
        dropout_p: probability with which attention weights are zeroed.
        is_causal: whether query i is allowed only keys 0 … i; with ``attn_mask``, both hold.
        scale: 1/√E if not given.
        enable_gqa: whether key and value may have fewer heads, each for a group of query heads.
        generator: draws the bits for dropout; the default generator if not given.
        causal_offset: how many keys stand before that of query 0, see
            `needle.scaled_dot_product_attention`.

    Returns:
        [..., H, L, Ev].

    Raises:
        ShapeError: extents that must be equal differ.
        DTypeError: a mask of integers.
        ArgumentError: ``dropout_p`` is not from 0 to 1.

    Example:
        >>> import needle.nn.functional as F
        >>> q, v = ndl.zeros((1, 2, 4)), ndl.asarray([[[1.0], [3.0]]])
        >>> F.scaled_dot_product_attention(q, q, v)
        Tensor([[[2.],
                 [2.]]])
    """
    q, k, v = as_float_tensor(query), as_float_tensor(key), as_float_tensor(value)
    check_probability(dropout_p, "scaled_dot_product_attention")
    state = None
    if dropout_p:
        *rows, source = _attention.weights_shape(q.shape, k.shape, v.shape, enable_gqa)
        state = _reserved(math.prod(rows) * padded_row(source), q, generator)
    return _attention.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        causal_offset=causal_offset,
        dropout_state=state,
    )


def pad(x: TensorLike, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Surround with a constant; PyTorch's spelling of `needle.pad`.

    Args:
        x: any shape.
        pad: widths in pairs (before, after), beginning with the last axis: ``(left, right, top,
            bottom)`` for images. Axes without a pair stay as they are.
        mode: "constant", the only one.
        value: what the new elements are.

    Raises:
        ShapeError: an odd number of widths, or more pairs than axes.
        ArgumentError: another ``mode``, or a negative width.

    Example:
        >>> import needle.nn.functional as F
        >>> F.pad(ndl.ones((1, 2)), (1, 0, 0, 1))
        Tensor([[0., 1., 1.],
                [0., 0., 0.]])
    """
    if mode != "constant":
        raise ArgumentError(f"pad: mode must be 'constant', got {mode!r}")
    t = as_tensor(x)
    widths = tuple(pad)
    if len(widths) % 2 or len(widths) > 2 * t.ndim:
        raise ShapeError(
            f"pad: needs pairs (before, after), at most one for each of the {t.ndim} axes, "
            f"beginning with the last; got {widths}"
        )
    pairs = list(zip(widths[::2], widths[1::2], strict=True))
    untouched = [(0, 0)] * (t.ndim - len(pairs))
    return _slicing.pad(t, [*untouched, *reversed(pairs)], value)


__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "embedding",
    "gelu",
    "group_norm",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "max_pool1d",
    "max_pool2d",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "pad",
    "relu",
    "rms_norm",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "tanh",
]
