"""Cells: one step of a recurrent network. `needle.nn.recurrent` runs them over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from needle.creation import zeros
from needle.errors import ArgumentError, ArgumentTypeError, ShapeError
from needle.nn import init
from needle.nn.arguments import as_extent
from needle.nn.module import Module
from needle.nn.parameter import Parameter
from needle.ops.activation import relu, sigmoid
from needle.ops.contraction import linear
from needle.ops.engine import as_tensor
from needle.ops.transcendental import tanh
from needle.ops.unstack import unstack
from needle.random import Generator
from needle.shapes import Shape, expect_axis
from needle.tensor import Tensor

LSTMState = tuple[Tensor, Tensor]

NONLINEARITIES = {"tanh": tanh, "relu": relu}


def rnn_step(x: Tensor, h: Tensor, nonlinearity: str) -> Tensor:
    """Return the next hidden state of an Elman network.

    Args:
        x: what the input contributes, ``x @ W_ih + b_ih``: [batch, hidden].
        h: what the hidden state contributes, ``h @ W_hh + b_hh``: [batch, hidden].
        nonlinearity: "tanh" or "relu".
    """
    return NONLINEARITIES[nonlinearity](x + h)


def lstm_step(x: Tensor, h: Tensor, c: Tensor) -> LSTMState:
    """Return the next hidden state and cell of a long short-term memory.

    Args:
        x: what the input contributes to the gates i, f, g, o: [batch, 4 · hidden].
        h: what the hidden state contributes to them: [batch, 4 · hidden].
        c: the cell: [batch, hidden].
    """
    i, f, g, o = unstack((x + h).reshape(c.shape[0], 4, c.shape[1]), axis=1)
    new = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(new), new


def gru_step(x: Sequence[Tensor], h: Tensor, state: Tensor) -> Tensor:
    """Return the next hidden state of a gated recurrent unit.

    Args:
        x: what the input contributes to each of the gates r, z, n: three of [batch, hidden].
        h: what the hidden state contributes to them: [batch, 3 · hidden].
        state: the hidden state: [batch, hidden].
    """
    x_r, x_z, x_n = x
    h_r, h_z, h_n = unstack(h.reshape(state.shape[0], 3, state.shape[1]), axis=1)
    z = sigmoid(x_z + h_z)
    n = tanh(x_n + sigmoid(x_r + h_r) * h_n)
    return n + z * (state - n)


def as_nonlinearity(value: Any, name: str) -> str:
    """Return ``value`` if it names a nonlinearity of a plain recurrent network.

    Raises:
        ArgumentError: it does not.
    """
    if value not in NONLINEARITIES:
        raise ArgumentError(f"{name}: nonlinearity must be 'tanh' or 'relu', got {value!r}")
    return str(value)


def expect_state(state: Any, shape: Shape, meaning: str) -> Tensor:
    """Return an initial state as a tensor.

    Raises:
        ArgumentTypeError: it is no tensor.
        ShapeError: it has another shape.
    """
    if isinstance(state, (tuple, list)):
        raise ArgumentTypeError(
            f"expected the initial state as a tensor of shape {list(shape)} ({meaning}), "
            f"got a {type(state).__name__} of {len(state)}"
        )
    tensor = as_tensor(state)
    if tensor.shape != shape:
        raise ShapeError(
            f"expected an initial state of shape {list(shape)} ({meaning}), "
            f"got {list(tensor.shape)}"
        )
    return tensor


def expect_lstm_state(state: Any, shape: Shape, meaning: str) -> LSTMState:
    """Return the initial state of a long short-term memory: hidden state and cell.

    Raises:
        ArgumentTypeError: it is no pair.
        ShapeError: a part has another shape.
    """
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise ArgumentTypeError(
            "expected the initial state as a pair (hidden state, cell), got "
            + (f"{len(state)} parts" if isinstance(state, (tuple, list)) else type(state).__name__)
        )
    return expect_state(state[0], shape, meaning), expect_state(state[1], shape, meaning)


class _Cell(Module):
    """What all cells share: weights of as many gates as the cell has.

    Args:
        input_size: extent of the input's last axis.
        hidden_size: extent of the hidden state's last axis.
        bias: whether there are biases.
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weights are drawn from.
    """

    _gates: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: Any = None,
        device: Any = None,
        generator: Generator | None = None,
    ) -> None:
        name = type(self).__name__
        self.input_size = as_extent(input_size, f"{name}: input_size")
        self.hidden_size = as_extent(hidden_size, f"{name}: hidden_size")
        width = self._gates * self.hidden_size
        bound = 1 / math.sqrt(self.hidden_size)
        drawn = {"dtype": dtype, "device": device, "generator": generator}
        self.weight_ih = Parameter(init.uniform((self.input_size, width), -bound, bound, **drawn))
        self.weight_hh = Parameter(init.uniform((self.hidden_size, width), -bound, bound, **drawn))
        self.bias_ih = Parameter(init.zeros(width, dtype=dtype, device=device)) if bias else None
        self.bias_hh = Parameter(init.zeros(width, dtype=dtype, device=device)) if bias else None

    def _input(self, x: Any) -> tuple[Tensor, bool]:
        """Return the input as [batch, input_size], and whether it came without a batch."""
        x = as_tensor(x)
        if x.ndim not in (1, 2):
            raise ShapeError(
                f"expected [batch, input_size] or [input_size], got shape {list(x.shape)}"
            )
        expect_axis(x.shape, -1, self.input_size, "input_size")
        return (x, False) if x.ndim == 2 else (x.expand_dims(0), True)

    def _contributions(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return linear(x, self.weight_ih, self.bias_ih), linear(h, self.weight_hh, self.bias_hh)

    def _state(self, h: Any, x: Tensor, is_single: bool) -> Tensor:
        if h is None:
            return zeros((x.shape[0], self.hidden_size), dtype=x.dtype, device=x.device)
        shape = (self.hidden_size,) if is_single else (x.shape[0], self.hidden_size)
        meaning = "hidden_size" if is_single else "batch, hidden_size"
        return expect_state(h, shape, meaning).reshape(x.shape[0], self.hidden_size)

    def extra_repr(self) -> str:
        """Return the sizes."""
        bias = "" if self.bias_ih is not None else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}"


class RNNCell(_Cell):
    """One step of an Elman network: ``h' = tanh(x @ W_ih + b_ih + h @ W_hh + b_hh)``.

    Source: J. Elman, "Finding structure in time", 1990.

    Args:
        input_size: extent of the input's last axis.
        hidden_size: extent of the hidden state's last axis.
        bias: whether there are biases.
        nonlinearity: "tanh" or "relu".
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weights are drawn from, uniformly in ``±1 / √hidden_size``.

    Attributes:
        weight_ih: [input_size, hidden_size].
        weight_hh: [hidden_size, hidden_size].
        bias_ih: [hidden_size], zero at first; or None.
        bias_hh: [hidden_size], zero at first; or None.

    Example:
        >>> ndl.nn.RNNCell(3, 4)(ndl.ones((2, 3))).shape
        (2, 4)
    """

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: Any = None,
        device: Any = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, bias, dtype=dtype, device=device, generator=generator
        )
        self.nonlinearity = as_nonlinearity(nonlinearity, "RNNCell")

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """Return the next hidden state.

        Args:
            x: [batch, input_size] or [input_size].
            h: hidden state, [batch, hidden_size] or [hidden_size]; zeros if not given.

        Raises:
            ShapeError: the shapes do not fit.
        """
        x, is_single = self._input(x)
        state = self._state(h, x, is_single)
        new = rnn_step(*self._contributions(x, state), self.nonlinearity)
        return new.squeeze(0) if is_single else new


class LSTMCell(_Cell):
    """One step of a long short-term memory.

    With the gates ``i, f, g, o = x @ W_ih + b_ih + h @ W_hh + b_hh``:
    ``c' = σ(f) · c + σ(i) · tanh(g)`` and ``h' = σ(o) · tanh(c')``.

    Source: S. Hochreiter, J. Schmidhuber, "Long short-term memory", 1997; F. Gers et al., "Learning
    to forget", 2000.

    Args:
        input_size: extent of the input's last axis.
        hidden_size: extent of the hidden state's last axis.
        bias: whether there are biases.
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weights are drawn from, uniformly in ``±1 / √hidden_size``.

    Attributes:
        weight_ih: [input_size, 4 · hidden_size], the gates in the order i, f, g, o.
        weight_hh: [hidden_size, 4 · hidden_size].
        bias_ih: [4 · hidden_size], zero at first; or None.
        bias_hh: [4 · hidden_size], zero at first; or None.

    Example:
        >>> h, c = ndl.nn.LSTMCell(3, 4)(ndl.ones((2, 3)))
        >>> h.shape, c.shape
        ((2, 4), (2, 4))
    """

    _gates = 4

    def forward(self, x: Tensor, state: LSTMState | None = None) -> LSTMState:
        """Return the next hidden state and cell.

        Args:
            x: [batch, input_size] or [input_size].
            state: hidden state and cell, each [batch, hidden_size] or [hidden_size]; zeros if not
                given.

        Raises:
            ShapeError: the shapes do not fit.
            ArgumentTypeError: the state is no pair.
        """
        x, is_single = self._input(x)
        if state is None:
            h = c = self._state(None, x, is_single)
        else:
            shape = (self.hidden_size,) if is_single else (x.shape[0], self.hidden_size)
            meaning = "hidden_size" if is_single else "batch, hidden_size"
            h, c = expect_lstm_state(state, shape, meaning)
            h, c = (part.reshape(x.shape[0], self.hidden_size) for part in (h, c))
        h, c = lstm_step(*self._contributions(x, h), c)
        return (h.squeeze(0), c.squeeze(0)) if is_single else (h, c)


class GRUCell(_Cell):
    """One step of a gated recurrent unit.

    ``r = σ(x_r + h_r)``, ``z = σ(x_z + h_z)``, ``n = tanh(x_n + r · h_n)`` and
    ``h' = (1 − z) · n + z · h``, with ``x_r, x_z, x_n = x @ W_ih + b_ih`` and
    ``h_r, h_z, h_n = h @ W_hh + b_hh``. (As in PyTorch, the reset gate acts after the product.)

    Source: K. Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014.

    Args:
        input_size: extent of the input's last axis.
        hidden_size: extent of the hidden state's last axis.
        bias: whether there are biases.
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weights are drawn from, uniformly in ``±1 / √hidden_size``.

    Attributes:
        weight_ih: [input_size, 3 · hidden_size], the gates in the order r, z, n.
        weight_hh: [hidden_size, 3 · hidden_size].
        bias_ih: [3 · hidden_size], zero at first; or None.
        bias_hh: [3 · hidden_size], zero at first; or None.

    Example:
        >>> ndl.nn.GRUCell(3, 4)(ndl.ones((2, 3))).shape
        (2, 4)
    """

    _gates = 3

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """Return the next hidden state.

        Args:
            x: [batch, input_size] or [input_size].
            h: hidden state, [batch, hidden_size] or [hidden_size]; zeros if not given.

        Raises:
            ShapeError: the shapes do not fit.
        """
        x, is_single = self._input(x)
        state = self._state(h, x, is_single)
        from_input, from_state = self._contributions(x, state)
        gates = unstack(from_input.reshape(x.shape[0], 3, self.hidden_size), axis=1)
        new = gru_step(gates, from_state, state)
        return new.squeeze(0) if is_single else new
