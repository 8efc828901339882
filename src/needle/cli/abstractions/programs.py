"""A perceptron and a residual network, layer by layer, declared, and imperative.

docs/three-abstractions.md shows these functions as they stand here.
"""

from __future__ import annotations

from typing import Any

import needle.static as tf
from needle import nn
from needle.layerwise import LayerSpec, Net
from needle.tensor import Tensor


def layerwise_mlp(batch: int) -> Net:
    """A perceptron as a list of layers, connected by the names of blobs."""

    def dense(name: str, bottom: str, top: str, units: int) -> LayerSpec:
        options = {"num_output": units, "weight_filler": {"type": "xavier"}}
        return LayerSpec(name, "InnerProduct", [bottom], [top], options)

    shapes = {"shape": [[batch, 1, 28, 28], [batch]]}
    return Net(
        [
            LayerSpec("data", "Input", top=["x", "label"], options=shapes),
            dense("fc1", "x", "h1", 128),
            LayerSpec("relu1", "ReLU", ["h1"], ["h1"]),
            dense("fc2", "h1", "h2", 64),
            LayerSpec("relu2", "ReLU", ["h2"], ["h2"]),
            dense("fc3", "h2", "scores", 10),
            LayerSpec("loss", "SoftmaxWithLoss", ["scores", "label"], ["loss"]),
        ]
    )


def static_mlp() -> tuple[tf.Symbol, tf.Symbol, tf.Symbol]:
    """A perceptron as a graph: what is fed, and the loss."""

    def dense(x: Any, inputs: int, units: int) -> Any:
        bound = (3 / inputs) ** 0.5
        weight = tf.Variable(tf.random_uniform([inputs, units], -bound, bound))
        return tf.matmul(x, weight) + tf.Variable(tf.zeros([units]))

    x = tf.placeholder(tf.float32, [None, 1, 28, 28])
    label = tf.placeholder(tf.int64, [None])
    h = tf.nn.relu(dense(tf.reshape(x, [-1, 784]), 784, 128))
    h = tf.nn.relu(dense(h, 128, 64))
    scores = dense(h, 64, 10)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=scores)
    return x, label, tf.reduce_mean(losses)


def imperative_mlp() -> nn.Module:
    """A perceptron as a module: a function with parameters."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def layerwise_resnet(batch: int, width: int = 16, blocks: int = 2) -> Net:
    """A residual network as a list of layers: a block is a loop that makes up names."""
    specs = []

    def add(name: str, kind: str, bottom: list[str], top: str, **options: Any) -> str:
        specs.append(LayerSpec(name, kind, bottom, [top], options))
        return top

    def conv_norm(name: str, bottom: str) -> str:
        weights = {"kernel_size": 3, "pad": 1, "bias_term": False}
        filler = {"type": "msra"}
        add(name, "Convolution", [bottom], name, num_output=width, weight_filler=filler, **weights)
        add(f"{name}_norm", "BatchNorm", [name], name)
        return add(f"{name}_scale", "Scale", [name], name, bias_term=True)

    shapes = {"shape": [[batch, 1, 28, 28], [batch]]}
    specs.append(LayerSpec("data", "Input", top=["x", "label"], options=shapes))
    x = conv_norm("first", "x")
    add("first_relu", "ReLU", [x], x)
    for i in range(blocks):
        inside = conv_norm(f"block{i}_conv1", x)
        add(f"block{i}_relu1", "ReLU", [inside], inside)
        inside = conv_norm(f"block{i}_conv2", inside)
        x = add(f"block{i}_sum", "Eltwise", [x, inside], f"block{i}")
        add(f"block{i}_relu2", "ReLU", [x], x)
    add("pool", "Pooling", [x], "pool", pool="AVE", global_pooling=True)
    add("fc", "InnerProduct", ["pool"], "scores", num_output=10, weight_filler={"type": "xavier"})
    add("loss", "SoftmaxWithLoss", ["scores", "label"], "loss")
    return Net(specs)


def static_resnet(width: int = 16, blocks: int = 2) -> tuple[tf.Symbol, tf.Symbol, tf.Symbol]:
    """A residual network as a graph: a block is a function from symbols to symbols."""

    def conv_norm(x: Any, channels: int) -> Any:
        deviation = (2 / (9 * channels)) ** 0.5
        weight = tf.Variable(tf.random_normal([width, channels, 3, 3], stddev=deviation))
        scale, shift = tf.Variable(tf.ones([width])), tf.Variable(tf.zeros([width]))
        h = tf.nn.conv2d(x, weight, padding=1)
        return tf.nn.batch_norm(h, None, None, scale, shift, training=True)

    def block(x: Any) -> Any:
        inside = conv_norm(tf.nn.relu(conv_norm(x, width)), width)
        return tf.nn.relu(x + inside)

    images = tf.placeholder(tf.float32, [None, 1, 28, 28])
    label = tf.placeholder(tf.int64, [None])
    x = tf.nn.relu(conv_norm(images, 1))
    for _ in range(blocks):
        x = block(x)
    bound = (3 / width) ** 0.5
    weight = tf.Variable(tf.random_uniform([width, 10], -bound, bound))
    scores = tf.matmul(tf.reduce_mean(x, [2, 3]), weight) + tf.Variable(tf.zeros([10]))
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=scores)
    return images, label, tf.reduce_mean(losses)


class ImperativeResNet(nn.Module):
    """A residual network as a module: a block is a module, and what it does is Python."""

    def __init__(self, width: int = 16, blocks: int = 2) -> None:
        super().__init__()

        def conv_norm(channels: int) -> nn.Module:
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(width))

        def inside() -> nn.Module:
            return nn.Sequential(conv_norm(width), nn.ReLU(), conv_norm(width))

        self.first = conv_norm(1)
        self.blocks = nn.ModuleList([inside() for _ in range(blocks)])
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 1, 28, 28] to [batch, 10]."""
        x = nn.functional.relu(self.first(x))
        for block in self.blocks:
            x = nn.functional.relu(x + block(x))
        return self.fc(x.mean(axis=(2, 3)))
