"""Padded sequences with their lengths: PyTorch's packed ones, and each sequence alone."""

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, DTypeError, OutOfRangeError, ShapeError

from .peer import adopt, assert_same, both, normal

NETWORKS = ["RNN", "LSTM", "GRU"]


def flat(result):
    """Return (output, state…) of any of the networks as a list."""
    output, state = result
    return [output, *state] if isinstance(state, tuple) else [output, state]


@pytest.mark.peers
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_are_pytorchs_packed_sequences(name, batch_first):
    torch = pytest.importorskip("torch")
    options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    ours = getattr(nn, name)(3, 4, **options, dtype="float64")
    theirs = getattr(torch.nn, name)(3, 4, **options, dtype=torch.float64)
    parameters = adopt(torch, ours, theirs)
    lengths = [2, 6, 1, 4]
    shape = (4, 6, 3) if batch_first else (6, 4, 3)
    x, y = both(torch, normal(*shape))
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        y, torch.tensor(lengths), batch_first=batch_first, enforce_sorted=False
    )
    output, state = theirs(packed)
    output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=batch_first)
    assert_same(flat(ours(x, lengths=lengths)), flat((output, state)), [(x, y)], parameters)


def program(name, **options):
    network = getattr(nn, name)(3, 17, num_layers=2, bidirectional=True, **options)

    def run(x, lengths):
        results = flat(network(x, lengths=lengths))
        total = sum((r * r).sum() for r in results)
        return [*results, *ndl.grad(total, [x, *network.parameters()])]

    return run


@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_is_eager_with_any_number_of_threads(name):
    run = program(name)
    x = ndl.Tensor(normal(7, 5, 3).astype("float32"))
    lengths = ndl.asarray([7, 0, 3, 1, 5])
    expected = run(x, lengths)
    before, found = ndl.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            ndl.set_num_threads(threads)
            found.append([r.numpy() for r in ndl.compile(run)(x, lengths)])
    finally:
        ndl.set_num_threads(before)
    for first, *others, right in zip(*found, expected, strict=True):
        np.testing.assert_allclose(first, right.numpy(), rtol=1e-4, atol=1e-6)
        for other in others:
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_sequence_does_not_depend_on_its_neighbours(name, is_compiled):
    """Neither on their values, nor on their number and lengths, nor on what stands in the padding:
    not by a bit."""
    network = getattr(nn, name)(3, 17, num_layers=2, bidirectional=True)
    call = (lambda x, n: network(x, lengths=n)) if not is_compiled else None
    if call is None:
        call = ndl.compile(lambda x, n: network(x, lengths=n))
    x = normal(7, 4, 3).astype("float32")
    x[5:, 1] = np.nan
    y, *states = flat(call(ndl.asarray(x), ndl.asarray([7, 5, 2, 6])))
    alone = np.zeros((7, 1, 3), "float32")
    alone[:5, 0] = x[:5, 1]
    z, *ends = flat(call(ndl.asarray(alone), ndl.asarray([5])))
    np.testing.assert_array_equal(y.numpy()[:, 1], z.numpy()[:, 0])
    assert not y.numpy()[5:, 1].any()
    for a, b in zip(states, ends, strict=True):
        np.testing.assert_array_equal(a.numpy()[:, 1], b.numpy()[:, 0])


def test_nan_in_the_padding_reaches_no_gradient():
    network = nn.LSTM(3, 4)
    x = normal(4, 2, 3).astype("float32")
    x[2:, 0] = np.nan
    y, _ = network(ndl.Tensor(x), lengths=[2, 4])
    y.sum().backward()
    assert all(np.isfinite(p.grad.numpy()).all() for p in network.parameters())


def test_errors():
    network = nn.GRU(3, 4)
    x = ndl.ones((5, 2, 3))
    with pytest.raises(OutOfRangeError, match=r"length 6 at position \[1\], .* padded to 5"):
        network(x, lengths=[5, 6])
    with pytest.raises(OutOfRangeError, match="length 6"):
        ndl.compile(lambda x, n: network(x, lengths=n)[0])(x, ndl.asarray([5, 6]))
    with pytest.raises(ShapeError, match="a length for each of the 2 sequences"):
        network(x, lengths=[5, 1, 1])
    with pytest.raises(DTypeError, match="lengths must be integers"):
        network(x, lengths=[5.0, 1.0])
    with pytest.raises(ArgumentError, match="lengths are for batches"):
        network(ndl.ones((5, 3)), lengths=[5])
