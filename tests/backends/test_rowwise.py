"""Eager execution on compiled kernels: any number of rows, each with the bits it always has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.backends.cpu.eager_kernels import kernel_of
from needle.backends.cpu.rowwise import RowProgram, run_rows
from needle.compiler.rows import ROWS
from needle.errors import OutOfRangeError
from needle.graph.ir import Graph, Value
from needle.graph.rewrite import apply
from needle.ops.arithmetic import add
from needle.ops.record import REGISTRY, Op
from needle.shapes import Spec

RNG = np.random.default_rng(0)


def record(name: str) -> Op:
    op = REGISTRY[name]
    assert isinstance(op, Op)
    return op


def kernel(name: str) -> Any:
    make = kernel_of(record(name))
    assert make is not None
    return make()


ONE_INPUT: list[tuple[str, dict[str, Any]]] = [
    ("softmax", {"axis": 1}),
    ("log_softmax", {"axis": 1}),
    ("standardize", {"axes": (1,), "eps": 1e-5}),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "attrs"), ONE_INPUT, ids=lambda x: x if isinstance(x, str) else ""
)
def test_values(name: str, attrs: dict[str, Any], dtype: str) -> None:
    for shape in [(1, 1), (1, 10), (3, 17), (32, 10), (257, 100), (64, 1000)]:
        x = RNG.standard_normal(shape).astype(dtype)
        found, expected = kernel(name)(x, **attrs), record(name).reference(x, **attrs)
        if not isinstance(found, tuple):
            found, expected = (found,), (expected,)
        for a, b in zip(found, expected, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            tolerance = 1e-5 if dtype == "float32" else 1e-13
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "attrs"), ONE_INPUT, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_row_has_the_same_bits_in_any_batch(name: str, attrs: dict[str, Any]) -> None:
    x = RNG.standard_normal((5000, 33)).astype(np.float32)
    run = kernel(name)

    def first(value: Any) -> Any:
        return value[0] if isinstance(value, tuple) else value

    whole = first(run(x, **attrs))
    for rows in (1, 3, 17, 64):
        np.testing.assert_array_equal(first(run(x[:rows].copy(), **attrs)), whole[:rows])


def test_several_axes_and_layouts() -> None:
    x = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    found = kernel("standardize")(x, axes=(2, 3), eps=1e-5)
    expected = record("standardize").reference(x, axes=(2, 3), eps=1e-5)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # What is not row by row is left to the reference.
    assert kernel("softmax")(x, axis=1) is None
    assert kernel("softmax")(x.transpose(0, 1, 3, 2), axis=3) is None
    assert kernel("softmax")(x[:0], axis=3) is None


AFFINE = ["affine_normalize", "affine_normalize_slope", "affine_normalize_weight_slope"]


def affine_inputs(name: str, shape: tuple[int, ...], normalized: int) -> tuple[Any, ...]:
    """Return inputs of an op of ``AFFINE``: what has rows, then what has columns alone."""
    columns = shape[-normalized:]
    shapes = [shape, columns, columns] if name == AFFINE[0] else [shape, shape, columns]
    return tuple(RNG.standard_normal(s) for s in shapes[: len(record(name).inputs)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", AFFINE)
def test_rows_with_parameters(name: str, centred: bool, dtype: str) -> None:
    for shape, normalized in [((1, 1), 1), ((300, 17), 1), ((5, 3, 4, 100), 2), ((70, 768), 1)]:
        inputs = affine_inputs(name, shape, normalized)
        given = [x.astype(dtype) for x in inputs]
        attrs = {"normalized": normalized, "centred": centred, "eps": 1e-5}
        found, expected = kernel(name)(*given, **attrs), record(name).reference(*inputs, **attrs)
        assert (found.shape, found.dtype) == (expected.shape, given[0].dtype)
        tolerance = 2e-5 if dtype == "float32" else 1e-13
        scale = np.abs(expected).max() + 1
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)
        # Any layout has the bits of a contiguous copy.
        strided = [np.repeat(x, 2, axis=-1)[..., ::2] for x in given]
        np.testing.assert_array_equal(kernel(name)(*strided, **attrs), found)


@pytest.mark.parametrize("name", AFFINE[:2])
def test_a_row_with_parameters_has_the_same_bits_in_any_batch(name: str) -> None:
    inputs = [x.astype(np.float32) for x in affine_inputs(name, (5000, 33), 1)]
    attrs = {"normalized": 1, "centred": True, "eps": 1e-5}
    whole = kernel(name)(*inputs, **attrs)
    for rows in (1, 3, 17, 64):
        part = [x[:rows] if x.ndim == 2 else x for x in inputs]
        np.testing.assert_array_equal(kernel(name)(*part, **attrs), whole[:rows])


def test_the_weights_gradient_has_the_same_bits_with_any_threads() -> None:
    inputs = [x.astype(np.float32) for x in affine_inputs(AFFINE[2], (5000, 33), 1)]
    attrs = {"normalized": 1, "centred": True, "eps": 1e-5}
    before = ndl.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            ndl.set_num_threads(threads)
            results.append(kernel(AFFINE[2])(*inputs, **attrs))
    finally:
        ndl.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["label_cross_entropy", "label_cross_entropy_slope"])
def test_labels(name: str, reduction: str) -> None:
    for rows, classes in [(1, 10), (32, 10), (1000, 37)]:
        x = RNG.standard_normal((rows, classes)).astype(np.float32)
        y = RNG.integers(0, classes, rows)
        if rows > 1:
            y[::5] = -100
        given: tuple[Any, ...] = (x, y)
        if name == "label_cross_entropy_slope":
            shape = () if reduction != "none" else (rows,)
            given = (RNG.standard_normal(shape).astype(np.float32) * np.ones(shape, "f"), x, y)
            given = (np.asarray(given[0], np.float32), x, y)
        attrs = {"axis": 1, "ignore_index": -100, "reduction": reduction}
        found = kernel(name)(*given, **attrs)
        expected = np.asarray(record(name).reference(*given, **attrs))
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_bad_labels_raise_where_they_stand() -> None:
    logits, labels = ndl.zeros((300, 4)), np.zeros(300, np.int64)
    labels[257] = 4
    with pytest.raises(OutOfRangeError, match=r"label 4 at position \[257\]"):
        ndl.cross_entropy(logits, labels)
    labels[257] = 3
    assert ndl.cross_entropy(logits, labels).item() == pytest.approx(np.log(4), rel=1e-6)


def test_one_program_serves_all_batches() -> None:
    from needle.backends.cpu import rowwise

    op = record("softmax")
    x = RNG.standard_normal((7, 91)).astype(np.float32)
    run_rows(op, [x], {"axis": 1})
    made = len(rowwise._programs)
    for rows in (1, 2, 1000):
        (y,) = run_rows(op, [np.ones((rows, 91), np.float32)], {"axis": 1})
        np.testing.assert_allclose(y, 1 / 91, rtol=1e-6)
    assert len(rowwise._programs) == made


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_update_rules(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from needle.optim import foreach

    values = RNG.standard_normal((37, 41)).astype(dtype)
    slopes = [RNG.standard_normal((37, 41)).astype(dtype) for _ in range(4)]
    seen = []
    for least in (1, 1 << 62):
        monkeypatch.setattr(foreach, "COMPILED_FROM", least)
        w = ndl.Tensor(values.copy())
        optimizer = getattr(ndl.optim, name)([w], lr=0.01)
        for slope in slopes:
            w.grad = ndl.asarray(slope)
            optimizer.step()
        seen.append(w.numpy().copy())
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(seen[0], seen[1], rtol=tolerance, atol=tolerance)


def test_copies_of_what_is_overwritten() -> None:
    """An output that is an input as it was, and inputs that change places, for any rows."""
    p, q = (Value(Spec((ROWS,), np.dtype(np.float32)), name=name) for name in "pq")
    total = apply(add.op, (p, q), {})
    assert total.node is not None
    kept = RowProgram(Graph([p, q], [total.node], [total, p], {0: 0}, "kept"))
    swapped = RowProgram(Graph([p, q], [], [q, p], {0: 0, 1: 1}, "swapped"))
    for rows in (1, 5, 100):
        a, b = np.arange(rows, dtype=np.float32), np.full(rows, 3, np.float32)
        new, old = kept.run([a, b], rows)
        assert new is a
        np.testing.assert_array_equal(new, np.arange(rows) + 3)
        np.testing.assert_array_equal(old, np.arange(rows))
        first, second = swapped.run([a, b], rows)
        assert first is a
        assert second is b
        np.testing.assert_array_equal(a, np.full(rows, 3))
        np.testing.assert_array_equal(b, np.arange(rows) + 3)
