"""The networks of `needle.models` that are measured, written with JAX, channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Layers:
    """Layers that take their parameters, and running statistics, in the order in which they run.

    Args:
        parameters: what an earlier run has made; None to make them.
        statistics: the same of the running means and variances.
        is_training: whether to normalise by the statistics of the batch.
    """

    def __init__(self, parameters: Any, statistics: Any, is_training: bool) -> None:
        self.is_new = parameters is None
        self._parameters, self._statistics = iter(parameters or ()), iter(statistics or ())
        self.is_training = is_training
        self.parameters: list[Any] = []
        self.statistics: list[Any] = []

    def _parameter(self, *shape: int, scale: float = 0.0, value: float = 0.0) -> Any:
        if not self.is_new:
            return next(self._parameters)
        draw = np.random.default_rng(len(self.parameters)).standard_normal(shape)
        self.parameters.append(jnp.asarray(draw * scale + value, jnp.float32))
        return self.parameters[-1]

    def conv(self, x: Any, out: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
        inside = x.shape[-1] // groups
        scale = (2 / (inside * kernel * kernel)) ** 0.5
        w = self._parameter(kernel, kernel, inside, out, scale=scale)
        pads = [(kernel // 2, kernel // 2)] * 2
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), pads, dimension_numbers=axes, feature_group_count=groups
        )

    def norm(self, x: Any) -> Any:
        channels = x.shape[-1]
        scale, shift = self._parameter(channels, value=1.0), self._parameter(channels)
        fresh = jnp.zeros(channels), jnp.ones(channels)
        mean, variance = fresh if self.is_new else (next(self._statistics), next(self._statistics))
        if self.is_training:
            own = x.mean((0, 1, 2)), x.var((0, 1, 2))
            mean, variance = 0.9 * mean + 0.1 * own[0], 0.9 * variance + 0.1 * own[1]
            self.statistics += [mean, variance]
            mean, variance = own
        else:
            self.statistics += [mean, variance]
        return (x - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + shift

    def unit(self, x: Any, out: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
        return self.norm(self.conv(x, out, kernel, stride, groups))

    def classify(self, x: Any, classes: int) -> Any:
        x = x.mean((1, 2))
        w = self._parameter(x.shape[1], classes, scale=x.shape[1] ** -0.5)
        return x @ w + self._parameter(classes)


Network = Callable[[Layers, Any, int], Any]


def resnet20(layers: Layers, x: Any, classes: int) -> Any:
    x = jax.nn.relu(layers.unit(x, 16, 3))
    for out in (16, 32, 64):
        for i in range(3):
            stride = 2 if i == 0 and out > 16 else 1
            y = jax.nn.relu(layers.unit(x, out, 3, stride))
            shortcut = x[:, ::stride, ::stride]
            more = out - x.shape[-1]
            shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, more)))
            x = jax.nn.relu(layers.unit(y, out, 3) + shortcut)
    return layers.classify(x, classes)


def _resnet(layers: Layers, x: Any, counts: list[int], is_deep: bool) -> Any:
    for stage, count in enumerate(counts):
        width = 64 << stage
        out = 4 * width if is_deep else width
        for i in range(count):
            stride = 2 if stage and i == 0 else 1
            if is_deep:
                y = jax.nn.relu(layers.unit(x, width, 1))
                y = layers.unit(jax.nn.relu(layers.unit(y, width, 3, stride)), out, 1)
            else:
                y = layers.unit(jax.nn.relu(layers.unit(x, width, 3, stride)), width, 3)
            is_same = stride == 1 and x.shape[-1] == out
            x = jax.nn.relu(y + (x if is_same else layers.unit(x, out, 1, stride)))
    return x


def resnet18_cifar(layers: Layers, x: Any, classes: int) -> Any:
    x = jax.nn.relu(layers.unit(x, 64, 3))
    return layers.classify(_resnet(layers, x, [2, 2, 2, 2], is_deep=False), classes)


def resnet50(layers: Layers, x: Any, classes: int) -> Any:
    x = jax.nn.relu(layers.unit(x, 64, 7, 2))
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)
    return layers.classify(_resnet(layers, x, [3, 4, 6, 3], is_deep=True), classes)


def mobilenet_v2_cifar(layers: Layers, x: Any, classes: int) -> Any:
    x = jax.nn.relu6(layers.unit(x, 32, 3))
    stages = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)]
    for expansion, out, count, first in [*stages, (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for i in range(count):
            stride, wide = 1 if i else first, x.shape[-1] * expansion
            y = x if expansion == 1 else jax.nn.relu6(layers.unit(x, wide, 1))
            y = layers.unit(jax.nn.relu6(layers.unit(y, wide, 3, stride, wide)), out, 1)
            x = x + y if stride == 1 and x.shape[-1] == out else y
    # The others have a dropout here, of 1280 elements for each image.
    return layers.classify(jax.nn.relu6(layers.unit(x, 1280, 1)), classes)
