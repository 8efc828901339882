"""Recurrent networks over time: RNN, LSTM, GRU, in layers and in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from needle.config import modes
from needle.control import scan
from needle.creation import arange, zeros
from needle.dtypes import is_integer
from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.nn import functional as F, init
from needle.nn.arguments import as_extent, as_probability
from needle.nn.module import Module
from needle.nn.parameter import Parameter
from needle.nn.recurrent_cell import (
    LSTMState,
    as_nonlinearity,
    expect_lstm_state,
    expect_state,
    gru_step,
    lstm_step,
    rnn_step,
)
from needle.ops.checks import expect_range
from needle.ops.comparison import where
from needle.ops.contraction import linear
from needle.ops.engine import as_tensor
from needle.ops.joining import concat, stack
from needle.ops.unstack import unstack
from needle.random import Generator
from needle.shapes import Shape, expect_axis
from needle.tensor import Tensor

#: The state of a layer in one direction: its parts, each [batch, hidden].
Parts = tuple[Tensor, ...]


class _Recurrent(Module):
    """What recurrent networks share: layers, directions, and the way through time.

    The product of the inputs with their weights is taken once for all times; only that of the
    hidden state is left to the steps, which are a `scan`: a compiled program holds a step once.

    Sequences of different lengths are padded to the longest and passed with their ``lengths``. A
    result is then what each sequence alone would give, and the values in the padding play no part:
    what PyTorch's ``pack_padded_sequence`` and ``pad_packed_sequence`` are for. The steps of the
    padding are computed, and dropped.

    Args:
        input_size: extent of the input's last axis.
        hidden_size: extent of the hidden state's last axis.
        num_layers: number of layers, one on top of the other.
        bias: whether there are biases.
        batch_first: whether the batch is axis 0 of inputs and results, and time axis 1.
        dropout: probability of zeroing what goes from one layer to the next.
        bidirectional: whether a second network runs backwards in time.
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weights are drawn from.
    """

    _gates: int
    #: Whether a step only needs the sum of what input and hidden state contribute.
    _sums_contributions: ClassVar[bool] = True
    #: What the parts of the state are called.
    _parts: ClassVar[tuple[str, ...]] = ("hidden state",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = None,
        device: Any = None,
        generator: Generator | None = None,
    ) -> None:
        name = type(self).__name__
        self.input_size = as_extent(input_size, f"{name}: input_size")
        self.hidden_size = as_extent(hidden_size, f"{name}: hidden_size")
        self.num_layers = as_extent(num_layers, f"{name}: num_layers")
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = as_probability(dropout, f"{name}: dropout")
        if self.dropout and self.num_layers == 1:
            raise ArgumentError(
                f"{name}: dropout acts between layers, and there is only one; "
                "put nn.Dropout after it, or set num_layers"
            )
        self.bidirectional = bidirectional
        width = self._gates * self.hidden_size
        bound = 1 / math.sqrt(self.hidden_size)
        drawn = {"dtype": dtype, "device": device, "generator": generator}
        for layer in range(self.num_layers):
            inputs = self.input_size if layer == 0 else self.hidden_size * self._directions
            for suffix in self._suffixes(layer):
                weights = {"ih": (inputs, width), "hh": (self.hidden_size, width)}
                for kind, shape in weights.items():
                    weight = Parameter(init.uniform(shape, -bound, bound, **drawn))
                    setattr(self, f"weight_{kind}_{suffix}", weight)
                for kind in weights if bias else ():
                    value = Parameter(init.zeros(width, dtype=dtype, device=device))
                    setattr(self, f"bias_{kind}_{suffix}", value)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self, layer: int) -> list[str]:
        return [f"l{layer}", f"l{layer}_reverse"][: self._directions]

    def _over_time(self, x: Tensor) -> Parts:
        """Return what `_step` takes slices of, from the input's contributions [time, …]."""
        return (x,)

    def _step(self, x: Parts, h: Tensor, state: Parts) -> Parts:
        """Return the next state from what input and hidden state contribute to the gates."""
        raise NotImplementedError(f"{type(self).__name__} has no _step()")

    def _as_parts(self, state: Any, shape: Shape, meaning: str) -> Parts:
        """Return a given initial state as its parts, each of ``shape``."""
        return (expect_state(state, shape, meaning),)

    def _run(self, x: Tensor, given: Any, lengths: Any) -> tuple[Tensor, Parts]:
        """Return the results at all times and the parts of the last state."""
        x = as_tensor(x)
        layout = "[batch, time, input_size]" if self.batch_first else "[time, batch, input_size]"
        if x.ndim not in (2, 3):
            raise ShapeError(f"expected {layout} or [time, input_size], got shape {list(x.shape)}")
        expect_axis(x.shape, -1, self.input_size, "input_size")
        is_single = x.ndim == 2
        if is_single:
            x = x.expand_dims(1)
        elif self.batch_first:
            x = x.permute_dims((1, 0, 2))
        if x.shape[0] == 0:
            raise ShapeError(f"the sequence is empty: the time axis of {layout} has extent 0")
        first = self._first_state(x, given, is_single)
        alive = None
        if lengths is not None:
            alive = self._alive(x, lengths, is_single)
            x = where(alive, x, as_tensor(0, x.dtype))  # whatever stands there, NaN included
        y, last = self._through_layers(x, first, alive)
        if is_single:
            return y.squeeze(1), tuple(part.squeeze(1) for part in last)
        return (y.permute_dims((1, 0, 2)) if self.batch_first else y), last

    def _alive(self, x: Tensor, lengths: Any, is_single: bool) -> Tensor:
        """Return which elements of [time, batch, 1] belong to sequences of the given lengths."""
        time, batch = x.shape[:2]
        if is_single:
            raise ArgumentError("lengths are for batches; cut a single sequence to its length")
        ends = as_tensor(lengths)
        if not is_integer(ends.dtype):
            raise DTypeError(f"lengths must be integers, got {ends.dtype.name}")
        if ends.shape != (batch,):
            raise ShapeError(
                f"expected a length for each of the {batch} sequences of the batch, "
                f"got lengths of shape {list(ends.shape)}"
            )
        message = f"length {{value}}{{where}}, of sequences padded to {time}; {{valid}}"
        ends = expect_range(ends.astype("int64", copy=False), 0, time + 1, message)
        return (arange(time, device=x.device).expand_dims(1) < ends).expand_dims(2)

    def _first_state(self, x: Tensor, given: Any, is_single: bool) -> list[Parts]:
        """Return the initial state of each layer and direction."""
        count = self.num_layers * self._directions
        shape = (count, x.shape[1], self.hidden_size)
        if given is None:
            zero = zeros(shape[1:], dtype=x.dtype, device=x.device)
            return [(zero,) * len(self._parts)] * count
        meaning = "num_layers" + (" · 2 directions" if self.bidirectional else "")
        meaning += ", hidden_size" if is_single else ", batch, hidden_size"
        expected = (count, self.hidden_size) if is_single else shape
        parts = self._as_parts(given, expected, meaning)
        return list(zip(*(unstack(part.reshape(shape)) for part in parts), strict=True))

    def _through_layers(
        self, x: Tensor, first: list[Parts], alive: Tensor | None
    ) -> tuple[Tensor, Parts]:
        last: list[Parts] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            results = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                y, state = self._through_time(x, first[len(last)], suffix, direction == 1, alive)
                results.append(y)
                last.append(state)
            x = concat(results, axis=-1) if len(results) > 1 else results[0]
        return x, tuple(stack(part) for part in zip(*last, strict=True))

    def _through_time(
        self, x: Tensor, state: Parts, suffix: str, is_backwards: bool, alive: Tensor | None
    ) -> tuple[Tensor, Parts]:
        """Run one layer in one direction over [time, batch, inputs].

        Where sequences have ended (or, backwards, not yet begun), their state stays as it is.
        """
        weight_ih: Tensor = getattr(self, f"weight_ih_{suffix}")
        weight_hh: Tensor = getattr(self, f"weight_hh_{suffix}")
        bias_ih: Tensor | None = getattr(self, f"bias_ih_{suffix}", None)
        bias_hh: Tensor | None = getattr(self, f"bias_hh_{suffix}", None)
        if self._sums_contributions and bias_ih is not None and bias_hh is not None:
            # Where both are added to the same sum, one addition for all times is enough.
            bias_ih, bias_hh = bias_ih + bias_hh, None
        slices = self._over_time(linear(x, weight_ih, bias_ih))

        def step(state: Parts, x: Parts) -> tuple[Parts, Tensor]:
            new = self._step(x, linear(state[0], weight_hh, bias_hh), state)
            return new, new[0]

        def step_alive(state: Parts, slices: Parts) -> tuple[Parts, Tensor]:
            *x, lives = slices
            new, y = step(state, tuple(x))
            kept = tuple(where(lives, n, s) for n, s in zip(new, state, strict=True))
            return kept, where(lives, y, as_tensor(0, y.dtype))

        if alive is None:
            return _repeat(step, state, slices, is_backwards)
        return _repeat(step_alive, state, (*slices, alive), is_backwards)

    def extra_repr(self) -> str:
        """Return the sizes and what is not as usual."""
        settings = {
            "num_layers": (self.num_layers, 1),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, False),
            "dropout": (self.dropout, 0.0),
            "bidirectional": (self.bidirectional, False),
        }
        shown = [f"{k}={v}" for k, (v, usual) in settings.items() if v != usual]
        return ", ".join([str(self.input_size), str(self.hidden_size), *shown])


