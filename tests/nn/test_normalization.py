"""Normalisation layers, dropout and flatten."""

import copy

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, AxisError, ShapeError

from .peer import adopt, assert_same, both, normal

LAYERS = [
    ("BatchNorm1d", (3,), {}, (5, 3)),
    ("BatchNorm1d", (3,), {"eps": 0.1}, (5, 3, 4)),
    ("BatchNorm1d", (3,), {"affine": False}, (5, 3)),
    ("BatchNorm2d", (3,), {"momentum": 0.3}, (2, 3, 4, 5)),
    ("BatchNorm2d", (3,), {"track_running_stats": False}, (2, 3, 4, 5)),
    ("LayerNorm", (4,), {}, (2, 3, 4)),
    ("LayerNorm", ((3, 4),), {"eps": 0.1}, (2, 3, 4)),
    ("LayerNorm", (4,), {"bias": False}, (2, 4)),
    ("LayerNorm", (4,), {"elementwise_affine": False}, (2, 4)),
    ("RMSNorm", (4,), {}, (2, 3, 4)),
    ("RMSNorm", ((3, 4),), {"eps": 0.1}, (2, 3, 4)),
    ("RMSNorm", (4,), {"elementwise_affine": False}, (2, 4)),
    ("GroupNorm", (2, 6), {}, (3, 6, 4)),
    ("GroupNorm", (1, 6), {"affine": False}, (3, 6, 4, 2)),
]


@pytest.mark.peers
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "args", "settings", "shape"), LAYERS)
def test_norms_are_pytorchs(name, args, settings, shape, training):
    torch = pytest.importorskip("torch")
    ours = getattr(nn, name)(*args, **settings, dtype="float64")
    theirs = getattr(torch.nn, name)(*args, **settings, dtype=torch.float64)
    parameters = adopt(torch, ours, theirs)
    for seed in (1, 2):  # running statistics move, before anything is compared
        ours(ndl.asarray(normal(*shape, seed=seed) + 1))
        theirs(torch.tensor(normal(*shape, seed=seed) + 1))
    ours.train(training)
    theirs.train(training)
    x, y = both(torch, normal(*shape))
    assert_same(ours(x), theirs(y), [(x, y)], parameters)
    for key, buffer in ours.named_buffers():
        expected = getattr(theirs, key).numpy()
        np.testing.assert_allclose(buffer.numpy(), expected, rtol=1e-12)


def test_initial_values():
    layer = nn.BatchNorm2d(2)
    assert {k: v.tolist() for k, v in layer.state_dict().items()} == {
        "weight": [1.0, 1.0],
        "bias": [0.0, 0.0],
        "running_mean": [0.0, 0.0],
        "running_var": [1.0, 1.0],
    }


def test_running_statistics_stay_the_same_buffers():
    layer = nn.BatchNorm1d(2)
    mean, var = layer.running_mean, layer.running_var
    layer(ndl.asarray(normal(4, 2).astype("float32")))
    assert layer.running_mean is mean
    assert layer.running_var is var
    assert mean.is_leaf
    assert not mean.requires_grad
    before = mean.tolist()
    layer.eval()(ndl.ones((4, 2)))
    assert mean.tolist() == before
    assert copy.deepcopy(layer).running_mean.tolist() == before


def test_half_precision_norms_keep_their_dtype():
    for layer, shape in [
        (nn.BatchNorm2d(3), (2, 3, 4, 4)),
        (nn.LayerNorm(4), (2, 4)),
        (nn.RMSNorm(4), (2, 4)),
        (nn.GroupNorm(1, 3), (2, 3, 4)),
    ]:
        x = ndl.ones(shape, dtype="bfloat16")
        assert layer.to("bfloat16")(x).dtype == ndl.bfloat16


