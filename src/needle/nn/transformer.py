"""Transformer blocks: attention and a perceptron around residual connections."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from needle.errors import ArgumentError, ArgumentTypeError
from needle.nn.arguments import as_extent
from needle.nn.attention import MultiheadAttention
from needle.nn.containers import ModuleList
from needle.nn.dropout import Dropout
from needle.nn.linear import Linear
from needle.nn.module import Module
from needle.nn.normalization import LayerNorm
from needle.ops.activation import gelu, relu
from needle.random import Generator
from needle.tensor import Tensor

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Activation] = {"relu": relu, "gelu": gelu}


def _as_activation(activation: str | Activation, name: str) -> Activation:
    if callable(activation):
        return activation
    if activation not in _ACTIVATIONS:
        raise ArgumentError(
            f"{name}: activation must be 'relu', 'gelu' or a function, got {activation!r}"
        )
    return _ACTIVATIONS[activation]


class TransformerEncoderLayer(Module):
    """Self-attention and a perceptron, each with dropout, a residual connection and a norm.

    After the connection (``norm(x + f(x))``, the paper's form) or, with ``norm_first``, before the
    layer (``x + f(norm(x))``, which trains without a warm-up). `TransformerEncoder` stacks them.

    Source: A. Vaswani et al., "Attention is all you need", 2017; R. Xiong et al., "On layer
    normalization in the transformer architecture", 2020.

    Args:
        d_model: extent of the last axis of input and result.
        nhead: number of heads, a divisor of ``d_model``.
        dim_feedforward: width of the perceptron's hidden layer.
        dropout: probability of zeroing an element or an attention weight, in training.
        activation: "relu", "gelu" or a function.
        layer_norm_eps: ε of the norms.
        batch_first: whether the batch is axis 0, and the length axis 1.
        norm_first: whether the norms come first.
        bias: whether linear layers and norms have biases.
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weights are drawn from.

    Raises:
        ArgumentError: ``d_model`` is no multiple of ``nhead``; an unknown activation.

    Example:
        >>> block = ndl.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> block(ndl.ones((3, 5, 8)), is_causal=True).shape
        (3, 5, 8)
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        dtype: Any = None,
        device: Any = None,
        generator: Generator | None = None,
    ) -> None:
        name = type(self).__name__
        place = {"dtype": dtype, "device": device}
        drawn = {**place, "generator": generator}
        width = as_extent(dim_feedforward, f"{name}: dim_feedforward")
        self.norm_first = norm_first
        self.activation = _as_activation(activation, name)
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, **drawn
        )
        self.linear1 = Linear(d_model, width, bias, **drawn)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(width, d_model, bias, **drawn)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Map a sequence to one of the same shape.

        Args:
            src: [length, batch, d_model] ([batch, length, d_model] with ``batch_first``), or
                [length, d_model].
            src_mask: [length, length], True where attention is forbidden, or floats to add; see
                `MultiheadAttention`.
            src_key_padding_mask: [batch, length], True where there is padding.
            is_causal: whether place i sees only places 0 … i.

        Raises:
            ShapeError: the shapes do not fit.
        """
        masks = {
            "attn_mask": src_mask,
            "key_padding_mask": src_key_padding_mask,
            "is_causal": is_causal,
        }
        if self.norm_first:
            src = src + self._attend(self.norm1(src), masks)
            return src + self._perceive(self.norm2(src))
        src = self.norm1(src + self._attend(src, masks))
        return self.norm2(src + self._perceive(src))

    def _attend(self, x: Tensor, masks: dict[str, Any]) -> Tensor:
        return self.dropout1(self.self_attn(x, x, x, need_weights=False, **masks)[0])

    def _perceive(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    def extra_repr(self) -> str:
        """Return whether the norms come first."""
        return "norm_first=True" if self.norm_first else ""


class TransformerDecoderLayer(Module):
    """Self-attention, attention to an encoder's result, and a perceptron.

    Each with dropout, a residual connection and a norm, as in `TransformerEncoderLayer`.

    Source: A. Vaswani et al., "Attention is all you need", 2017.

    Args:
        d_model: extent of the last axis of input, memory and result.
        nhead: number of heads, a divisor of ``d_model``.
        dim_feedforward: width of the perceptron's hidden layer.
        dropout: probability of zeroing an element or an attention weight, in training.
        activation: "relu", "gelu" or a function.
        layer_norm_eps: ε of the norms.
        batch_first: whether the batch is axis 0, and the length axis 1.
        norm_first: whether the norms come first.
        bias: whether linear layers and norms have biases.
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weights are drawn from.

    Raises:
        ArgumentError: ``d_model`` is no multiple of ``nhead``; an unknown activation.

    Example:
        >>> block = ndl.nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        >>> block(ndl.ones((3, 5, 8)), ndl.ones((3, 7, 8)), tgt_is_causal=True).shape
        (3, 5, 8)
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        dtype: Any = None,
        device: Any = None,
        generator: Generator | None = None,
    ) -> None:
        name = type(self).__name__
        place = {"dtype": dtype, "device": device}
        drawn = {**place, "generator": generator}
        width = as_extent(dim_feedforward, f"{name}: dim_feedforward")
        self.norm_first = norm_first
        self.activation = _as_activation(activation, name)
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, **drawn
        )
        self.multihead_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, **drawn
        )
        self.linear1 = Linear(d_model, width, bias, **drawn)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(width, d_model, bias, **drawn)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.norm3 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.dropout3 = Dropout(dropout)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Map a sequence to one of the same shape.

        Args:
            tgt: [target, batch, d_model] ([batch, target, d_model] with ``batch_first``), or
                [target, d_model].
            memory: the encoder's result, laid out alike, with the source's length.
            tgt_mask: [target, target], True where attention is forbidden, or floats to add; see
                `MultiheadAttention`.
            memory_mask: [target, source], likewise.
            tgt_key_padding_mask: [batch, target], True where there is padding.
            memory_key_padding_mask: [batch, source], likewise.
            tgt_is_causal: whether place i sees only places 0 … i of the target.
            memory_is_causal: whether place i sees only places 0 … i of the memory.

        Raises:
            ShapeError: the shapes do not fit.
        """
        own = {
            "attn_mask": tgt_mask,
            "key_padding_mask": tgt_key_padding_mask,
            "is_causal": tgt_is_causal,
        }
        other = {
            "attn_mask": memory_mask,
            "key_padding_mask": memory_key_padding_mask,
            "is_causal": memory_is_causal,
        }
        if self.norm_first:
            tgt = tgt + self._attend(self.norm1(tgt), own)
            tgt = tgt + self._look_up(self.norm2(tgt), memory, other)
            return tgt + self._perceive(self.norm3(tgt))
        tgt = self.norm1(tgt + self._attend(tgt, own))
        tgt = self.norm2(tgt + self._look_up(tgt, memory, other))
        return self.norm3(tgt + self._perceive(tgt))

    def _attend(self, x: Tensor, masks: dict[str, Any]) -> Tensor:
        return self.dropout1(self.self_attn(x, x, x, need_weights=False, **masks)[0])

    def _look_up(self, x: Tensor, memory: Tensor, masks: dict[str, Any]) -> Tensor:
        return self.dropout2(self.multihead_attn(x, memory, memory, need_weights=False, **masks)[0])

    def _perceive(self, x: Tensor) -> Tensor:
        return self.dropout3(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    def extra_repr(self) -> str:
        """Return whether the norms come first."""
        return "norm_first=True" if self.norm_first else ""


class _Stack(Module):
    """What encoder and decoder share: layers one on top of the other, and a norm at the end.

    Args:
        layer: what the layers are copies of.
        num_layers: how many.
        norm: what comes after the last; nothing if not given.
    """

    def __init__(self, layer: Module, num_layers: int, norm: Module | None = None) -> None:
        name = type(self).__name__
        if not isinstance(layer, Module):
            raise ArgumentTypeError(f"{name}: the layer must be a module, got {layer!r:.60}")
        count = as_extent(num_layers, f"{name}: num_layers")
        self.layers = ModuleList(copy.deepcopy(layer) for _ in range(count))
        self.norm = norm

    def _through_layers(self, x: Tensor, *args: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x, *args)
        return x if self.norm is None else self.norm(x)


class TransformerEncoder(_Stack):
    """Encoder layers one on top of the other: ``norm(layerₙ(… layer₁(x)))``.

    Source: A. Vaswani et al., "Attention is all you need", 2017.

    Args:
        encoder_layer: the layer of which ``num_layers`` copies are made. As in PyTorch, they all
            start from its values; where each should have its own, stack the layers yourself:
            ``nn.Sequential(*(TransformerEncoderLayer(…) for _ in range(n)))``.
        num_layers: number of layers.
        norm: what comes after the last layer, for layers with ``norm_first`` a `LayerNorm`; nothing
            if not given.

    Example:
        >>> nn = ndl.nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True)
        >>> encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(8))
        >>> encoder(ndl.ones((2, 5, 8)), is_causal=True).shape
        (2, 5, 8)
    """

    def __init__(self, encoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__(encoder_layer, num_layers, norm)

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Map a sequence to one of the same shape; the masks are those of all layers.

        Args:
            src: [length, batch, d_model] ([batch, length, d_model] if the layers are
                ``batch_first``), or [length, d_model].
            mask: [length, length], True where attention is forbidden, or floats to add; see
                `MultiheadAttention`.
            src_key_padding_mask: [batch, length], True where there is padding.
            is_causal: whether place i sees only places 0 … i.

        Raises:
            ShapeError: the shapes do not fit.
        """
        return self._through_layers(src, mask, src_key_padding_mask, is_causal)


