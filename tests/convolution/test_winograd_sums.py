"""Gradients by 3×3 weights in Winograd's form: they are what the definition says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle.backends.cpu.executable import build
from needle.backends.cpu.target import Target
from needle.compiler import pipeline
from needle.errors import ArgumentError
from needle.graph import trace
from needle.graph.interpret import Interpreter
from needle.ops.winograd_sums import conv2d_weight_grad_by_winograd

Pads = tuple[tuple[int, int], tuple[int, int]]

#: Images, rows and columns of results, channels, output channels, padding.
CASES: list[tuple[int, tuple[int, int], int, int, Pads]] = [
    (2, (6, 6), 16, 16, ((1, 1), (1, 1))),
    (3, (7, 5), 9, 20, ((1, 1), (1, 1))),
    (1, (1, 1), 1, 1, ((1, 1), (1, 1))),
    (5, (2, 9), 17, 33, ((0, 0), (2, 1))),
    (9, (3, 3), 3, 40, ((2, 2), (2, 2))),
    (2, (5, 4), 8, 8, ((-1, 0), (0, -1))),
    (4, (4, 6), 130, 140, ((1, 1), (1, 1))),  # parts of two sizes
    (1, (3, 130), 8, 48, ((1, 1), (1, 1))),  # a row of tiles is a block
    (19, (4, 4), 5, 12, ((1, 0), (0, 1))),  # pieces of 2 and 3 images
    (2, (40, 31), 16, 16, ((1, 1), (1, 1))),  # several blocks of an image
    (2, (4, 4), 4, 4, ((5, 0), (0, 6))),  # some tiles see padding alone
]


def operands(case: tuple[Any, ...]) -> tuple[Any, Any, dict[str, Any]]:
    """Return cotangent, images, and how the kernel moves."""
    images, (rows, columns), channels, outs, pads = case
    rng = np.random.default_rng(0)
    height, width = rows + 2 - sum(pads[0]), columns + 2 - sum(pads[1])
    g = rng.normal(size=(images, rows, columns, outs)).astype(np.float32)
    x = rng.normal(size=(images, height, width, channels)).astype(np.float32)
    moves = {"stride": (1, 1), "pads": pads, "dilation": (1, 1), "groups": 1}
    return ndl.asarray(g), ndl.asarray(x), {"kernel": (3, 3), **moves}


def traced(g: Any, x: Any, moves: dict[str, Any]) -> Any:
    """Return the graph of the gradient in Winograd's form, which has an epilogue."""
    return pipeline.run(
        trace(lambda g, x: [conv2d_weight_grad_by_winograd(g, x, **moves) * 2 + 1], g, x).graph
    )


def expected(g: Any, x: Any, moves: dict[str, Any]) -> Any:
    """Return what the definition gives, in float64, and its scale."""
    wide = (ndl.asarray(t.numpy().astype(np.float64)) for t in (g, x))
    exact = ndl.conv2d_nhwc_weight_grad(*wide, **moves).numpy() * 2 + 1
    return exact, np.sqrt(np.mean(exact**2))


def run(executable: Any, graph: Any, g: Any, x: Any) -> Any:
    constants = [v.constant for v in graph.inputs[2:]]
    (y,) = executable.run([g.numpy(), x.numpy(), *constants])
    return y


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_gradient(case: tuple[Any, ...]) -> None:
    g, x, moves = operands(case)
    graph = traced(g, x, moves)
    exact, scale = expected(g, x, moves)
    for executable in (build(graph, 1), Interpreter(graph)):
        np.testing.assert_allclose(run(executable, graph, g, x), exact, atol=4e-6 * scale)


@pytest.mark.parametrize("name", ["sse2", "avx2"])
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_other_instruction_sets(name: str, case: tuple[Any, ...]) -> None:
    try:
        target = Target.named(name)
    except ArgumentError:
        pytest.skip(f"this machine has no {name}")
    g, x, moves = operands(case)
    graph = traced(g, x, moves)
    exact, scale = expected(g, x, moves)
    result = run(build(graph, 2, target), graph, g, x)
    np.testing.assert_allclose(result, exact, atol=4e-6 * scale)


@pytest.mark.parametrize("case", [(24, (16, 16), 40, 24), (5, (14, 14), 64, 96)], ids=str)
def test_threads_change_no_bit(case: tuple[Any, ...]) -> None:
    """Neither do they where there are more than pieces, and channels are split for them."""
    g, x, moves = operands((*case, ((1, 1), (1, 1))))
    graph = traced(g, x, moves)
    first, *others = (run(build(graph, n), graph, g, x) for n in (1, 2, 3, 4, 7))
    for other in others:
        np.testing.assert_array_equal(other, first)


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 9),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.tuples(st.integers(1, 35), st.integers(1, 35)),
    pads=st.tuples(*[st.tuples(st.integers(-1, 3), st.integers(-1, 3))] * 2),
)
def test_any_shape(
    images: int, size: tuple[int, int], channels: tuple[int, int], pads: Pads
) -> None:
    if any(n + 2 - sum(p) < 1 for n, p in zip(size, pads, strict=True)):
        return
    g, x, moves = operands((images, size, *channels, pads))
    graph = traced(g, x, moves)
    exact, scale = expected(g, x, moves)
    np.testing.assert_allclose(run(build(graph, 2), graph, g, x), exact, atol=4e-6 * scale)


def chosen(images: int, size: int, channels: int, outs: int, **moves: Any) -> bool:
    """Whether the gradient by the weight of such a layer is computed in Winograd's form."""
    x = ndl.zeros((images, channels, size, size), dtype=moves.pop("dtype", "float32"))
    w = ndl.zeros((outs, channels, 3, 3), dtype=x.dtype)
    w.requires_grad = True

    def gradient(w: Any, x: Any) -> list[Any]:
        return [ndl.grad(ndl.conv2d(x, w, padding=1, **moves).sum(), w)]

    graph = pipeline.run(trace(gradient, w, x).graph)
    return any(node.op.name == "conv2d_winograd_sums" for node in graph.nodes)


def test_where_it_pays() -> None:
    assert chosen(32, 16, 64, 64)
    assert chosen(128, 32, 16, 16)
    assert not chosen(32, 32, 3, 64)  # to transform so many results costs more than it saves
    assert not chosen(1, 2, 64, 64)  # and so does it to transform the sums of so few
    assert not chosen(32, 16, 64, 64, stride=2)
    assert not chosen(32, 16, 64, 64, dilation=2)
    assert not chosen(32, 16, 64, 64, dtype="float64")
    assert not chosen(0, 16, 64, 64)


def test_errors_stay_near_those_of_the_definition() -> None:
    """The root of the mean square of errors is at most 1.4 times that of the kernel of products."""
    g, x, moves = operands((8, (14, 14), 64, 32, ((1, 1), (1, 1))))
    x = ndl.relu(x)
    exact, _ = expected(g, x, moves)
    graph = traced(g, x, moves)
    plain = trace(lambda g, x: [ndl.conv2d_nhwc_weight_grad(g, x, **moves) * 2 + 1], g, x).graph
    errors = [
        np.sqrt(np.mean((run(build(graph, 2), graph, g, x) - exact) ** 2))
        for graph in (graph, plain)
    ]
    assert errors[0] < 1.4 * errors[1]
