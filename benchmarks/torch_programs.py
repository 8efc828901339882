"""What is measured, written with PyTorch. `needle_programs` has the same under the same names."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import torch_networks
from benchmarks.torch_gpt import GPT

Program = Callable[[], Any]


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def set_threads(count: int) -> None:
    torch.set_num_threads(count)


#: What is done to a function that is measured: nothing, or `torch.compile`.
_mode: Callable[[Any], Any] = lambda function: function  # noqa: E731


def compile_programs() -> None:
    """Measure compiled functions from now on."""
    global _mode
    _mode = torch.compile


def _call(function: Any, *args: Any) -> Program:
    """Return a call of a function, without gradients."""
    chosen = _mode(function)

    def call() -> Any:
        with torch.no_grad():
            return chosen(*args)

    return call


def add(n: int) -> Program:
    return _call(lambda x, y: x + y, _normal(n), _normal(n, seed=1))


def exp(rows: int, columns: int) -> Program:
    return _call(lambda x: torch.exp(x), _normal(rows, columns))


def tanh(rows: int, columns: int) -> Program:
    return _call(lambda x: torch.tanh(x), _normal(rows, columns))


def gelu(rows: int, columns: int) -> Program:
    return _call(lambda x: F.gelu(x), _normal(rows, columns))


def chain(rows: int, columns: int) -> Program:
    x, z = _normal(rows, columns), _normal(rows, columns, seed=1)
    s, b = _normal(columns, seed=2), _normal(columns, seed=3)
    return _call(lambda x, s, b, z: F.relu(x * s + b) * z + x, x, s, b, z)


def sum_of_axis(shape: list[int], axis: int) -> Program:
    return _call(lambda x: x.sum(axis), _normal(*shape))


def total(rows: int, columns: int, axis: int | None) -> Program:
    return _call(lambda x: x.sum() if axis is None else x.sum(axis), _normal(rows, columns))


def cross_entropy(rows: int, columns: int) -> Program:
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, columns, rows))
    return _call(lambda x, y: F.cross_entropy(x, y), _normal(rows, columns), labels)


def adam_update(n: int) -> Program:
    w = nn.Parameter(_normal(n))
    w.grad = _normal(n, seed=1)
    optimizer = torch.optim.Adam([w], lr=0.001, fused=_mode is torch.compile)
    return lambda: optimizer.step()


def matmul(m: int, k: int, n: int) -> Program:
    return _call(lambda x, y: x @ y, _normal(m, k), _normal(k, n))


def matmul_low(m: int, k: int, n: int) -> Program:
    x, y = (_normal(*shape).bfloat16() for shape in ((m, k), (k, n)))
    return _call(lambda x, y: x @ y, x, y)


def matmul_transposed(m: int, k: int, n: int) -> Program:
    return _call(lambda x, w: x @ w.T, _normal(m, k), _normal(n, k))


def product(
    m: int, n: int, k: int, layout: str, dtype: str, sizes: str = "known", off: int = 0
) -> Program:
    """For `benchmarks.gemm`; PyTorch does not know sizes before. Its memory begins on cache lines;
    operands ``off`` bytes beyond."""
    kind = getattr(torch, dtype)

    def operand(rows: int, columns: int) -> torch.Tensor:
        first = off // kind.itemsize
        return torch.randn(first + rows * columns, dtype=kind)[first:].view(rows, columns)

    a = operand(k, m).T if layout[0] == "t" else operand(m, k)
    b = operand(n, k).T if layout[1] == "t" else operand(k, n)
    c = torch.empty(m, n, dtype=kind)
    return lambda: torch.mm(a, b, out=c)


def softmax(rows: int, columns: int) -> Program:
    return _call(lambda x: F.softmax(x, -1), _normal(rows, columns))


def attention(batch: int, heads: int, length: int, width: int, grads: bool) -> Program:
    q, k, v, g = (_normal(batch, heads, length, width, seed=i) for i in range(4))

    def forward(q: Any, k: Any, v: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    if not grads:
        return _call(forward, q, k, v)
    layer = _mode(forward)
    for x in (q, k, v):
        x.requires_grad_()
    return lambda: torch.autograd.grad(layer(q, k, v), (q, k, v), g)


def layer_norm(rows: int, columns: int) -> Program:
    x, w, b = _normal(rows, columns), torch.ones(columns), torch.zeros(columns)
    return _call(lambda x, w, b: F.layer_norm(x, (columns,), w, b), x, w, b)


def conv2d(batch: int, channels: int, size: int, out: int) -> Program:
    x, w = _normal(batch, channels, size, size), _normal(out, channels, 3, 3)
    return _call(lambda x, w: F.conv2d(x, w, padding=1), x, w)


def convolution(
    form: str,
    n: int,
    size: int,
    channels: int,
    out: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    last: bool = False,
) -> Program:
    """For `benchmarks.conv`: one convolution or gradient, contiguous or channels last."""
    layout = torch.channels_last if last else torch.contiguous_format
    pad = dilation * (kernel - 1) // 2
    x = _normal(n, channels, size, size).contiguous(memory_format=layout)
    w = _normal(out, channels // groups, kernel, kernel).contiguous(memory_format=layout)
    chosen = {"stride": stride, "padding": pad, "dilation": dilation, "groups": groups}
    with torch.no_grad():
        y = F.conv2d(x, w, **chosen)
    if form == "forward":
        return _call(lambda x, w: F.conv2d(x, w, **chosen), x, w)
    g = torch.randn_like(y)
    pairs = [[v, v] for v in (stride, pad, dilation)]
    mask = [form == "input_grad", form == "weight_grad", False]

    def gradient(g: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> Any:
        return torch.ops.aten.convolution_backward(
            g, x, w, None, *pairs, False, [0, 0], groups, mask
        )

    return _call(gradient, g, x, w)


def _step(
    model: nn.Module,
    optimizer: Any,
    x: torch.Tensor,
    y: torch.Tensor,
    precision: str = "float32",
) -> Program:
    chosen = _mode(model)  # PyTorch compiles the model; its step stays in Python

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.cross_entropy(chosen(x), y)
        loss.backward()
        optimizer.step()

    global _last
    _last = (step, model, optimizer, [x, y])
    return step


#: The last step that was made, and what holds its tensors.
_last: tuple[Program, nn.Module, Any, list[torch.Tensor]]


def tensor_peak() -> int:
    """Return the bytes of all tensors of the last step at its fullest moment, as allocated.

    What lives between steps (parameters, buffers, state of the optimizer, the batch; no gradients:
    `zero_grad` has freed them), and the most that the profiler sees allocated on top of it.
    """
    step, model, optimizer, batch = _last
    optimizer.zero_grad()
    state = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    resident = [*model.parameters(), *model.buffers(), *state, *batch]
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        highest = max(highest, allocated)
    return highest + sum(t.numel() * t.element_size() for t in resident)


def _mlp(batch: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 10, batch))
    return model, _normal(batch, 784), labels


def mlp_forward(batch: int) -> Program:
    model, x, _ = _mlp(batch)
    model.eval()

    forward = _mode(model)

    def call() -> Any:
        with torch.inference_mode():
            return forward(x)

    return call


def mlp_sgd_step(batch: int) -> Program:
    model, x, y = _mlp(batch)
    return _step(model, torch.optim.SGD(model.parameters(), lr=0.01), x, y)


def mlp_adam_step(batch: int) -> Program:
    model, x, y = _mlp(batch)
    return _step(model, torch.optim.Adam(model.parameters(), lr=0.001), x, y)


class _Residual(nn.Module):
    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.function(x))


def mlp_resnet_step(batch: int) -> Program:
    torch.manual_seed(0)

    def block() -> nn.Module:
        layers = [nn.Linear(100, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Dropout(0.1)]
        return _Residual(nn.Sequential(*layers, nn.Linear(50, 100), nn.BatchNorm1d(100)))

    first = [nn.Linear(784, 100), nn.ReLU()]
    model = nn.Sequential(*first, *(block() for _ in range(3)), nn.Linear(100, 10))
    y = torch.from_numpy(np.random.default_rng(1).integers(0, 10, batch))
    return _step(model, torch.optim.Adam(model.parameters(), lr=0.001), _normal(batch, 784), y)


def network_step(network: str, batch: int, size: int, classes: int) -> Program:
    """A step of an image classifier, in the layout in which it is faster."""

    def make(layout: torch.memory_format) -> Program:
        model, x = _network(network, batch, size, classes, layout)
        y = torch.from_numpy(np.random.default_rng(1).integers(0, classes, batch))
        return _step(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), x, y)

    return _faster(make)


def network_forward(
    network: str, batch: int, size: int, classes: int, precision: str = "float32"
) -> Program:
    """What an image classifier says, in the layout in which it is faster."""

    def make(layout: torch.memory_format) -> Program:
        model, x = _network(network, batch, size, classes, layout)
        forward = _mode(model.eval())

        def call() -> Any:
            with (
                torch.inference_mode(),
                torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
            ):
                return forward(x)

        return call

    return _faster(make)


def _network(
    network: str, batch: int, size: int, classes: int, layout: torch.memory_format
) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = getattr(torch_networks, network)(classes).to(memory_format=layout)
    return model, _normal(batch, 3, size, size).contiguous(memory_format=layout)


def _faster(make: Callable[[torch.memory_format], Program]) -> Program:
    """Return the program for contiguous images or for channels last, whichever takes less time."""
    layouts = (torch.contiguous_format, torch.channels_last)

    def seconds(layout: torch.memory_format) -> float:
        program = make(layout)
        program()
        start = time.perf_counter()
        for _ in range(2):
            program()
        return time.perf_counter() - start

    return make(min(layouts, key=seconds))


def gpt_step(
    batch: int,
    context: int,
    layers: int,
    heads: int,
    width: int,
    vocabulary: int,
    precision: str = "float32",
) -> Program:
    torch.manual_seed(0)
    model = GPT(vocabulary, context, layers, heads, width)
    tokens = np.random.default_rng(1).integers(0, vocabulary, (2, batch, context))
    x, y = torch.from_numpy(tokens[0]), torch.from_numpy(tokens[1].reshape(-1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.1)
    return _step(model, optimizer, x, y, precision)


def gpt_decode(
    count: int, context: int, layers: int, heads: int, width: int, vocabulary: int
) -> Program:
    torch.manual_seed(0)
    model = GPT(vocabulary, context, layers, heads, width).eval()
    # Eager PyTorch is fastest where it reads what has been written only; compiled, that would be
    # another program for each token.
    is_compiled = _mode is torch.compile
    step: Any = _mode(model.next_token_anywhere) if is_compiled else model.next_token

    def call() -> list[int]:
        token, chosen = torch.tensor([[1]]), []
        with torch.inference_mode():
            for at in range(count):
                token = step(token, torch.tensor([at]) if is_compiled else at)
                chosen.append(int(token))
        return chosen

    return call


def classify(rows: int, width: int, classes: int) -> Program:
    """A step of softmax regression: product, cross-entropy, both gradients."""
    x, weight = _normal(rows, width), nn.Parameter(_normal(width, classes, seed=1) * 0.02)
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, classes, rows))
    layer = _mode(lambda x, w, y: F.cross_entropy(x @ w, y))
    x.requires_grad_()

    def step() -> Any:
        return torch.autograd.grad(layer(x, weight, labels), (x, weight))

    return step


class _LanguageModel(nn.Module):
    def __init__(
        self, kind: str, vocabulary: int, width: int, layers: int, bidirectional: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.network = getattr(nn, kind)(width, width, layers, bidirectional=bidirectional)
        self.head = nn.Linear(width * (1 + bidirectional), vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
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
    torch.manual_seed(0)
    model = _LanguageModel(kind, vocabulary, width, layers, bidirectional)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    drawn = np.random.default_rng(0).integers(0, vocabulary, (2, time, batch))
    x, y = torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1].reshape(-1))
    chosen = _mode(model)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(chosen(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step
