"""Convolution layers, against PyTorch's."""

import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, ShapeError

from .peer import adopt, assert_same, both, normal

LAYERS = [
    ("Conv2d", (4, 6, 3), {}),
    ("Conv2d", (4, 6, 3), {"stride": 2, "padding": 1, "bias": False}),
    ("Conv2d", (4, 6, (3, 2)), {"dilation": (1, 2), "groups": 2}),
    ("Conv2d", (4, 4, 3), {"padding": "same", "groups": 4}),
    ("Conv2d", (4, 6, 1), {"padding": "valid"}),
    ("ConvTranspose2d", (4, 6, 2), {"stride": 2}),
    ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    ("ConvTranspose2d", (4, 6, (3, 2)), {"dilation": 2, "bias": False}),
]


@pytest.mark.peers
@pytest.mark.parametrize(("name", "args", "settings"), LAYERS)
@pytest.mark.parametrize("shape", [(2, 4, 7, 8), (4, 6, 7)])
def test_convolutions_are_pytorchs(name, args, settings, shape):
    torch = pytest.importorskip("torch")
    ours = getattr(nn, name)(*args, **settings, dtype="float64")
    theirs = getattr(torch.nn, name)(*args, **settings, dtype=torch.float64)
    parameters = adopt(torch, ours, theirs)
    x, y = both(torch, normal(*shape))
    assert_same(ours(x), theirs(y), [(x, y)], parameters)


def test_initial_values_have_the_scale_of_their_fan():
    conv = nn.Conv2d(16, 64, 3, groups=2, generator=ndl.Generator(0))
    assert float(abs(conv.weight).max()) == pytest.approx((6 / (8 * 9)) ** 0.5, rel=0.01)
    transposed = nn.ConvTranspose2d(16, 64, 3, generator=ndl.Generator(0))
    assert float(abs(transposed.weight).max()) == pytest.approx((6 / (16 * 9)) ** 0.5, rel=0.01)
    assert conv.bias.tolist() == [0.0] * 64


def test_errors():
    with pytest.raises(ShapeError, match=r"^model: expected axis 1 3 \(in_channels\), got 4"):
        nn.Conv2d(3, 8, 3)(ndl.ones((2, 4, 8, 8)))
    with pytest.raises(ShapeError, match=r"expected axis 0 3 \(in_channels\), got 4"):
        nn.Conv2d(3, 8, 3)(ndl.ones((4, 8, 8)))
    with pytest.raises(ShapeError, match=r"\[batch, in_channels, height, width\]"):
        nn.ConvTranspose2d(3, 8, 3)(ndl.ones((3, 8)))
    with pytest.raises(ShapeError, match=r"^model: conv2d"):
        nn.Conv2d(3, 8, 5)(ndl.ones((1, 3, 4, 4)))
    with pytest.raises(ArgumentError, match="3 in_channels do not divide into 2 groups"):
        nn.Conv2d(3, 8, 3, groups=2)
    with pytest.raises(ArgumentError, match="'same' needs stride 1"):
        nn.Conv2d(3, 8, 3, stride=2, padding="same")
    with pytest.raises(ArgumentError, match="got 'full'"):
        nn.Conv2d(3, 8, 3, padding="full")
    with pytest.raises(ArgumentError, match="kernel_size must be at least 1"):
        nn.Conv2d(3, 8, 0)


def test_shapes_on_meta_and_flops():
    with nn.defaults(device="meta"):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ConvTranspose2d(8, 3, 2, 2)
        )
    result = model.summary((2, 3, 16, 16))
    assert result.layers[0].outputs[0].shape == (2, 3, 32, 32)
    assert result.layers[1].flops == 2 * (2 * 8 * 16 * 16) * (3 * 9)


def test_repr():
    assert repr(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)) == (
        "Conv2d(3, 8, kernel_size=3, stride=2, padding=1, bias=False)"
    )
    assert repr(nn.Conv2d(4, 8, (3, 1), padding="same", groups=2)) == (
        "Conv2d(4, 8, kernel_size=(3, 1), padding='same', groups=2)"
    )
    assert repr(nn.ConvTranspose2d(3, 8, 2, 2, output_padding=1)) == (
        "ConvTranspose2d(3, 8, kernel_size=2, stride=2, output_padding=1)"
    )