def _repeat(
    step: Callable[[Parts, Parts], tuple[Parts, Tensor]],
    state: Parts,
    slices: Parts,
    is_backwards: bool,
) -> tuple[Tensor, Parts]:
    """Return the results of a step for each of the slices, and the last state."""
    if modes.state.trace is not None:
        state, y = scan(step, state, slices, reverse=is_backwards)
        return y, state
    # Without what a scan checks in each turn, which would cost a small network half as much again.
    rows = list(zip(*map(unstack, slices), strict=True))
    results = []
    for row in reversed(rows) if is_backwards else rows:
        state, result = step(state, row)
        results.append(result)
    return stack(results[::-1] if is_backwards else results), state


class RNN(_Recurrent):
    """Elman network over time; a step is that of `RNNCell`.

    Args:
        input_size: extent of the input's last axis.
        hidden_size: extent of the hidden state's last axis.
        num_layers: number of layers, one on top of the other.
        nonlinearity: "tanh" or "relu".
        bias: whether there are biases.
        batch_first: whether the batch is axis 0 of input and result, and time axis 1.
        dropout: probability of zeroing what goes from one layer to the next, in training.
        bidirectional: whether a second network runs backwards in time.
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weights are drawn from, uniformly in ``±1 / √hidden_size``.

    Attributes:
        weight_ih_l0: [input_size, hidden_size]; likewise ``weight_hh_l0``, ``bias_ih_l0`` and
            ``bias_hh_l0``, those of further layers (``l1`` …) and of the other direction
            (``l0_reverse``).

    Example:
        >>> y, h = ndl.nn.RNN(3, 4)(ndl.ones((7, 2, 3)))
        >>> y.shape, h.shape
        ((7, 2, 4), (1, 2, 4))
    """

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = None,
        device: Any = None,
        generator: Generator | None = None,
    ) -> None:
        self.nonlinearity = as_nonlinearity(nonlinearity, "RNN")
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype=dtype,
            device=device,
            generator=generator,
        )

    def _step(self, x: Parts, h: Tensor, state: Parts) -> Parts:
        return (rnn_step(x[0], h, self.nonlinearity),)

    def forward(
        self, x: Tensor, h: Tensor | None = None, *, lengths: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Run over time.

        Args:
            x: [time, batch, input_size] ([batch, time, input_size] with ``batch_first``), or
                [time, input_size].
            h: initial hidden state, [num_layers · directions, batch, hidden_size], without the
                batch if ``x`` has none; zeros if not given.
            lengths: for each sequence of the batch how long it is; what lies behind is padding.

        Returns:
            The last layer's hidden states at all times, laid out as ``x``, with
            ``directions · hidden_size`` as last axis, zero in the padding; and each layer's last
            hidden state, for each sequence that at its own end.

        Raises:
            ShapeError: the shapes do not fit.
            OutOfRangeError: a length is negative, or larger than the time axis.
        """
        y, (last,) = self._run(x, h, lengths)
        return y, last


class GRU(_Recurrent):
    """Gated recurrent units over time; a step is that of `GRUCell`.

    Args:
        input_size: extent of the input's last axis.
        hidden_size: extent of the hidden state's last axis.
        num_layers: number of layers, one on top of the other.
        bias: whether there are biases.
        batch_first: whether the batch is axis 0 of input and result, and time axis 1.
        dropout: probability of zeroing what goes from one layer to the next, in training.
        bidirectional: whether a second network runs backwards in time.
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weights are drawn from, uniformly in ``±1 / √hidden_size``.

    Attributes:
        weight_ih_l0: [input_size, 3 · hidden_size], the gates in the order r, z, n; likewise
            ``weight_hh_l0``, ``bias_ih_l0`` and ``bias_hh_l0``, those of further layers (``l1`` …)
            and of the other direction (``l0_reverse``).

    Example:
        >>> y, h = ndl.nn.GRU(3, 4, num_layers=2, bidirectional=True)(ndl.ones((7, 2, 3)))
        >>> y.shape, h.shape
        ((7, 2, 8), (4, 2, 4))
    """

    _gates = 3
    _sums_contributions = False

    def _over_time(self, x: Tensor) -> Parts:
        return unstack(x.reshape(*x.shape[:2], 3, self.hidden_size), axis=2)

    def _step(self, x: Parts, h: Tensor, state: Parts) -> Parts:
        return (gru_step(x, h, state[0]),)

    def forward(
        self, x: Tensor, h: Tensor | None = None, *, lengths: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Run over time.

        Args:
            x: [time, batch, input_size] ([batch, time, input_size] with ``batch_first``), or
                [time, input_size].
            h: initial hidden state, [num_layers · directions, batch, hidden_size], without the
                batch if ``x`` has none; zeros if not given.
            lengths: for each sequence of the batch how long it is; what lies behind is padding.

        Returns:
            The last layer's hidden states at all times, laid out as ``x``, with
            ``directions · hidden_size`` as last axis, zero in the padding; and each layer's last
            hidden state, for each sequence that at its own end.

        Raises:
            ShapeError: the shapes do not fit.
            OutOfRangeError: a length is negative, or larger than the time axis.
        """
        y, (last,) = self._run(x, h, lengths)
        return y, last


class LSTM(_Recurrent):
    """Long short-term memory over time; a step is that of `LSTMCell`.

    Args:
        input_size: extent of the input's last axis.
        hidden_size: extent of the hidden state's last axis.
        num_layers: number of layers, one on top of the other.
        bias: whether there are biases.
        batch_first: whether the batch is axis 0 of input and result, and time axis 1.
        dropout: probability of zeroing what goes from one layer to the next, in training.
        bidirectional: whether a second network runs backwards in time.
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weights are drawn from, uniformly in ``±1 / √hidden_size``.

    Attributes:
        weight_ih_l0: [input_size, 4 · hidden_size], the gates in the order i, f, g, o; likewise
            ``weight_hh_l0``, ``bias_ih_l0`` and ``bias_hh_l0``, those of further layers (``l1`` …)
            and of the other direction (``l0_reverse``).

    Example:
        >>> y, (h, c) = ndl.nn.LSTM(3, 4, batch_first=True)(ndl.ones((2, 7, 3)))
        >>> y.shape, h.shape, c.shape
        ((2, 7, 4), (1, 2, 4), (1, 2, 4))
    """

    _gates = 4
    _parts = ("hidden state", "cell")

    def _step(self, x: Parts, h: Tensor, state: Parts) -> Parts:
        return lstm_step(x[0], h, state[1])

    def _as_parts(self, state: Any, shape: Shape, meaning: str) -> Parts:
        return expect_lstm_state(state, shape, meaning)

    def forward(
        self, x: Tensor, state: LSTMState | None = None, *, lengths: Any = None
    ) -> tuple[Tensor, LSTMState]:
        """Run over time.

        Args:
            x: [time, batch, input_size] ([batch, time, input_size] with ``batch_first``), or
                [time, input_size].
            state: initial hidden state and cell, each [num_layers · directions, batch,
                hidden_size], without the batch if ``x`` has none; zeros if not given.
            lengths: for each sequence of the batch how long it is; what lies behind is padding.

        Returns:
            The last layer's hidden states at all times, laid out as ``x``, with
            ``directions · hidden_size`` as last axis, zero in the padding; and each layer's last
            hidden state and cell, for each sequence those at its own end.

        Raises:
            ShapeError: the shapes do not fit.
            OutOfRangeError: a length is negative, or larger than the time axis.
            ArgumentTypeError: the state is no pair.
        """
        y, (h, c) = self._run(x, state, lengths)
        return y, (h, c)
