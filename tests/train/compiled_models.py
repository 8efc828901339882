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
        vocabulary: of inputs that are tokens, each with the next one as its label.
    """

    make: Callable[[float], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0


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


class Reader(nn.Module):
    """Classifies a sequence by the last hidden state."""

    def __init__(self, inputs: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, layers, batch_first=True, dropout=dropout)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Any) -> Any:
        y, _ = self.lstm(x)
        return self.head(y[:, -1])


class Language(nn.Module):
    """A GPT whose predictions for all places stand below each other."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.gpt = models.GPT(models.GPTConfig(**sizes))

    def forward(self, tokens: Any) -> Any:
        y = self.gpt(tokens)
        return y.reshape(-1, y.shape[-1])


def gpt(dropout: float) -> nn.Module:
    return Language(vocabulary=11, context=6, layers=1, heads=2, width=16, dropout=dropout)


def gpt_large(dropout: float) -> nn.Module:
    return Language(vocabulary=65, context=32, layers=2, heads=4, width=64, dropout=dropout)


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

#: Of sequences.
SEQUENCES = {
    "lstm": Problem(lambda dropout: Reader(6, 12, 2, dropout), (8, 5, 6)),
    "gpt": Problem(gpt, (4, 6), 11),
}
LARGE_SEQUENCES = {
    "lstm": Problem(lambda dropout: Reader(28, 96, 2, dropout), (32, 28, 28)),
    "gpt": Problem(gpt_large, (8, 32), 65),
}

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.02),
    "momentum": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.0, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=1e-3),
    "adamw": lambda p: optim.AdamW(p, lr=1e-3, weight_decay=0.05),
}


def tokens(problem: Problem, count: int) -> list[tuple[Any, Any]]:
    """Return `count` batches of sequences that mostly follow a rule, with what comes next."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(count):
        line = rng.integers(0, problem.vocabulary, (problem.shape[0], problem.shape[1] + 1))
        for i in range(1, line.shape[1]):
            follows = (3 * line[:, i - 1] + 1) % problem.vocabulary
            line[:, i] = np.where(rng.random(len(line)) < 0.8, follows, line[:, i])
        found.append((ndl.asarray(line[:, :-1].copy()), ndl.asarray(line[:, 1:].ravel())))
    return found


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
