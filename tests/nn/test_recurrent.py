"""RNN, LSTM, GRU and their cells, against PyTorch's."""

import itertools

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, ArgumentTypeError, ShapeError

from .peer import adopt, assert_same, both, normal

NETWORKS = ["RNN", "LSTM", "GRU"]
SETTINGS = [
    {},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "batch_first": True},
    {"bias": False},
]


def flat(result):
    """Return (output, state…) of any of the networks as a list."""
    output, state = result
    return [output, *state] if isinstance(state, tuple) else [output, state]


@pytest.mark.peers
@pytest.mark.parametrize(("name", "settings"), list(itertools.product(NETWORKS, SETTINGS)))
@pytest.mark.parametrize("with_state", [True, False])
def test_networks_are_pytorchs(name, settings, with_state):
    torch = pytest.importorskip("torch")
    ours = getattr(nn, name)(3, 4, **settings, dtype="float64")
    theirs = getattr(torch.nn, name)(3, 4, **settings, dtype=torch.float64)
    parameters = adopt(torch, ours, theirs)
    shape = (2, 5, 3) if settings.get("batch_first") else (5, 2, 3)
    inputs = [both(torch, normal(*shape))]
    arguments = ([], [])
    if with_state:
        count = settings.get("num_layers", 1) * (1 + settings.get("bidirectional", False))
        states = [both(torch, normal(count, 2, 4, seed=i)) for i in range(1 + (name == "LSTM"))]
        inputs += states
        for side in (0, 1):
            parts = tuple(s[side] for s in states)
            arguments[side].append(parts if name == "LSTM" else parts[0])
    assert_same(
        flat(ours(inputs[0][0], *arguments[0])),
        flat(theirs(inputs[0][1], *arguments[1])),
        inputs,
        parameters,
    )


@pytest.mark.peers
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_without_a_batch(name):
    torch = pytest.importorskip("torch")
    ours = getattr(nn, name)(3, 4, 2, bidirectional=True, dtype="float64")
    theirs = getattr(torch.nn, name)(3, 4, 2, bidirectional=True, dtype=torch.float64)
    parameters = adopt(torch, ours, theirs)
    x, y = both(torch, normal(5, 3))
    assert_same(flat(ours(x)), flat(theirs(y)), [(x, y)], parameters)


@pytest.mark.peers
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("shape", [(2,), ()])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells_are_pytorchs(name, nonlinearity, shape, with_state):
    torch = pytest.importorskip("torch")
    settings = {"nonlinearity": nonlinearity} if name == "RNNCell" else {}
    ours = getattr(nn, name)(3, 4, **settings, dtype="float64")
    theirs = getattr(torch.nn, name)(3, 4, **settings, dtype=torch.float64)
    parameters = adopt(torch, ours, theirs)
    inputs = [both(torch, normal(*shape, 3))]
    arguments = ([], [])
    if with_state:
        states = [both(torch, normal(*shape, 4, seed=i)) for i in range(1 + (name == "LSTMCell"))]
        inputs += states
        for side in (0, 1):
            parts = tuple(s[side] for s in states)
            arguments[side].append(parts if name == "LSTMCell" else parts[0])
    assert_same(
        ours(inputs[0][0], *arguments[0]),
        theirs(inputs[0][1], *arguments[1]),
        inputs,
        parameters,
    )


def test_a_network_is_its_cell_over_time():
    network, cell = nn.LSTM(3, 4), nn.LSTMCell(3, 4)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in network.state_dict().items()})
    x = ndl.asarray(normal(5, 2, 3).astype("float32"))
    y, (h, c) = network(x)
    state = None
    for t in range(5):
        state = cell(x[t], state)
        np.testing.assert_allclose(y[t].numpy(), state[0].numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(h[0].numpy(), state[0].numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(c[0].numpy(), state[1].numpy(), rtol=1e-5, atol=1e-7)


def test_a_sequence_may_be_run_in_pieces():
    network = nn.GRU(3, 4, num_layers=2)
    x = ndl.asarray(normal(6, 2, 3).astype("float32"))
    whole, last = network(x)
    first, state = network(x[:2])
    second, state = network(x[2:], state)
    np.testing.assert_allclose(ndl.concat([first, second]).numpy(), whole.numpy(), rtol=1e-5)
    np.testing.assert_allclose(state.numpy(), last.numpy(), rtol=1e-5)


def test_dropout_acts_between_layers_in_training():
    network = nn.RNN(3, 4, num_layers=2, dropout=0.5)
    x = ndl.ones((5, 2, 3))
    assert network(x)[0].tolist() != network(x)[0].tolist()
    network.eval()
    assert network(x)[0].tolist() == network(x)[0].tolist()
    with pytest.raises(ArgumentError, match="dropout acts between layers"):
        nn.RNN(3, 4, dropout=0.5)


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_on_meta(name):
    with nn.defaults(device="meta"):
        network = getattr(nn, name)(3, 4, 2, bidirectional=True, batch_first=True)
    y, *state = flat(network(ndl.zeros((5, 7, 3), device="meta")))
    assert y.shape == (5, 7, 8)
    assert [s.shape for s in state] == [(4, 5, 4)] * len(state)


def test_errors():
    network = nn.LSTM(3, 4, num_layers=2)
    x = ndl.ones((5, 2, 3))
    with pytest.raises(ShapeError, match=r"model: expected last axis 3 \(input_size\), got 4"):
        network(ndl.ones((5, 2, 4)))
    with pytest.raises(ShapeError, match=r"expected \[time, batch, input_size\]"):
        network(ndl.ones(3))
    with pytest.raises(ShapeError, match="the sequence is empty"):
        network(ndl.ones((0, 2, 3)))
    with pytest.raises(ArgumentTypeError, match=r"pair \(hidden state, cell\), got Tensor"):
        network(x, ndl.zeros((2, 2, 4)))
    with pytest.raises(
        ShapeError, match=r"state of shape \[2, 2, 4\] \(num_layers, batch, hidden_size\)"
    ):
        network(x, (ndl.zeros((2, 2, 4)), ndl.zeros((1, 2, 4))))
    with pytest.raises(ArgumentTypeError, match="got a tuple of 2"):
        nn.GRU(3, 4)(x, (ndl.zeros(1), ndl.zeros(1)))
    with pytest.raises(ShapeError, match=r"\[2, 4\] \(batch, hidden_size\), got \[4\]"):
        nn.GRUCell(3, 4)(ndl.ones((2, 3)), ndl.ones(4))
    with pytest.raises(ShapeError, match=r"\[batch, input_size\]"):
        nn.RNNCell(3, 4)(ndl.ones((1, 2, 3)))
    with pytest.raises(ArgumentError, match="nonlinearity"):
        nn.RNN(3, 4, nonlinearity="sigmoid")
    with pytest.raises(ArgumentError, match="hidden_size must be at least 1"):
        nn.GRU(3, 0)


def test_repr():
    assert repr(nn.LSTM(3, 4, 2, bidirectional=True)) == (
        "LSTM(3, 4, num_layers=2, bidirectional=True)"
    )
