"""Functions of a batch, for the tests of extents that vary: all families of ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import needle as ndl
import needle.nn.functional as F
from needle import nn


class Case(NamedTuple):
    """A function of tensors with a batch.

    Attributes:
        name: for people.
        function: the function, or what makes it, for one that has state.
        shapes: of the arguments, without the batch; a dtype may follow.
        exact: whether the results are those of a program for one extent, bit for bit; else sums
            over the batch may be added in another order.
        reason: what stands in the way of one program; empty if nothing does.
    """

    name: str
    function: Callable[..., Any]
    shapes: tuple[Any, ...] = ((5,),)
    exact: bool = True
    reason: str = ""


def _weights(*shape: int, seed: int = 0) -> Any:
    return ndl.Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 4)


W, B, V = _weights(5, 7), _weights(7), _weights(5)
TABLE = _weights(10, 6)
LABELS = ((), np.int64)

CASES = [
    # Elementwise
    Case("chain", lambda x: ndl.exp(x * 2 + 1) - ndl.tanh(x)),
    Case("broadcast", lambda x, y: x * V + y, ((5,), (1,))),
    Case("where", lambda x, y: ndl.where(x > y, x, y * 2), ((5,), (5,))),
    Case("comparison", lambda x: (x > 0) & (x < 1)),
    Case("float64", lambda x: ndl.erf(x) * 3, ((4, np.float64),)),
    Case("float16", lambda x: x * 2 + 1, (((9,), np.float16),)),
    Case("integers", lambda x: x // 3 + x % 5, (((4,), np.int32),)),
    Case("vector", lambda x: x * x + 1, ((),)),
    Case("several results", lambda x: (x + 1, {"y": x * 2, "n": 3})),
    Case("the argument itself", lambda x: (x, x + 1)),
    # Reductions
    Case("sum of rows", lambda x: x.sum(axis=1)),
    Case("long rows", lambda x: ndl.square(x).mean(axis=1), ((1000,),)),
    Case("sum over batch", lambda x: x.sum(axis=0)),
    Case("mean over batch", lambda x: x.mean(axis=0)),
    Case("mean of all", lambda x: x.mean(), exact=False),
    Case("sum of all", lambda x: (x * x).sum(), ((3, 4),), exact=False),
    Case("largest", lambda x: (x.max(axis=0), x.min(axis=1), x.max())),
    Case("places", lambda x: (x.argmax(axis=1), x.argmax(axis=0))),
    Case("variance", lambda x: (x.var(axis=1), x.std(axis=1, correction=1))),
    Case("variance of the batch", lambda x: x.var(axis=0), exact=False),
    Case("all and any", lambda x: ((x > 0).all(axis=1), (x > 3).any(axis=0))),
    Case("norm of rows", lambda x: x / ndl.sqrt((x * x).sum(axis=1, keepdims=True) + 1e-6)),
    Case("centred", lambda x: x - x.mean(axis=0), exact=False),
    # Rows
    Case("softmax", lambda x: F.softmax(x, axis=-1)),
    Case("softmax over the batch", lambda x: F.softmax(x, axis=0), exact=False),
    Case("log softmax", lambda x: F.log_softmax(x, axis=1), ((33,),)),
    Case("layer norm", lambda x: F.layer_norm(x, (5,), V, V)),
    Case("cross entropy", lambda x, y: F.cross_entropy(x, y), ((6,), LABELS), exact=False),
    Case("losses", lambda x, y: F.cross_entropy(x, y, reduction="none"), ((6,), LABELS)),
    Case("squares", lambda x, y: ndl.mse_loss(x, y), ((5,), (5,)), exact=False),
    # Products
    Case("product", lambda x: x @ W),
    Case("layer", lambda x: ndl.relu(x @ W + B)),
    Case("transposed weight", lambda x: x @ ndl.permute_dims(_weights(9, 5), (1, 0))),
    Case("matrix times vector", lambda x: x @ V),
    Case("sequences", lambda x: x @ W, ((4, 5),)),
    Case("batches of products", lambda x, y: x @ y, ((3, 4), (4, 6))),
    Case("scores", lambda x: F.softmax(x @ ndl.permute_dims(x, (0, 2, 1)), axis=-1), ((6, 4),)),
    Case("sum of products", lambda x, y: ndl.permute_dims(x, (1, 0)) @ y, ((5,), (7,))),
    Case(
        "sum of products of sequences", lambda x: x.reshape(-1, 5).T @ x.reshape(-1, 5), ((3, 5),)
    ),
    Case("columns", lambda x: W.T @ x.T, reason="the number of columns of a matrix product varies"),
    Case("gram", lambda x: x @ x.T, reason="on two axes"),
    # Movement
    Case("flat", lambda x: x.reshape(x.shape[0], -1) * 2, ((3, 4),)),
    Case("rows of all", lambda x: x.reshape(-1, 4) + 1, ((3, 4),)),
    Case("one axis", lambda x: x.reshape(-1) * 2, ((3, 4),)),
    Case("transposed", lambda x: x.T + 1),
    Case("heads", lambda x: ndl.permute_dims(x.reshape(-1, 3, 2, 4), (0, 2, 1, 3)) * 2, ((3, 8),)),
    Case("twice", lambda x: ndl.concat([x, x + 1])),
    Case("side by side", lambda x: ndl.concat([x, x * 2], axis=1)),
    Case("stacked", lambda x: ndl.stack([x, x * 2], axis=1)),
    Case("stacked in front", lambda x: ndl.stack([x, x * 2])),
    Case("halves", lambda x: [p * 2 for p in ndl.split(x, 2, axis=1)], ((4,),)),
    Case("columns of it", lambda x: x[:, 1:3] + x[:, ::2][:, :2]),
    Case("first column", lambda x: x[:, 0] * 2, ((3, 4),)),
    Case("turned rows", lambda x: ndl.flip(x, axis=1)),
    Case("turned batch", lambda x: ndl.flip(x, axis=0), reason="no multiple of batch"),
    Case("every second", lambda x: x[::2] + 1, reason="goes in steps"),
    Case("padded rows", lambda x: ndl.pad(x, ((0, 0), (1, 2))) + 1),
    Case("one more", lambda x: ndl.pad(x, ((0, 1), (0, 0))) + 1, reason="only multiples"),
    Case("repeated", lambda x: ndl.tile(x, (2, 3)) + 1),
    Case("new axis", lambda x: ndl.expand_dims(x, 1) * _weights(4, 1)),
    Case("zeros like it", lambda x: ndl.zeros((x.shape[0], 3)) + x[:, :3]),
    # Places
    Case("embedding", lambda i: TABLE[i] * 2, (((4,), np.int64),)),
    Case("along", lambda x, i: ndl.take_along_axis(x, i, axis=1), ((6,), ((2,), np.int64))),
    Case("one hot", lambda i: F.one_hot(i, 10), (LABELS,)),
    # Scans and sorts
    Case("running sum", lambda x: ndl.cumulative_sum(x, axis=1)),
    Case("running sum over the batch", lambda x: ndl.cumulative_sum(x, axis=0)),
    Case("sorted", lambda x: ndl.sort(x, axis=1), ((20,),)),
    Case("best", lambda x: ndl.topk(x, 2, axis=1), ((20,),)),
    # What asks about the extent
    Case("divided by it", lambda x: x.sum(axis=0) / x.shape[0]),
    Case("its reciprocal", lambda x: x * (1 / x.shape[0]) + (x.shape[0] - 1)),
    Case("returned", lambda x: (x + 1, x.shape[0], x.shape[0] * 2 + 1)),
    Case("if many", lambda x: x * 2 if x.shape[0] > 16 else x * 3),
    Case("at most", lambda x: x / min(x.shape[0], 8)),
    Case("a loop", lambda x: sum((x[i] for i in range(x.shape[0])), 0.0 * x[0]), reason="number"),
    Case("an array", lambda x: x + np.ones(x.shape, np.float32), reason="used as a number"),
    Case("an int", lambda x: x / int(x.shape[0]), reason="is made an int"),
    Case("text", lambda x: x + len(f"{x.shape[0]}"), reason="is made text"),
    Case("a table", lambda x: x * {1: 2.0}.get(x.shape[0], 3.0), reason="looked up"),
    Case("its type", lambda x: x * (2 if isinstance(x.shape[0], int) else 3), reason="type"),
]


def model_cases() -> list[Case]:
    """Return models, which have state."""
    perceptron = nn.Sequential(nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 4))
    encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    images = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    normed = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    normed.eval()
    return [
        Case("perceptron", lambda x: perceptron(x), ((20,),)),
        Case("encoder", lambda x: encoder(x), ((6, 16),)),
        Case("images", lambda x: images(x), ((2, 6, 6),), reason="a known number of images"),
        Case("batch norm in inference", lambda x: normed(x), ((6,),)),
    ]


def draw(shape: Any, extent: int, seed: int = 0) -> Any:
    """Return an argument of a case for a batch."""
    dtype: Any = np.float32
    if len(shape) == 2 and isinstance(shape[1], type):
        shape, dtype = shape
    shape = (shape,) if isinstance(shape, int) else shape
    rng = np.random.default_rng(seed + 7 * extent)
    if np.dtype(dtype).kind == "i":
        return ndl.asarray(rng.integers(0, 6, (extent, *shape)).astype(dtype))
    return ndl.asarray(rng.standard_normal((extent, *shape)).astype(dtype))
