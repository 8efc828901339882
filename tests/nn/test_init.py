"""Initial values: moments, bounds, fans, reproducibility, defaults."""

import math

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, ArgumentTypeError, ShapeError
from needle.nn import init
from needle.nn.quantile import normal_quantile


def draw(name, shape, **settings):
    return getattr(init, name)(shape, generator=ndl.Generator(7), **settings)


def test_fans():
    assert init.fans((3, 5)) == (3, 5)
    assert init.fans((8, 4, 3, 3)) == (36, 72)
    assert init.fans((8, 4, 3)) == (12, 24)
    assert init.fans((4, 8, 3, 3), "conv_transpose") == (36, 72)
    assert init.fans((5, 3), "conv") == (3, 5)
    with pytest.raises(ShapeError, match="at least two axes"):
        init.fans((3,))
    with pytest.raises(ArgumentError, match="layout"):
        init.fans((3, 4), "oihw")


@pytest.mark.peers
@pytest.mark.parametrize(
    "nonlinearity", ["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]
)
def test_gains_are_pytorchs(nonlinearity):
    torch = pytest.importorskip("torch")
    assert init.gain(nonlinearity) == pytest.approx(torch.nn.init.calculate_gain(nonlinearity))


def test_gain_of_something_unknown():
    with pytest.raises(ArgumentError, match=r"none is known for 'gelu'.*relu"):
        init.gain("gelu")


@pytest.mark.parametrize(
    ("name", "settings", "std"),
    [
        ("xavier_uniform", {}, math.sqrt(2 / 700)),
        ("xavier_normal", {"gain": 2.0}, 2 * math.sqrt(2 / 700)),
        ("kaiming_uniform", {}, math.sqrt(2 / 300)),
        ("kaiming_normal", {"mode": "fan_out"}, math.sqrt(2 / 400)),
        ("kaiming_normal", {"nonlinearity": "linear"}, math.sqrt(1 / 300)),
        ("kaiming_uniform", {"a": 1.0}, math.sqrt(1 / 300)),
        ("normal", {"std": 3.0}, 3.0),
        ("uniform", {"low": -1, "high": 1}, math.sqrt(1 / 3)),
    ],
)
def test_moments(name, settings, std):
    x = draw(name, (300, 400), **settings).numpy()
    assert abs(x.mean()) < 5 * std / math.sqrt(x.size)
    assert x.std() == pytest.approx(std, rel=0.01)
    if name.endswith("uniform"):
        assert abs(x).max() <= std * math.sqrt(3) * (1 + 1e-6)


@pytest.mark.parametrize("bounds", [(-2, 2), (0.5, 1), (3, 9), (-40, -30), (-1, 60)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_truncated_normal_stays_inside_its_bounds(bounds, dtype):
    low, high = bounds
    x = draw("truncated_normal", 5000, a=low, b=high, dtype=dtype).astype("float64").numpy()
    assert np.isfinite(x).all()
    assert x.min() >= low
    assert x.max() <= high
    assert len(np.unique(x)) > (3 if dtype == "bfloat16" else 1000)


def test_truncated_normal_has_the_right_distribution():
    # Moments of the standard normal within ±1, from the closed form.
    x = draw("truncated_normal", 200_000, mean=5.0, std=2.0, a=3.0, b=7.0, dtype="float64").numpy()
    z = (x - 5) / 2
    density = math.exp(-0.5) / math.sqrt(2 * math.pi)
    variance = 1 - 2 * density / math.erf(1 / math.sqrt(2))
    assert z.mean() == pytest.approx(0, abs=0.01)
    assert z.var() == pytest.approx(variance, rel=0.01)
    # Far out in the tail the distribution falls off exponentially: mean ≈ a + 1/a.
    tail = draw("truncated_normal", 50_000, a=20.0, b=30.0, dtype="float64").numpy()
    assert tail.mean() == pytest.approx(20 + 1 / 20 - 2 / 20**3, rel=1e-4)


def test_quantiles_of_the_normal_distribution():
    import statistics

    p = np.array([1e-300, 1e-20, 1e-5, 0.01, 0.07499, 0.0751, 0.3, 0.5, 0.9, 0.99, 1 - 1e-12])
    expected = [statistics.NormalDist().inv_cdf(q) for q in p]
    np.testing.assert_allclose(normal_quantile(ndl.asarray(p)).numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (8, 2, 3, 3)])
def test_orthogonal(shape):
    q = draw("orthogonal", shape, gain=2.0, dtype="float64").numpy().reshape(shape[0], -1)
    gram = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-12)


def test_empty_and_bad_shapes():
    assert init.orthogonal((0, 3)).shape == (0, 3)
    assert init.kaiming_uniform((0, 3)).shape == (0, 3)
    assert init.truncated_normal((0,)).shape == (0,)
    with pytest.raises(ShapeError, match="two axes"):
        init.orthogonal((3,))
    with pytest.raises(ArgumentError, match="mode"):
        init.kaiming_normal((3, 3), mode="fan_avg")
    with pytest.raises(ArgumentError, match="too far out"):
        init.truncated_normal(3, a=40, b=50)
    with pytest.raises(ArgumentError, match="a < b"):
        init.truncated_normal(3, a=1, b=1)


IN_PLACE = [
    ("zeros_", ()),
    ("ones_", ()),
    ("constant_", (3.0,)),
    ("uniform_", (-1, 1)),
    ("normal_", (0.0, 0.02)),
    ("truncated_normal_", (0.0, 1.0, -1.0, 1.0)),
    ("trunc_normal_", ()),
    ("xavier_uniform_", ()),
    ("xavier_normal_", (2.0,)),
    ("kaiming_uniform_", (0.0, "fan_out", "relu")),
    ("kaiming_normal_", ()),
    ("orthogonal_", ()),
]


@pytest.mark.parametrize(("name", "args"), IN_PLACE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_place(name, args, dtype):
    weight = nn.Parameter(ndl.full((5, 6), 9.0), dtype=dtype)
    storage = weight._data
    ndl.manual_seed(3)
    assert getattr(init, name)(weight, *args) is weight
    assert weight._data is storage
    assert weight.requires_grad
    assert weight.is_leaf
    ndl.manual_seed(3)
    plain = {"trunc_normal_": "truncated_normal"}.get(name, name[:-1])
    expected = getattr(init, plain)((5, 6), *args, dtype=dtype)
    assert weight.tolist() == expected.tolist()
    assert not (weight == 9).any()


def test_in_place_on_meta_and_on_something_else():
    weight = ndl.zeros((2, 3), device="meta")
    assert init.kaiming_uniform_(weight) is weight
    with pytest.raises(ArgumentTypeError, match=r"zeros\(shape\) makes a new one"):
        init.zeros_((2, 3))


def test_layers_are_reproducible():
    a = nn.Linear(3, 4, generator=ndl.Generator(1)).weight.tolist()
    assert a == nn.Linear(3, 4, generator=ndl.Generator(1)).weight.tolist()
    with nn.defaults(generator=ndl.Generator(1)):
        first, second = nn.Linear(3, 4), nn.Linear(3, 4)
    assert a == first.weight.tolist() != second.weight.tolist()
    with pytest.raises(ArgumentTypeError, match="Generator"):
        nn.Linear(3, 4, generator=1)


def test_defaults_nest_and_end():
    with nn.defaults(dtype="float64"):
        with nn.defaults(device="meta"):
            layer = nn.Linear(2, 2)
        assert nn.Linear(2, 2, dtype="float32").weight.dtype == ndl.float32
        assert nn.Linear(2, 2).weight.device.type == "cpu"
    assert layer.weight.dtype == ndl.float64
    assert layer.bias.device.type == "meta"
    assert nn.Linear(2, 2).weight.dtype == ndl.float32
