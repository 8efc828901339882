"""Pooling layers, against PyTorch's."""

import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, ShapeError

from .peer import assert_same, both, normal

LAYERS = [
    ("MaxPool2d", (2,), {}),
    ("MaxPool2d", (3,), {"stride": 2, "padding": 1}),
    ("MaxPool2d", ((3, 2),), {"stride": (1, 2), "dilation": (2, 1)}),
    ("MaxPool2d", (2,), {"ceil_mode": True}),
    ("AvgPool2d", (2,), {}),
    ("AvgPool2d", (3,), {"stride": 2, "padding": 1, "count_include_pad": False}),
    ("AvgPool2d", ((3, 2),), {"padding": (1, 0), "ceil_mode": True}),
    ("AdaptiveAvgPool2d", (1,), {}),
    ("AdaptiveAvgPool2d", ((3, None),), {}),
    ("AdaptiveMaxPool2d", ((4, 3),), {}),
]


@pytest.mark.peers
@pytest.mark.parametrize(("name", "args", "settings"), LAYERS)
@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (3, 8, 7)])
def test_pooling_is_pytorchs(name, args, settings, shape):
    torch = pytest.importorskip("torch")
    x, y = both(torch, normal(*shape))
    ours, theirs = getattr(nn, name)(*args, **settings), getattr(torch.nn, name)(*args, **settings)
    assert_same(ours(x), theirs(y), [(x, y)])


def test_errors():
    with pytest.raises(ArgumentError, match="MaxPool2d: kernel_size must be at least 1"):
        nn.MaxPool2d(0)
    with pytest.raises(ArgumentError, match=r"at most half of kernel_size \(2, 2\), got \(2, 2\)"):
        nn.AvgPool2d(2, padding=2)
    with pytest.raises(ArgumentError, match="output_size"):
        nn.AdaptiveAvgPool2d((1, 2, 3))
    with pytest.raises(ShapeError, match=r"^model\.0: "):
        nn.Sequential(nn.MaxPool2d(4))(ndl.ones((1, 1, 3, 3)))


def test_repr():
    assert repr(nn.MaxPool2d(3, 2, 1)) == "MaxPool2d(kernel_size=3, stride=2, padding=1)"
    assert repr(nn.AvgPool2d((2, 3))) == "AvgPool2d(kernel_size=(2, 3))"
    assert repr(nn.AdaptiveAvgPool2d((None, 3))) == "AdaptiveAvgPool2d(output_size=(None, 3))"