def test_shape_errors_of_norms():
    with pytest.raises(ShapeError, match=r"model: expected axis 1 3 \(num_features\), got 4"):
        nn.BatchNorm1d(3)(ndl.ones((2, 4)))
    with pytest.raises(
        ShapeError, match=r"BatchNorm2d: expected \[batch, channels, height, width\]"
    ):
        nn.BatchNorm2d(3)(ndl.ones((2, 3)))
    with pytest.raises(ShapeError, match="more than one value"):
        nn.BatchNorm1d(3)(ndl.ones((1, 3)))
    with pytest.raises(ShapeError, match=r"last axis 4 \(normalized_shape\), got 3"):
        nn.LayerNorm(4)(ndl.ones((2, 3)))
    with pytest.raises(ShapeError, match=r"the last axes \[3, 4\] \(normalized_shape\)"):
        nn.RMSNorm((3, 4))(ndl.ones((2, 4, 3)))
    with pytest.raises(ShapeError, match=r"axis 1 6 \(num_channels\)"):
        nn.GroupNorm(2, 6)(ndl.ones((2, 4, 3)))


def test_bad_arguments_of_norms():
    with pytest.raises(ArgumentError, match="do not divide into 4 groups"):
        nn.GroupNorm(4, 6)
    with pytest.raises(ArgumentError, match="eps"):
        nn.LayerNorm(3, eps=-1)
    with pytest.raises(ArgumentError, match="momentum"):
        nn.BatchNorm1d(3, momentum=2)
    with pytest.raises(ArgumentError, match="normalized_shape"):
        nn.LayerNorm(())
    with pytest.raises(ArgumentError, match="num_features must be at least 1"):
        nn.BatchNorm1d(0)


def test_dropout():
    layer = nn.Dropout(0.25, generator=ndl.Generator(5))
    x = ndl.Tensor(np.ones(4000, np.float32))
    y = layer(x)
    assert set(np.unique(y.numpy())) == {np.float32(0), np.float32(1 / 0.75)}
    assert np.mean(y.numpy() == 0) == pytest.approx(0.25, abs=0.03)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())
    assert (layer(x).numpy() != y.numpy()).any()
    layer.generator.manual_seed(5)
    np.testing.assert_array_equal(layer(x).numpy(), y.numpy())
    assert layer.eval()(x).tolist() == x.tolist()
    assert nn.Dropout(1.0)(x).sum().item() == 0
    with pytest.raises(ArgumentError, match=r"Dropout: p must lie in 0 … 1, got 1\.5"):
        nn.Dropout(1.5)


def test_a_copied_dropout_draws_on_its_own():
    layer = nn.Dropout(0.5, generator=ndl.Generator(5))
    twin = copy.deepcopy(layer)
    x = ndl.ones(100)
    assert layer(x).tolist() == twin(x).tolist()


def test_flatten():
    x = ndl.zeros((2, 3, 4, 5))
    assert nn.Flatten()(x).shape == (2, 60)
    assert nn.Flatten(0, 1)(x).shape == (6, 4, 5)
    assert nn.Flatten(2, -2)(x).shape == (2, 3, 4, 5)
    with pytest.raises(AxisError, match=r"^model: "):
        nn.Flatten(3)(ndl.zeros((2, 3)))
    assert repr(nn.Flatten(0)) == "Flatten(start_axis=0, end_axis=-1)"


@pytest.mark.parametrize(
    "shape", [(16, 3, 20, 20), (4, 5, 40, 40), (2, 3, 1, 5000), (4100, 2, 1, 1)]
)
def test_compiled_batch_statistics_of_values_far_from_zero(shape):
    """Mean and variance come from one pass over the images, and yet nothing cancels."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + 1000).astype(np.float32)

    def normalise(x):
        mean, variance = ndl.zeros(shape[1]), ndl.ones(shape[1])
        y = ndl.batch_norm(x, mean, variance, training=True, momentum=1.0)
        return y, mean, variance

    wide = x.astype(np.float64)
    axes = (0, 2, 3)
    expected = wide.mean(axes), wide.var(axes, ddof=1)
    y, mean, variance = ndl.compile(normalise)(ndl.asarray(x))
    np.testing.assert_allclose(mean.numpy(), expected[0], rtol=1e-6)
    np.testing.assert_allclose(variance.numpy(), expected[1], rtol=1e-4)
    scaled = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y.numpy(), scaled, rtol=1e-3, atol=1e-3)
