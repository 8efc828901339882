"""What is measured, written with needle. `torch_programs` has the same under the same names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import needle as ndl
from needle import nn, optim
from needle.nn import functional as F

Program = Callable[[], Any]


def _normal(*shape: int, seed: int = 0) -> ndl.Tensor:
    return ndl.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def set_threads(count: int) -> None:
    """Nothing to do: NumPy's BLAS reads the environment."""


#: What is done to a function that is measured: nothing, or `needle.compile`.
_mode: Callable[[Any], Any] = lambda function: function  # noqa: E731


def compile_programs() -> None:
    """Measure compiled functions from now on."""
    global _mode
    _mode = ndl.compile


def _call(function: Any, *args: Any) -> Program:
    """Return a call of a function, without gradients."""
    chosen = _mode(function)

    def call() -> Any:
        with ndl.no_grad():
            return chosen(*args)

    return call


def add(n: int) -> Program:
    return _call(lambda x, y: x + y, _normal(n), _normal(n, seed=1))


def exp(rows: int, columns: int) -> Program:
    return _call(ndl.exp, _normal(rows, columns))


def tanh(rows: int, columns: int) -> Program:
    return _call(ndl.tanh, _normal(rows, columns))


def gelu(rows: int, columns: int) -> Program:
    return _call(lambda x: F.gelu(x), _normal(rows, columns))


def chain(rows: int, columns: int) -> Program:
    x, z = _normal(rows, columns), _normal(rows, columns, seed=1)
    s, b = _normal(columns, seed=2), _normal(columns, seed=3)
    return _call(lambda x, s, b, z: F.relu(x * s + b) * z + x, x, s, b, z)


def sum_of_axis(shape: list[int], axis: int) -> Program:
    return _call(lambda x: x.sum(axis), _normal(*shape))


def total(rows: int, columns: int, axis: int | None) -> Program:
    return _call(lambda x: x.sum(axis), _normal(rows, columns))


def cross_entropy(rows: int, columns: int) -> Program:
    labels = ndl.asarray(np.random.default_rng(1).integers(0, columns, rows))
    return _call(lambda x, y: F.cross_entropy(x, y), _normal(rows, columns), labels)


def adam_update(n: int) -> Program:
    w = ndl.Tensor(np.random.default_rng(0).standard_normal(n, dtype=np.float32))
    w.grad = _normal(n, seed=1)
    return optim.Adam([w], lr=0.001).step


def matmul(m: int, k: int, n: int) -> Program:
    return _call(lambda x, y: x @ y, _normal(m, k), _normal(k, n))


def matmul_low(m: int, k: int, n: int) -> Program:
    x, y = (_normal(*shape).astype("bfloat16") for shape in ((m, k), (k, n)))
    return _call(lambda x, y: x @ y, x, y)


def matmul_transposed(m: int, k: int, n: int) -> Program:
    return _call(lambda x, w: x @ w.T, _normal(m, k), _normal(n, k))


def softmax(rows: int, columns: int) -> Program:
    return _call(lambda x: F.softmax(x, -1), _normal(rows, columns))


def attention(batch: int, heads: int, length: int, width: int, grads: bool) -> Program:
    q, k, v, g = (_normal(batch, heads, length, width, seed=i) for i in range(4))

    def forward(q: ndl.Tensor, k: ndl.Tensor, v: ndl.Tensor) -> ndl.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    if not grads:
        return _call(forward, q, k, v)
    for x in (q, k, v):
        x.requires_grad = True

    def step(q: ndl.Tensor, k: ndl.Tensor, v: ndl.Tensor, g: ndl.Tensor) -> Any:
        return ndl.grad(forward(q, k, v), (q, k, v), g)

    chosen = _mode(step)
    return lambda: chosen(q, k, v, g)


def layer_norm(rows: int, columns: int) -> Program:
    x, w, b = _normal(rows, columns), ndl.ones(columns), ndl.zeros(columns)
    return _call(lambda x, w, b: F.layer_norm(x, (columns,), w, b), x, w, b)


def conv2d(batch: int, channels: int, size: int, out: int) -> Program:
    x, w = _normal(batch, channels, size, size), _normal(out, channels, 3, 3)
    return _call(lambda x, w: F.conv2d(x, w, padding=1), x, w)


def _step(
    model: nn.Module,
    optimizer: Any,
    x: ndl.Tensor,
    y: ndl.Tensor,
    precision: str = "float32",
) -> Program:
    def step(x: ndl.Tensor, y: ndl.Tensor) -> ndl.Tensor:
        optimizer.zero_grad()
        with ndl.autocast(enabled=precision == "bfloat16"):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    chosen = _mode(step)
    global _planned_bytes
    _planned_bytes = lambda: ndl.compile(step).memory_plan(x, y).peak_bytes  # noqa: E731
    return lambda: chosen(x, y)


#: What the last step that was made will have in memory.
_planned_bytes: Callable[[], int]


def tensor_peak() -> int:
    """Return the bytes of all tensors of the last step at its fullest moment, as planned."""
    return _planned_bytes()


def _mlp(batch: int) -> tuple[nn.Module, ndl.Tensor, ndl.Tensor]:
    ndl.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    labels = ndl.asarray(np.random.default_rng(1).integers(0, 10, batch))
    return model, _normal(batch, 784), labels


