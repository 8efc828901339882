"""RNN, LSTM, GRU and their cells, against PyTorch's."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, ArgumentTypeError, ShapeError
from needle.testing import check_grads

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


@pytest.mark.peers
@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NETWORKS),
    time=st.integers(1, 5),
    batch=st.integers(1, 3),
    input_size=st.integers(1, 4),
    hidden_size=st.integers(1, 4),
    options=st.fixed_dictionaries(
        {
            "num_layers": st.integers(1, 3),
            "bias": st.booleans(),
            "batch_first": st.booleans(),
            "bidirectional": st.booleans(),
        }
    ),
    data=st.data(),
)
def test_networks_of_any_size_are_pytorchs(
    name, time, batch, input_size, hidden_size, options, data
):
    torch = pytest.importorskip("torch")
    if name == "RNN":
        options = {**options, "nonlinearity": data.draw(st.sampled_from(["tanh", "relu"]))}
    ours = getattr(nn, name)(input_size, hidden_size, **options, dtype="float64")
    theirs = getattr(torch.nn, name)(input_size, hidden_size, **options, dtype=torch.float64)
    parameters = adopt(torch, ours, theirs)
    shape = (batch, time, input_size) if options["batch_first"] else (time, batch, input_size)
    x, y = both(torch, normal(*shape))
    assert_same(flat(ours(x)), flat(theirs(y)), [(x, y)], parameters)


def weighted(results):
    """Return a scalar in which every element of the results has a weight of its own."""
    return sum((r * ndl.asarray(normal(*r.shape, seed=i))).sum() for i, r in enumerate(results))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_second_order(name):
    network = getattr(nn, name)(2, 3, dtype="float64")
    states = [normal(1, 2, 3, seed=1 + i) for i in range(1 + (name == "LSTM"))]

    def run(x, *state):
        return tuple(flat(network(x, state if name == "LSTM" else state[0])))

    check_grads(run, [normal(3, 2, 2), *states], order=2)


@pytest.mark.peers
@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_penalty_is_pytorchs(name):
    """The gradients by the parameters of ``|∂y/∂x|²``, which pass through all of a step twice."""
    torch = pytest.importorskip("torch")
    ours = getattr(nn, name)(2, 3, num_layers=2, bidirectional=True, dtype="float64")
    theirs = getattr(torch.nn, name)(2, 3, num_layers=2, bidirectional=True, dtype=torch.float64)
    parameters = adopt(torch, ours, theirs)
    x, y = both(torch, normal(4, 2, 2))
    (g,) = ndl.grad((ours(x)[0] ** 3).sum(), [x], create_graph=True)
    (g * g).sum().backward()
    (h,) = torch.autograd.grad((theirs(y)[0] ** 3).sum(), [y], create_graph=True)
    (h * h).sum().backward()
    for a, b, is_transposed in parameters:
        expected = b.grad.numpy()
        np.testing.assert_allclose(
            a.grad.numpy(), expected.T if is_transposed else expected, rtol=1e-9, atol=1e-13
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_state_alone_has_gradients(name):
    """No cotangent comes from the outputs then, but from one state of the last step."""
    network = getattr(nn, name)(2, 3, dtype="float64")
    check_grads(lambda x: flat(network(x))[-1], [normal(3, 2, 2)], order=1)


def test_a_sequence_read_backwards_is_the_reversed_one():
    network = nn.GRU(3, 4, bidirectional=True)
    forwards = nn.GRU(3, 4)
    state = network.state_dict()
    forwards.load_state_dict(
        {k.removesuffix("_reverse"): v for k, v in state.items() if k.endswith("_reverse")}
    )
    x = ndl.asarray(normal(5, 2, 3).astype("float32"))
    y, h = network(x)
    expected, last = forwards(ndl.flip(x, 0))
    np.testing.assert_array_equal(y[:, :, 4:].numpy(), ndl.flip(expected, 0).numpy())
    np.testing.assert_array_equal(h[1].numpy(), last[0].numpy())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_stay(name, dtype):
    network = getattr(nn, name)(3, 4, dtype=dtype)
    results = flat(network(ndl.ones((5, 2, 3), dtype=dtype)))
    assert {r.dtype.name for r in results} == {dtype}
    weighted([r.astype("float32") for r in results]).backward()
    assert {p.grad.dtype.name for p in network.parameters()} == {dtype}


def test_weights_are_drawn_from_the_generator_within_their_bound():
    first, second = (nn.LSTM(5, 16, generator=ndl.random.Generator(3)) for _ in range(2))
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    largest = float(abs(first.weight_ih_l0).max())
    assert 0.24 < largest <= 0.25  # 1 / √16, nearly reached among 320 draws
    assert not first.bias_ih_l0.any()


def test_nan_reaches_only_its_own_example_and_later_times():
    x = normal(4, 3, 2)
    x[1, 2] = np.nan
    y, _ = nn.LSTM(2, 3, dtype="float64")(ndl.asarray(x))
    lost = np.isnan(y.numpy()).all(axis=-1)
    expected = np.zeros((4, 3), dtype=bool)
    expected[1:, 2] = True
    np.testing.assert_array_equal(lost, expected)


def test_a_step_leaves_as_many_nodes_however_long_the_sequence():
    """Nodes whose work is in proportion to the whole sequence are few, not one for each step."""

    def nodes_by_extent(time):
        x = ndl.Tensor(np.zeros((time, 1, 2), dtype="float32"))
        nodes = nodes_below(nn.LSTM(2, 3)(x)[0])
        return len(nodes), sum(any(time in shape for shape in node.shapes) for node in nodes)

    (short, large), (long, larger) = nodes_by_extent(20), nodes_by_extent(200)
    assert long < 10 * short
    assert large == larger
    assert larger < 10


def nodes_below(y):
    """Return the nodes that recorded the computation of ``y``."""
    seen, stack = set(), [y.grad_node]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack += [edge[0] for edge in node.edges if isinstance(edge, tuple)]
    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_an_empty_batch(name):
    network = getattr(nn, name)(3, 4, num_layers=2, bidirectional=True)
    y, *states = flat(network(ndl.ones((5, 0, 3))))
    assert y.shape == (5, 0, 8)
    assert {s.shape for s in states} == {(4, 0, 4)}
    y.sum().backward()
    assert all(not p.grad.any() for p in network.parameters())
