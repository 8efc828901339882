"""Training steps of the networks in each style, all from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

import needle as ndl
import needle.static as tf
from needle import nn, optim
from needle.cli.abstractions import programs
from needle.layerwise import Net, SGDSolver
from needle.nn import functional as F
from needle.ops.samples import Array

#: Examples per step, and the learning rate, of all styles.
BATCH, LEARNING_RATE = 32, 0.05


@dataclass(frozen=True)
class Network:
    """A network in three styles.

    Attributes:
        name: what it is.
        layerwise: makes it as a net of layers, for a number of examples.
        static: declares it in the default graph; gives what is fed, and the loss.
        imperative: makes it as a module.
    """

    name: str
    layerwise: Callable[[int], Net]
    static: Callable[[], tuple[tf.Symbol, tf.Symbol, tf.Symbol]]
    imperative: Callable[[], nn.Module]

    def weights(self) -> list[Array]:
        """Return the weights that all styles begin with, in the order of the layers."""
        ndl.manual_seed(0)
        return [p.detach().numpy().copy() for p in self.imperative().parameters()]


NETWORKS = {
    "mlp": Network(
        "MLP 784-128-64-10", programs.layerwise_mlp, programs.static_mlp, programs.imperative_mlp
    ),
    "resnet": Network(
        "residual network, 5 convolutions",
        programs.layerwise_resnet,
        programs.static_resnet,
        programs.ImperativeResNet,
    ),
}


class Batch:
    """What a step trains on: digits, enlarged to 28×28.

    Attributes:
        images: float32 [batch, 1, 28, 28], from 0 to 1.
        labels: int64 [batch].
    """

    def __init__(self, number: int = 0) -> None:
        data = ndl.data.Digits(train=True)
        part = slice(number * BATCH, (number + 1) * BATCH)
        small = np.asarray(data.images[part]).reshape(-1, 8, 8).astype(np.float32) / 16
        large = np.pad(small.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
        self.images: Array = np.ascontiguousarray(large[:, np.newaxis])
        self.labels: Array = np.asarray(data.labels[part], np.int64)


class Trained(Protocol):
    """A network in one style, ready for steps."""

    def give(self, batch: Batch) -> None:
        """Take a batch to train on."""

    def step(self) -> float:
        """Take a step on the batch that was given last; return the loss."""


class Layerwise(Trained):
    """A net of layers with its solver; the solver's step is one native call if compiled."""

    def __init__(self, network: Network, *, is_compiled: bool) -> None:
        self.net = network.layerwise(BATCH)
        trained = [blob for blob in self.net.learnable() if blob.lr_mult]
        for blob, array in zip(trained, network.weights(), strict=True):
            # A weight of InnerProduct is [outputs, inputs].
            blob.data[...] = array.T if blob.is_turned else array
        if is_compiled:
            self.net.compile()
        self.solver = SGDSolver(net=self.net, base_lr=LEARNING_RATE)

    def give(self, batch: Batch) -> None:
        self.net.blobs["x"].data[...] = batch.images
        self.net.blobs["label"].data[...] = batch.labels

    def step(self) -> float:
        self.solver.step(1)
        return self.solver.losses[-1]


class Declared(Trained):
    """A graph with its session."""

    def __init__(self, network: Network) -> None:
        with tf.Graph().as_default() as graph:
            *self.inputs, self.loss = network.static()
            self.train = tf.train.GradientDescentOptimizer(LEARNING_RATE).minimize(self.loss)
            self.session = tf.Session(graph)
            for variable, array in zip(tf.global_variables(), network.weights(), strict=True):
                self.session.load(variable, array)

    def give(self, batch: Batch) -> None:
        self.feeds = dict(zip(self.inputs, (batch.images, batch.labels), strict=True))

    def step(self) -> float:
        return float(self.session.run([self.train, self.loss], self.feeds)[1])


class Imperative(Trained):
    """A module with its optimizer; the step is run op by op, or one native call."""

    def __init__(self, network: Network, *, is_compiled: bool) -> None:
        model = network.imperative()
        for parameter, array in zip(model.parameters(), network.weights(), strict=True):
            with ndl.no_grad():
                parameter[...] = ndl.asarray(array)
        optimizer = optim.SGD(model.parameters(), lr=LEARNING_RATE)

        def train(images: ndl.Tensor, labels: ndl.Tensor) -> ndl.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            return loss

        self.train: Callable[..., ndl.Tensor] = ndl.compile(train) if is_compiled else train

    def give(self, batch: Batch) -> None:
        self.inputs = ndl.asarray(batch.images), ndl.asarray(batch.labels)

    def step(self) -> float:
        return float(self.train(*self.inputs).item())


#: Each style by its name, in the order of the table.
STYLES: dict[str, Callable[[Network], Trained]] = {
    "layerwise": lambda n: Layerwise(n, is_compiled=False),
    "layerwise, compiled": lambda n: Layerwise(n, is_compiled=True),
    "static": Declared,
    "eager": lambda n: Imperative(n, is_compiled=False),
    "compiled": lambda n: Imperative(n, is_compiled=True),
}


def losses(style: Trained, batches: Sequence[Batch]) -> list[float]:
    """Return the loss of a step on each batch."""
    found = []
    for batch in batches:
        style.give(batch)
        found.append(style.step())
    return found
