"""Small models and problems to train, eagerly and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import needle as ndl
from needle import models, nn, optim

CLASSES = 10


@dataclass(frozen=True)
class Problem:
    """A model with the shape of a batch for it.

    Attributes:
        make: returns the model; the argument is the probability of dropout.
        shape: of the inputs.
    """

    make: Callable[[float], nn.Module]
    shape: tuple[int, ...]


def mlp(dropout: float) -> nn.Module:
    return models.MLP(48, 32, 16, CLASSES, dropout=dropout)


def mlp_resnet(dropout: float) -> nn.Module:
    return models.MLPResNet(24, 16, blocks=2, dropout=dropout)


def cnn(dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )


def transformer(dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.TransformerEncoderLayer(16, 4, 32, dropout=dropout, batch_first=True),
        nn.Flatten(),
        nn.Linear(5 * 16, CLASSES),
    )


def cnn_large(dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(16 * 8 * 8, CLASSES),
    )


def transformer_large(dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.TransformerEncoderLayer(64, 4, 128, dropout=dropout, batch_first=True),
        nn.Flatten(),
        nn.Linear(16 * 64, CLASSES),
    )


PROBLEMS = {
    "mlp": Problem(mlp, (16, 48)),
    "mlp-resnet": Problem(mlp_resnet, (16, 24)),
    "cnn": Problem(cnn, (8, 3, 8, 8)),
    "transformer": Problem(transformer, (8, 5, 16)),
}

#: Large enough for their kernels to be shared by threads.
LARGE = {
    "mlp": Problem(lambda dropout: models.MLP(784, 128, 64, CLASSES, dropout=dropout), (128, 784)),
    "mlp-resnet": Problem(lambda dropout: models.MLPResNet(784, 100, dropout=dropout), (100, 784)),
    "cnn": Problem(cnn_large, (32, 3, 16, 16)),
    "transformer": Problem(transformer_large, (16, 16, 64)),
}

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.02),
    "momentum": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.0, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=1e-3),
    "adamw": lambda p: optim.AdamW(p, lr=1e-3, weight_decay=0.05),
}


def batches(shape: tuple[int, ...], count: int, dtype: str = "float32") -> list[tuple[Any, Any]]:
    """Return `count` batches of noise with labels that a linear model would half understand."""
    rng = np.random.default_rng(7)
    plan = rng.normal(size=(int(np.prod(shape[1:])), CLASSES))
    found = []
    for _ in range(count):
        x = rng.normal(size=shape)
        scores = x.reshape(shape[0], -1) @ plan / np.sqrt(len(plan))
        labels = (scores + rng.normal(size=scores.shape)).argmax(axis=1)
        found.append((ndl.asarray(x.astype(dtype)), ndl.asarray(labels)))
    return found
