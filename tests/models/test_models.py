"""Models: the papers' parameter counts, shapes, and that they learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import needle as ndl
from needle import models, nn, optim
from needle.errors import ArgumentError, ShapeError
from needle.nn import functional as F


def parameters_of(model: nn.Module) -> int:
    return sum(p.size for p in model.parameters())


# CIFAR: the paper gives 0.27, 0.46, 0.66, 0.85 and 1.7 million. ImageNet: what torchvision has,
# with the same layouts.
@pytest.mark.parametrize(
    ("make", "count"),
    [
        (models.resnet20, 269_722),
        (models.resnet32, 464_154),
        (models.resnet44, 658_586),
        (models.resnet56, 853_018),
        (models.resnet110, 1_727_962),
        (models.resnet18, 11_689_512),
        (models.resnet34, 21_797_672),
        (models.resnet50, 25_557_032),
        (models.resnet101, 44_549_160),
        (models.resnet152, 60_192_808),
        (models.LeNet, 61_706),
        (models.AlexNet, 61_100_840),
        (lambda: models.GPT(models.GPTConfig()), 124_439_808),
        (lambda: models.MLP(784, 128, 64, 10), 109_386),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_parameter_counts_equal_the_papers(make: Callable[[], nn.Module], count: int) -> None:
    assert parameters_of(make()) == count


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP": (lambda: models.MLP(64, 32, 10, dropout=0.1), (8, 1, 8, 8), 10),
    "MLPResNet": (lambda: models.MLPResNet(64, hidden=32, blocks=2), (8, 64), 10),
    "LeNet": (models.LeNet, (4, 1, 28, 28), 10),
    "resnet8": (lambda: models.CifarResNet(8), (4, 3, 32, 32), 10),
    "resnet8 v2": (lambda: models.CifarResNet(8, pre_activation=True), (4, 3, 32, 32), 10),
    "resnet18": (lambda: models.resnet18(10, small_images=True), (2, 3, 16, 16), 10),
    "resnet18 v2": (
        lambda: models.resnet18(10, pre_activation=True, small_images=True),
        (2, 3, 16, 16),
        10,
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_training_lowers_the_loss(name: str) -> None:
    make, shape, classes = SMALL[name]
    ndl.manual_seed(0)
    model = make()
    x = ndl.random.normal(shape)
    y = ndl.asarray(np.arange(shape[0]) % classes)
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(x).shape == (shape[0], classes)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (models.resnet50, (2, 3, 224, 224)),
        (lambda: models.resnet50(pre_activation=True), (2, 3, 224, 224)),
        (models.AlexNet, (2, 3, 224, 224)),
        (models.resnet110, (2, 3, 32, 32)),
    ],
    ids=["resnet50", "resnet50 v2", "AlexNet", "resnet110"],
)
def test_summaries_without_running(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    text = str(make().summary(shape))
    assert "FLOP" in text


def test_language_models_learn_a_sequence() -> None:
    ndl.manual_seed(0)
    tokens = ndl.asarray(np.tile(np.arange(8), (4, 4)))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    config = models.GPTConfig(vocabulary=8, context=32, layers=1, heads=2, width=16)
    for model in (models.LSTMLanguageModel(8, embedding=8, hidden=16), models.GPT(config)):
        optimizer = optim.Adam(model.parameters(), lr=0.02)
        for _ in range(40):
            logits = model(inputs)
            logits = logits[0] if isinstance(logits, tuple) else logits
            loss = F.cross_entropy(logits.reshape(-1, 8), targets.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.5


def test_the_state_of_the_lstm_continues_a_text() -> None:
    ndl.manual_seed(0)
    model = models.LSTMLanguageModel(5, embedding=4, hidden=6, layers=2).eval()
    tokens = ndl.asarray(np.array([[0, 1, 2, 3, 4, 0]]))
    whole, _ = model(tokens)
    first, state = model(tokens[:, :3])
    second, _ = model(tokens[:, 3:], state)
    np.testing.assert_allclose(whole.numpy()[:, :3], first.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole.numpy()[:, 3:], second.numpy(), rtol=1e-5, atol=1e-6)


def test_gpt_sees_no_future() -> None:
    ndl.manual_seed(0)
    config = models.GPTConfig(vocabulary=11, context=16, layers=2, heads=2, width=16)
    model = models.GPT(config).eval()
    a = np.random.default_rng(0).integers(0, 11, (1, 12))
    b = a.copy()
    b[0, 7:] = (b[0, 7:] + 1) % 11
    one, two = model(ndl.asarray(a)).numpy(), model(ndl.asarray(b)).numpy()
    np.testing.assert_array_equal(one[:, :7], two[:, :7])
    assert np.abs(one[:, 7:] - two[:, 7:]).max() > 1e-4


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: models.MLP(3), ArgumentError, "inputs and the outputs"),
        (lambda: models.CifarResNet(21), ArgumentError, r"6n \+ 2"),
        (lambda: models.ResNet(19), ArgumentError, "18, 34, 50"),
        (
            lambda: models.GPT(models.GPTConfig(width=10, heads=3, vocabulary=4)),
            ArgumentError,
            "no multiple",
        ),
        (lambda: models.MLP(8, 4, 2)(ndl.zeros((2, 9))), ShapeError, r"model\.layers\.1: .*in_fe"),
        (
            lambda: models.GPT(
                models.GPTConfig(vocabulary=4, context=8, layers=1, heads=1, width=4)
            )(ndl.zeros((1, 9), dtype="int64")),
            ShapeError,
            r"at most 8 \(context\)",
        ),
    ],
)
def test_mistakes_are_explained(
    call: Callable[[], object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        call()
