"""Embedding, against PyTorch's."""

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, DTypeError, OutOfRangeError

from .peer import adopt, assert_same


@pytest.mark.peers
@pytest.mark.parametrize("padding_idx", [None, 2, -1])
@pytest.mark.parametrize("shape", [(4,), (2, 3), ()])
def test_embedding_is_pytorchs(padding_idx, shape):
    torch = pytest.importorskip("torch")
    ours = nn.Embedding(5, 3, padding_idx, dtype="float64")
    theirs = torch.nn.Embedding(5, 3, padding_idx, dtype=torch.float64)
    parameters = adopt(torch, ours, theirs)
    indices = np.random.default_rng(0).integers(0, 5, shape)
    assert_same(ours(ndl.asarray(indices)), theirs(torch.tensor(indices)), [], parameters)


def test_padding_starts_as_zero():
    layer = nn.Embedding(5, 3, -2)
    assert layer.weight[3].tolist() == [0.0, 0.0, 0.0]
    assert layer.weight.is_leaf
    assert repr(layer) == "Embedding(5, 3, padding_idx=3)"
    with nn.defaults(device="meta"):
        meta = nn.Embedding(5, 3, 0)
    assert meta(ndl.zeros((2, 4), dtype="int64", device="meta")).shape == (2, 4, 3)


def test_errors():
    layer = nn.Embedding(5, 3)
    with pytest.raises(OutOfRangeError, match=r"^model: .*index 5 .*extent 5"):
        layer(ndl.asarray([5]))
    with pytest.raises(DTypeError):
        layer(ndl.asarray([1.0]))
    with pytest.raises(OutOfRangeError, match="padding_idx 5 is outside of 5 rows"):
        nn.Embedding(5, 3, 5)
    with pytest.raises(ArgumentError, match="num_embeddings"):
        nn.Embedding(0, 3)