class TransformerDecoder(_Stack):
    """Decoder layers one on top of the other, which all see the same memory.

    Source: A. Vaswani et al., "Attention is all you need", 2017.

    Args:
        decoder_layer: the layer of which ``num_layers`` copies are made; they all start from its
            values.
        num_layers: number of layers.
        norm: what comes after the last layer; nothing if not given.

    Example:
        >>> layer = ndl.nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        >>> decoder = ndl.nn.TransformerDecoder(layer, 2)
        >>> decoder(ndl.ones((3, 5, 8)), ndl.ones((3, 7, 8)), tgt_is_causal=True).shape
        (3, 5, 8)
    """

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__(decoder_layer, num_layers, norm)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Map a sequence to one of the same shape; the arguments are those of each layer.

        Args:
            tgt: [target, batch, d_model] ([batch, target, d_model] if the layers are
                ``batch_first``), or [target, d_model].
            memory: the encoder's result, laid out alike, with the source's length.
            tgt_mask: [target, target], True where attention is forbidden, or floats to add; see
                `MultiheadAttention`.
            memory_mask: [target, source], likewise.
            tgt_key_padding_mask: [batch, target], True where there is padding.
            memory_key_padding_mask: [batch, source], likewise.
            tgt_is_causal: whether place i sees only places 0 … i of the target.
            memory_is_causal: whether place i sees only places 0 … i of the memory.

        Raises:
            ShapeError: the shapes do not fit.
        """
        return self._through_layers(
            tgt,
            memory,
            tgt_mask,
            memory_mask,
            tgt_key_padding_mask,
            memory_key_padding_mask,
            tgt_is_causal,
            memory_is_causal,
        )
