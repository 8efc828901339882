"""Training in bfloat16: losses follow those of float32; parameters and updates are float32."""

import numpy as np
import pytest
from compiled_models import cnn_large, gpt_large

import needle as ndl
from needle import models, nn, optim
from needle.data import Digits
from needle.errors import ArgumentError
from needle.nn import functional as F
from needle.train.steps import TrainingStep


def digits_mlp(dropout):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def resnet(dropout):
    return models.CifarResNet(8, 4)


def digits(count):
    """Yield batches of images of digits."""
    data = Digits(train=True)
    order = np.random.default_rng(0).permutation(len(data))
    for i in range(count):
        picked = [data[j] for j in np.resize(order, 64 * count)[i * 64 : i * 64 + 64]]
        images = np.stack([np.asarray(x, np.float32) / 16 for x, _ in picked])
        yield images, np.array([y for _, y in picked])


def colours(count):
    """Yield images whose labels are the quadrant that shines most."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        x = rng.standard_normal((32, 3, 16, 16)).astype(np.float32)
        y = rng.integers(0, 4, 32)
        for i, label in enumerate(y):
            a, b = 8 * (label // 2), 8 * (label % 2)
            x[i, :, a : a + 8, b : b + 8] += 0.5
        yield x, y


def texts(count):
    """Yield sequences in which each token is the one before plus a step, and what follows."""
    rng = np.random.default_rng(2)
    for _ in range(count):
        x = (rng.integers(0, 65, (16, 1)) + np.arange(33) * rng.integers(1, 4, (16, 1))) % 65
        yield x[:, :-1], x[:, 1:].reshape(-1)


@pytest.mark.parametrize(
    ("make", "batches", "count"),
    [
        (digits_mlp, digits, 60),
        (cnn_large, colours, 30),
        (resnet, colours, 30),
        (gpt_large, texts, 40),
    ],
    ids=["mlp", "cnn", "resnet", "gpt"],
)
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_losses_follow_those_of_float32(make, batches, count, compiled):
    curves = {}
    count = count if compiled else count // 3
    for precision in ("float32", "bfloat16"):
        ndl.manual_seed(0)
        model = make(0.0)
        step = TrainingStep(
            model,
            F.cross_entropy,
            optim.AdamW(model.parameters(), lr=3e-3),
            "classification",
            1.0,
            lambda loss: None,
            compiled=compiled,
            precision=precision,
        )
        losses = [step((ndl.asarray(x),), ndl.asarray(y))[0] for x, y in batches(count)]
        assert all(p.dtype == ndl.float32 for p in model.parameters())
        curves[precision] = np.array(losses)
    full, low = curves["float32"], curves["bfloat16"]
    assert not np.array_equal(full, low)
    assert full[-5:].mean() < 0.75 * full[0]
    # A rounded factor is off by 2⁻⁹ at most: at first losses are, too, and means stay together.
    assert abs(full[0] - low[0]) < 0.01 * full[0]
    assert abs(full - low).mean() < 0.03 * full.mean()


def test_other_precisions_are_refused():
    with pytest.raises(ArgumentError, match="there is no precision 'float16'; choose one of"):
        TrainingStep(
            nn.Linear(2, 2),
            F.mse_loss,
            None,
            "regression",
            None,
            lambda loss: None,
            compiled=False,
            precision="float16",
        )