def mlp_forward(batch: int) -> Program:
    model, x, _ = _mlp(batch)
    model.eval()

    forward = _mode(model)

    def call() -> Any:
        with ndl.inference_mode():
            return forward(x)

    return call


def mlp_sgd_step(batch: int) -> Program:
    model, x, y = _mlp(batch)
    return _step(model, optim.SGD(model.parameters(), lr=0.01), x, y)


def mlp_adam_step(batch: int) -> Program:
    model, x, y = _mlp(batch)
    return _step(model, optim.Adam(model.parameters(), lr=0.001), x, y)


def mlp_resnet_step(batch: int) -> Program:
    from needle.models import MLPResNet

    ndl.manual_seed(0)
    model = MLPResNet(784, hidden=100)
    labels = ndl.asarray(np.random.default_rng(1).integers(0, 10, batch))
    return _step(model, optim.Adam(model.parameters(), lr=0.001), _normal(batch, 784), labels)


def network_step(network: str, batch: int, size: int, classes: int) -> Program:
    """A step of an image classifier."""
    model, x = _network(network, batch, size, classes)
    y = ndl.asarray(np.random.default_rng(1).integers(0, classes, batch))
    return _step(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9), x, y)


def network_forward(
    network: str, batch: int, size: int, classes: int, precision: str = "float32"
) -> Program:
    """What an image classifier says."""
    model, x = _network(network, batch, size, classes)
    model.eval()

    def compute(x: ndl.Tensor) -> ndl.Tensor:
        with ndl.autocast(enabled=precision == "bfloat16"):
            return model(x)

    forward = _mode(compute)

    def call() -> Any:
        with ndl.inference_mode():
            return forward(x)

    return call


def _network(network: str, batch: int, size: int, classes: int) -> tuple[nn.Module, ndl.Tensor]:
    from needle import models

    makers: dict[str, Callable[[], nn.Module]] = {
        "resnet20": lambda: models.resnet20(classes),
        "resnet18_cifar": lambda: models.resnet18(classes, small_images=True),
        "resnet50": lambda: models.resnet50(classes),
        "mobilenet_v2_cifar": lambda: models.MobileNetV2(classes, small_images=True),
    }
    ndl.manual_seed(0)
    return makers[network](), _normal(batch, 3, size, size)


def _gpt(context: int, layers: int, heads: int, width: int, vocabulary: int) -> nn.Module:
    from needle.models import GPT, GPTConfig

    ndl.manual_seed(0)
    return GPT(GPTConfig(vocabulary, context, layers, heads, width))


def gpt_step(
    batch: int,
    context: int,
    layers: int,
    heads: int,
    width: int,
    vocabulary: int,
    precision: str = "float32",
) -> Program:
    model = nn.Sequential(_gpt(context, layers, heads, width, vocabulary), nn.Flatten(0, 1))
    tokens = np.random.default_rng(1).integers(0, vocabulary, (2, batch, context))
    x, y = ndl.asarray(tokens[0]), ndl.asarray(tokens[1].reshape(-1))
    optimizer = optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.1)
    return _step(model, optimizer, x, y, precision)


def gpt_decode(
    count: int, context: int, layers: int, heads: int, width: int, vocabulary: int
) -> Program:
    model: Any = _gpt(context, layers, heads, width, vocabulary)
    is_compiled = _mode is ndl.compile
    return lambda: model.generate([[1]], count, temperature=0, compiled=is_compiled)[0][1:]


def classify(rows: int, width: int, classes: int) -> Program:
    """A step of softmax regression: product, cross-entropy, both gradients."""
    x, labels = _normal(rows, width), np.random.default_rng(1).integers(0, classes, rows)
    weight = ndl.Tensor(_normal(width, classes, seed=1).numpy() * 0.02)
    x.requires_grad = True
    y = ndl.asarray(labels)

    def step(x: ndl.Tensor, w: ndl.Tensor, y: ndl.Tensor) -> Any:
        return ndl.grad(F.cross_entropy(x @ w, y), (x, w))

    chosen = _mode(step)
    return lambda: chosen(x, weight, y)


class _LanguageModel(nn.Module):
    """A model of W. Zaremba et al., "Recurrent Neural Network Regularization", 2014."""

    def __init__(
        self, kind: str, vocabulary: int, width: int, layers: int, bidirectional: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.network = getattr(nn, kind)(width, width, layers, bidirectional=bidirectional)
        self.head = nn.Linear(width * (1 + bidirectional), vocabulary)

    def forward(self, tokens: ndl.Tensor) -> ndl.Tensor:
        return self.head(self.network(self.embedding(tokens))[0]).flatten(0, 1)


def recurrent_step(
    kind: str,
    time: int,
    batch: int,
    vocabulary: int,
    width: int,
    layers: int = 2,
    bidirectional: bool = False,
) -> Program:
    ndl.manual_seed(0)
    model = _LanguageModel(kind, vocabulary, width, layers, bidirectional)
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    drawn = np.random.default_rng(0).integers(0, vocabulary, (2, time, batch))
    x, y = ndl.asarray(drawn[0]), ndl.asarray(drawn[1].reshape(-1))

    def step(x: ndl.Tensor, y: ndl.Tensor) -> ndl.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return loss

    chosen = _mode(step)
    return lambda: chosen(x, y)
