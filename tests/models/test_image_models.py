"""ViT, MobileNetV2 and U-Net in small: trained compiled and eager, and their gradients."""

import numpy as np
import pytest

import needle as ndl
from needle import models, nn, optim
from needle.testing import check_grads

SMALL = {
    "vit": (lambda: models.ViT(8, 4, 16, 2, 2, 3), (6, 3, 8, 8), 0.1),
    "mobilenet": (
        lambda: models.MobileNetV2(3, width=0.05, dropout=0.1, small_images=True),
        (6, 3, 16, 16),
        0.02,
    ),
    "unet": (
        lambda: models.UNet(2, 3, width=4, depth=1, dropout=0.1),
        (2, 2, 20, 20),
        0.2,
    ),
    "unet, padded": (
        lambda: models.UNet(2, 3, width=4, depth=1, padded=True, norm=nn.BatchNorm2d),
        (2, 2, 8, 8),
        0.2,
    ),
}


def problem(name):
    make, shape, rate = SMALL[name]
    ndl.manual_seed(1)
    # float64: batch norms over few and nearly equal elements magnify the rounding of float32.
    with nn.defaults(dtype="float64"):
        model = make()
    rng = np.random.default_rng(3)
    x = ndl.asarray(rng.normal(size=shape))
    scores = model(x).shape
    labels = ndl.asarray(rng.integers(0, 3, (scores[0], *scores[2:])).reshape(-1))
    return model, x, labels, rate


def loss_of(model, x, labels):
    scores = model(x)
    if scores.ndim == 4:
        scores = scores.permute_dims((0, 2, 3, 1)).reshape(-1, scores.shape[1])
    return nn.CrossEntropyLoss()(scores, labels)


def losses(name, compiled, steps):
    model, x, labels, rate = problem(name)
    optimizer = optim.SGD(model.parameters(), lr=rate)

    def step(x, labels):
        loss = loss_of(model, x, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    run = ndl.compile(step) if compiled else step
    return [run(x, labels).item() for _ in range(steps)]


@pytest.mark.parametrize("name", SMALL)
def test_trains_compiled_as_eager(name):
    eager, compiled = losses(name, False, 12), losses(name, True, 12)
    np.testing.assert_allclose(compiled, eager, rtol=1e-6)
    assert eager[-1] < eager[0]


@pytest.mark.parametrize("name", ["vit", "mobilenet", "unet"])
def test_gradients(name):
    make, shape, _ = SMALL[name]
    with nn.defaults(dtype="float64", generator=ndl.Generator(1)):
        model = make()
    model.eval()
    x = np.random.default_rng(0).normal(size=(1, *shape[1:]))
    # Steps so small that hardly any unit crosses a corner of its activation.
    check_grads(lambda x: (model(x) ** 2).sum(), [x], order=1, eps=1e-6, rtol=1e-5)
