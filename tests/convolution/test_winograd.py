"""Convolution by Winograd's algorithm: values, bits, epilogues, and where it is chosen."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle import nn, optim
from needle.backends.cpu import jit
from needle.backends.cpu.conv import ConvSpec, emit_conv
from needle.backends.cpu.executable import build
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import Target
from needle.compiler import pipeline
from needle.errors import ArgumentError, DTypeError, NeedleError, ShapeError
from needle.graph import trace
from needle.nn import functional as F
from needle.ops import winograd_convolution as w
from needle.ops.unfolding import convolve, convolve_input_grad
from needle.shapes import Spec


def targets() -> list[Target | None]:
    """Return this machine's instruction set, and those that it has besides."""
    found: list[Target | None] = [None]
    for name in ("sse2", "avx2"):
        try:
            found.append(Target.named(name))
        except ArgumentError:  # noqa: PERF203 - two
            continue
    return found


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def run_kernel(
    spec: ConvSpec, x: Any, u: Any, target: Target | None, threads: int, *, guard: int = 64
) -> Any:
    """Return what a kernel alone computes: task by task, in memory that holds NaN before."""
    module = Module(target)
    kernel = emit_conv(module, spec, threads)
    names = {"x": "ptr", "w": "ptr", "out": "ptr", "workspace": "ptr"}
    f = Function(module, "run", names, internal=False)
    for task in range(kernel.tasks):
        kernel.call(f, "%x", "%w", "%out", workspace="%workspace", task=task)
    f.end()
    run = jit.load(module).function("run", *[ctypes.c_void_p] * 4)
    out = np.full(int(np.prod(spec.result)) + guard, np.nan, np.float32)
    workspace = np.full(kernel.workspace // 4 + 16 + guard, np.nan, np.float32)
    start = -workspace.ctypes.data % 64 // 4
    run(*(ctypes.c_void_p(a.ctypes.data) for a in (x, u, out, workspace[start:])))
    assert np.isnan(out[len(out) - guard :]).all()
    assert np.isnan(workspace[start + kernel.workspace // 4 :]).all()
    return out[: len(out) - guard].reshape(spec.result)


def exact(x: Any, weight: Any, pads: Any) -> tuple[Any, Any]:
    """Return a convolution in float64, and the same of absolute values."""
    attrs: dict[str, Any] = {"pads": pads, "stride": (1, 1), "dilation": (1, 1), "groups": 1}
    image, kernel = x.astype(np.float64).transpose(0, 3, 1, 2), weight.transpose(3, 2, 0, 1)
    both = (convolve(f(image), f(kernel.astype(np.float64)), **attrs) for f in (np.asarray, np.abs))
    result, size = (y.transpose(0, 2, 3, 1) for y in both)
    return result, size


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_shape_gives_what_the_definition_does(data: Any) -> None:
    integers = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    n, height, width = integers(1, 5), integers(1, 11), integers(1, 19)
    channels, outs = (data.draw(st.sampled_from([1, 3, 8, 16, 17, 33, 40, 65])) for _ in "co")
    low = [2 - size for size in (height, width)]  # so that there is a result
    (top, bottom), (left, right) = (
        (a, max(integers(-1, 3), k + 1 - a)) for k in low for a in [integers(-1, 3)]
    )
    pads = ((top, bottom), (left, right))
    target = data.draw(st.sampled_from(targets()))
    spec = ConvSpec(
        "forward", n, height, width, channels, outs, (3, 3), pads=pads, by_winograd=True
    )
    x, weight = drawn(n, height, width, channels), drawn(3, 3, channels, outs, seed=1)
    u = w.WINOGRAD_WEIGHT.reference(weight, is_turned=False)
    whole = run_kernel(spec, x, u, target, 1)
    want, size = exact(x, weight, pads)
    assert whole.shape == want.shape
    assert (abs(whole - want) <= 3e-6 * size.max() / np.sqrt(9 * channels)).all()
    np.testing.assert_allclose(
        w.CONV2D_WINOGRAD.reference(x, u, out_channels=outs, pads=pads), whole, atol=1e-3
    )
    # Neither tasks nor the batch change a bit.
    for threads in (2, 3):
        assert run_kernel(spec, x, u, target, threads).tobytes() == whole.tobytes()
    alone = ConvSpec(
        "forward", 1, height, width, channels, outs, (3, 3), pads=pads, by_winograd=True
    )
    assert run_kernel(alone, x[-1:], u, target, 1).tobytes() == whole[-1:].tobytes()


SIZES = {
    "ResNet": (4, (8, 8), 64, 64, 1),
    "odd": (3, (9, 11), 17, 33, 1),
    "oblong": (2, (5, 40), 20, 48, (0, 1)),
    "padded more": (2, (8, 9), 16, 80, 3),
    "unpadded": (2, (11, 12), 40, 16, 0),
    "many channels": (3, (8, 8), 256, 272, 1),
}


def program(padding: Any) -> Any:
    def forms(x: Any, weight: Any, g: Any) -> Any:
        y = ndl.conv2d(x, weight, padding=padding)
        return (ndl.relu(y), *ndl.grad([y], [x, weight], [g]))

    return forms


def operands(name: str) -> tuple[Any, Any, Any]:
    n, size, channels, outs, padding = SIZES[name]
    x, weight = drawn(n, channels, *size), drawn(outs, channels, 3, 3, seed=1)
    y = ndl.conv2d(ndl.asarray(x), ndl.asarray(weight), padding=padding)
    return x, weight, drawn(*y.shape, seed=2)


def run(name: str, given_: Any, threads: int, target: Target | None = None) -> tuple[Any, Any]:
    """Return what the three forms give, and the graph."""
    tensors = [ndl.Tensor(a) for a in given_]
    traced = trace(program(SIZES[name][4]), *tensors)
    return build(traced.graph, threads, target).run(traced.arrays(*tensors)), traced.graph


def names_in(graph: Any) -> list[str]:
    return [node.op.name for node in pipeline.run(graph).nodes]


@pytest.mark.parametrize("target", targets(), ids=lambda t: t.name if t else "host")
@pytest.mark.parametrize("name", SIZES)
def test_a_layer_and_its_gradient_by_the_input(name: str, target: Target | None) -> None:
    x, weight, g = operands(name)
    padding = SIZES[name][4]
    (top, left) = (padding, padding) if isinstance(padding, int) else padding
    attrs: dict[str, Any] = {
        "pads": ((top, top), (left, left)),
        "stride": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
    }
    whole, graph = run(name, (x, weight, g), 2, target)
    assert names_in(graph).count("conv2d_winograd") == 2
    assert names_in(graph).count("winograd_weight") == 2
    wide = [a.astype(np.float64) for a in (x, weight, g)]
    want = np.maximum(convolve(wide[0], wide[1], **attrs), 0)
    by_x = convolve_input_grad(wide[2], wide[1], size=x.shape[2:], **attrs)
    for got, right in zip(whole[:2], (want, by_x), strict=True):
        np.testing.assert_allclose(got, right, atol=2e-6 * abs(right).max())
    for threads in (1, 3):
        for a, e in zip(run(name, (x, weight, g), threads, target)[0], whole, strict=True):
            assert a.tobytes() == e.tobytes()
    alone, _ = run(name, (x[:1], weight, g[:1]), 1, target)
    for a, e in zip(alone[:2], whole[:2], strict=True):
        assert a.tobytes() == e[:1].tobytes()


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize(("channels", "outs"), [(1, 1), (3, 40), (17, 33), (64, 48), (130, 128)])
def test_transformed_weights_are_those_of_the_reference(
    channels: int, outs: int, is_turned: bool
) -> None:
    weight = drawn(3, 3, channels, outs)
    want = w.WINOGRAD_WEIGHT.reference(weight, is_turned=is_turned)
    graph = trace(lambda x: [w.transform_weight(x, is_turned=is_turned)], weight).graph
    for target in targets():
        first = None
        for threads in (1, 2, 3):
            (got,) = build(graph, threads, target).run([weight])
            np.testing.assert_allclose(got, want, atol=1e-6)
            assert first is None or got.tobytes() == first
            first = got.tobytes()


def test_the_shape_alone_decides() -> None:
    """Not the batch: few pixels of one image are no rows of a product either."""

    def count(n: int, size: int, channels: int, outs: int, **moves: Any) -> int:
        x, weight = drawn(n, channels, size, size), drawn(outs, channels, 3, 3)
        graph = trace(lambda x, k: [ndl.conv2d(x, k, **moves)], x, weight).graph
        return names_in(graph).count("conv2d_winograd")

    for n in (1, 2, 40):
        assert count(n, 8, 256, 256, padding=1) == 1
        assert count(n, 4, 512, 512, padding=1) == 0  # few pixels
        assert count(n, 32, 3, 64, padding=1) == 0  # few channels
        assert count(n, 32, 64, 8, padding=1) == 0
    for moves in ({"stride": 2}, {"dilation": 2}, {"padding": (1, 0), "stride": (1, 2)}):
        assert count(2, 32, 32, 32, **moves) == 0
    # A row of tiles that does not stay in the cache.
    x, weight = drawn(1, 512, 4, 400), drawn(16, 512, 3, 3)
    graph = trace(lambda x, k: [ndl.conv2d(x, k)], x, weight).graph
    assert "conv2d_winograd" not in names_in(graph)


def test_groups_other_kernels_and_dtypes_stay_as_they_are() -> None:
    x = drawn(2, 32, 16, 16)
    for weight, given_, moves in (
        (drawn(32, 16, 3, 3), x, {"groups": 2}),
        (drawn(32, 32, 5, 5), x, {}),
        (drawn(32, 32, 3, 3).astype(np.float64), x.astype(np.float64), {}),
    ):
        graph = trace(lambda x, k: [ndl.conv2d(x, k, **moves)], given_, weight).graph  # noqa: B023
        assert "conv2d_winograd" not in names_in(graph)


def test_float16_is_computed_in_float32() -> None:
    x, weight = (drawn(2, 32, 9, 9).astype(np.float16), drawn(16, 32, 3, 3).astype(np.float16))
    graph = trace(lambda x, k: [ndl.conv2d(x, k, padding=1)], x, weight).graph
    assert "conv2d_winograd" in names_in(graph)
    (got,) = build(graph, 2).run([x, weight])
    want = ndl.conv2d(ndl.asarray(x), ndl.asarray(weight), padding=1).numpy()
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
@pytest.mark.parametrize("channels", [24, 144])
def test_what_follows_is_its_epilogue(size: tuple[int, int], channels: int) -> None:
    """Short ones are repeated for each pixel of a tile, long ones run in a loop over it."""
    x, rest = (ndl.asarray(drawn(3, channels, *size, seed=i)) for i in range(2))
    layer, norm = nn.Conv2d(channels, 40, 3, padding=1), nn.BatchNorm2d(40)
    norm.eval()
    norm.running_mean.copy_(ndl.asarray(drawn(40)))
    rest = ndl.asarray(drawn(3, 40, *size, seed=1))

    def short(x: Any) -> Any:
        return ndl.relu(layer(x))

    def long(x: Any, rest: Any) -> Any:
        y = norm(layer(x)) + rest
        return F.gelu(y), ndl.sigmoid(y) * rest

    for function, given_ in ((short, (x,)), (long, (x, rest))):
        compiled = ndl.compile(function)
        with ndl.no_grad():
            got, want = compiled(*given_), function(*given_)
            groups = compiled.explain(*given_).groups
        got, want = (v if isinstance(v, tuple) else (v,) for v in (got, want))
        for a, e in zip(got, want, strict=True):
            np.testing.assert_allclose(a.numpy(), e.numpy(), rtol=1e-4, atol=1e-5)
        found = [{node.op.name for node in group.nodes} for group in groups]
        (own,) = (names for names in found if "conv2d_winograd" in names)
        assert len(own) > 2


def test_an_infinity_reaches_what_sees_it_by_the_definition_and_no_neighbour() -> None:
    x, weight = drawn(1, 16, 12, 12), drawn(16, 16, 3, 3)
    graph = trace(lambda x, k: [ndl.conv2d(x, k, padding=1)], x, weight).graph
    assert "conv2d_winograd" in names_in(graph)
    (before,) = build(graph, 1).run([x, weight])
    for row in range(4, 8):
        for column in range(4, 8):
            image = x.copy()
            image[0, 3, row, column] = np.inf
            (after,) = build(graph, 1).run([image, weight])
            seen = np.zeros((12, 12), bool)
            seen[row - 1 : row + 2, column - 1 : column + 2] = True
            assert not np.isfinite(after[:, :, seen]).any()
            assert after[:, :, ~seen].tobytes() == before[:, :, ~seen].tobytes()


@pytest.mark.parametrize("shape", [(0, 16, 16, 16), (2, 16, 16, 16)])
def test_training_equals_eager(shape: tuple[int, ...]) -> None:
    found = []
    for is_compiled in (False, True):
        ndl.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 16, 3, padding=1),
        )
        if not shape[0]:
            model.eval()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x = ndl.randn(*shape)

        def step(x: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = ndl.sum(ndl.square(model(x))) / 1000
            loss.backward()
            optimizer.step()
            return loss

        chosen = ndl.compile(step) if is_compiled else step
        found.append([chosen(x).item() for _ in range(10)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_what_the_ops_refuse() -> None:
    image, good = Spec((1, 8, 8, 16), np.dtype(np.float32)), w.transformed_shape(16, 20)
    attrs: dict[str, Any] = {"out_channels": 20, "pads": ((1, 1), (1, 1))}
    infer = w.CONV2D_WINOGRAD.infer
    f32, f64 = np.dtype(np.float32), np.dtype(np.float64)
    assert infer(image, Spec(good, f32), **attrs).shape == (1, 8, 8, 20)
    cases: list[tuple[type[NeedleError], str, Any]] = [
        (ShapeError, "transformed weight", lambda: infer(image, Spec((1, 2), f32), **attrs)),
        (DTypeError, "float32", lambda: infer(Spec(image.shape, f64), Spec(good, f32), **attrs)),
        (
            ShapeError,
            r"\[3, 3, C, O\]",
            lambda: w.WINOGRAD_WEIGHT.infer(Spec((5, 5, 2, 2), f32), is_turned=False),
        ),
        (
            DTypeError,
            "float32",
            lambda: w.WINOGRAD_WEIGHT.infer(Spec((3, 3, 2, 2), f64), is_turned=False),
        ),
    ]
    for error, match, call in cases:
        with pytest.raises(error, match=match):
            call()
