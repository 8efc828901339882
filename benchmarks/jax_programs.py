"""What is measured, written with JAX and compiled with `jit`, by the names of `needle_programs`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

# Before JAX is imported: it takes its threads from the affinity mask and this flag.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax
import jax.numpy as jnp

from benchmarks import jax_networks

Program = Callable[[], Any]


def set_threads(count: int) -> None:
    """JAX takes all cores of the affinity mask; the rows are measured with as many threads."""
    del count


def _normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def _call(function: Any, *args: Any) -> Program:
    compiled = jax.jit(function)
    return lambda: compiled(*args).block_until_ready()


def add(n: int) -> Program:
    return _call(lambda x, y: x + y, _normal(n), _normal(n, seed=1))


def matmul(m: int, k: int, n: int) -> Program:
    return _call(lambda x, y: x @ y, _normal(m, k), _normal(k, n))


def exp(rows: int, columns: int) -> Program:
    return _call(jnp.exp, _normal(rows, columns))


def tanh(rows: int, columns: int) -> Program:
    return _call(jnp.tanh, _normal(rows, columns))


def gelu(rows: int, columns: int) -> Program:
    return _call(lambda x: jax.nn.gelu(x, approximate=False), _normal(rows, columns))


def chain(rows: int, columns: int) -> Program:
    x, z = _normal(rows, columns), _normal(rows, columns, seed=1)
    s, b = _normal(columns, seed=2), _normal(columns, seed=3)
    return _call(lambda x, s, b, z: jax.nn.relu(x * s + b) * z + x, x, s, b, z)


def sum_of_axis(shape: list[int], axis: int) -> Program:
    return _call(lambda x: x.sum(axis), _normal(*shape))


def total(rows: int, columns: int, axis: int | None) -> Program:
    return _call(lambda x: x.sum(axis), _normal(rows, columns))


def softmax(rows: int, columns: int) -> Program:
    return _call(lambda x: jax.nn.softmax(x, -1), _normal(rows, columns))


def layer_norm(rows: int, columns: int) -> Program:
    def function(x: Any, w: Any, b: Any) -> Any:
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 1e-5) * w + b

    return _call(function, _normal(rows, columns), jnp.ones(columns), jnp.zeros(columns))


def _loss(logits: Any, y: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()


def cross_entropy(rows: int, columns: int) -> Program:
    y = jnp.asarray(np.random.default_rng(1).integers(0, columns, rows))
    return _call(_loss, _normal(rows, columns), y)


def _mlp() -> list[tuple[Any, Any]]:
    extents = (784, 128, 64, 10)
    return [(_normal(a, b, seed=a) * 0.05, jnp.zeros(b)) for a, b in itertools.pairwise(extents)]


def _forward(parameters: Any, x: Any) -> Any:
    for w, b in parameters[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = parameters[-1]
    return x @ w + b


def mlp_forward(batch: int) -> Program:
    parameters = _mlp()
    return _call(_forward, parameters, _normal(batch, 784))


def mlp_sgd_step(batch: int) -> Program:
    x = _normal(batch, 784)
    y = jnp.asarray(np.random.default_rng(1).integers(0, 10, batch))

    def step(parameters: Any) -> Any:
        slopes = jax.grad(lambda p: _loss(_forward(p, x), y))(parameters)
        return jax.tree.map(lambda p, g: p - 0.01 * g, parameters, slopes)

    return _train(step, _mlp())


def mlp_adam_step(batch: int) -> Program:
    x = _normal(batch, 784)
    y = jnp.asarray(np.random.default_rng(1).integers(0, 10, batch))

    def step(state: Any) -> Any:
        parameters, first, second, count = state
        slopes = jax.grad(lambda p: _loss(_forward(p, x), y))(parameters)
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slopes)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, slopes)
        a, b = 1 - 0.9**count, 1 - 0.999**count
        parameters = jax.tree.map(
            lambda p, m, v: p - 0.001 * (m / a) / (jnp.sqrt(v / b) + 1e-8),
            parameters,
            first,
            second,
        )
        return parameters, first, second, count

    zeros = jax.tree.map(jnp.zeros_like, _mlp())
    return _train(step, (_mlp(), zeros, zeros, jnp.zeros(())))


def _network(
    network: str, batch: int, size: int, classes: int
) -> tuple[jax_networks.Network, Any, jax_networks.Layers]:
    """Return a network, images with the channels last, and the layers that it has made."""
    function = getattr(jax_networks, network)
    x = jnp.transpose(_normal(batch, 3, size, size), (0, 2, 3, 1))
    layers = jax_networks.Layers(None, None, is_training=False)
    function(layers, x[:1], classes)
    return function, x, layers


def network_step(network: str, batch: int, size: int, classes: int) -> Program:
    function, x, made = _network(network, batch, size, classes)
    y = jnp.asarray(np.random.default_rng(1).integers(0, classes, batch))

    def loss(parameters: Any, statistics: Any) -> Any:
        layers = jax_networks.Layers(parameters, statistics, is_training=True)
        return _loss(function(layers, x, classes), y), layers.statistics

    def step(state: Any) -> Any:
        parameters, momenta, statistics = state
        slopes, statistics = jax.grad(loss, has_aux=True)(parameters, statistics)
        momenta = jax.tree.map(lambda u, g: 0.9 * u + g, momenta, slopes)
        parameters = jax.tree.map(lambda p, u: p - 0.1 * u, parameters, momenta)
        return parameters, momenta, statistics

    zeros = jax.tree.map(jnp.zeros_like, made.parameters)
    return _train(step, (made.parameters, zeros, made.statistics))


def network_forward(
    network: str, batch: int, size: int, classes: int, precision: str = "float32"
) -> Program:
    function, x, made = _network(network, batch, size, classes)
    state = made.parameters, made.statistics, x
    if precision != "float32":
        state = jax.tree.map(lambda a: a.astype(precision), state)

    def forward(parameters: Any, statistics: Any, x: Any) -> Any:
        layers = jax_networks.Layers(parameters, statistics, is_training=False)
        return function(layers, x, classes)

    return _call(forward, *state)


def _rnn(weights: Any, state: Any, x: Any) -> Any:
    _, h = state
    h = jnp.tanh(x + h @ weights)
    return state[0], h


def _lstm(weights: Any, state: Any, x: Any) -> Any:
    c, h = state
    i, f, g, o = jnp.split(x + h @ weights, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def _gru(weights: Any, state: Any, x: Any) -> Any:
    _, h = state
    x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(h @ weights, 3, axis=-1)
    z = jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
    return state[0], n + z * (h - n)


#: The step of a cell, and how many gates it has.
_CELLS: dict[str, tuple[Any, int]] = {"RNN": (_rnn, 1), "LSTM": (_lstm, 4), "GRU": (_gru, 3)}


def recurrent_step(
    kind: str,
    time: int,
    batch: int,
    vocabulary: int,
    width: int,
    layers: int = 2,
    bidirectional: bool = False,
) -> Program:
    cell, gates = _CELLS[kind]
    drawn = np.random.default_rng(0).integers(0, vocabulary, (2, time, batch))
    tokens, labels = jnp.asarray(drawn[0]), jnp.asarray(drawn[1].reshape(-1))
    wide, directions = gates * width, 1 + bidirectional

    def network(inputs: int, seed: int) -> Any:
        weights = _normal(inputs, wide, seed=seed), _normal(width, wide)
        return weights[0] * 0.05, weights[1] * 0.05, jnp.zeros(wide)

    def layer(number: int) -> Any:
        inputs = width * directions if number else width
        return [network(inputs, number * directions + d) for d in range(directions)]

    parameters = {
        "embedding": _normal(vocabulary, width),
        "layers": [layer(number) for number in range(layers)],
        "head": (_normal(width * directions, vocabulary) * 0.05, jnp.zeros(vocabulary)),
    }

    def over_time(x: Any, weights: Any, is_backwards: bool) -> Any:
        weights_x, weights_h, bias = weights

        def turn(state: Any, x: Any) -> Any:
            state = cell(weights_h, state, x)
            return state, state[1]

        first = jnp.zeros((2, batch, width))
        steps = x @ weights_x + bias
        return jax.lax.scan(turn, (first[0], first[1]), steps, reverse=is_backwards)[1]

    def loss(p: Any) -> Any:
        x = p["embedding"][tokens]
        for ways in p["layers"]:
            found = [over_time(x, weights, d == 1) for d, weights in enumerate(ways)]
            x = jnp.concatenate(found, -1)
        w, b = p["head"]
        return _loss(x.reshape(-1, width * directions) @ w + b, labels)

    def step(p: Any) -> Any:
        slopes = jax.grad(loss)(p)
        norm = jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(slopes)))
        scale = jnp.minimum(5.0 / (norm + 1e-6), 1.0)
        return jax.tree.map(lambda p, g: p - scale * g, p, slopes)

    return _train(step, parameters)


def _train(step: Any, state: Any) -> Program:
    compiled = jax.jit(step)

    def call() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state))

    return call
