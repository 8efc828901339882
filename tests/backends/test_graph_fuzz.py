"""Random programs over all ops, compiled: values and gradients are those of the references.

Each is compiled for this machine and interpreted; a part of them also for narrower instruction
sets, and for 1, 2 and 4 threads, with all kernels split that can be.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any
from unittest import mock

import numpy as np
import pytest
from graph_programs import graphs
from hypothesis import HealthCheck, given, reject, seed, settings, strategies as st
from shaken import Undefined, assert_near, check_defined, trials

import needle as ndl
from needle import dtypes
from needle.backends.cpu import cache, program
from needle.backends.cpu.executable import build
from needle.backends.cpu.target import Target
from needle.errors import ArgumentError, NeedleError
from needle.graph import interpret, trace
from needle.graph.ir import Graph
from needle.ops.record import REGISTRY

Array = np.ndarray[Any, Any]

#: Sets narrower than this machine's that it has, too.
NARROW = []
for name in ("sse2", "avx2"):
    try:
        NARROW.append(Target.named(name))
    except ArgumentError:  # noqa: PERF203 - two
        continue

ran: Counter[str] = Counter()


def run(graph: Graph, arrays: list[Array], threads: int, target: Target | None) -> list[Array]:
    """Return the outputs of compiled code, after checking what it did to the inputs."""
    # The cache does not know of a changed limit; and what it holds was tested before.
    with (
        mock.patch.object(cache, "key", return_value=""),
        mock.patch.object(program, "SMALL", 0),
    ):
        executable = build(graph, threads, target)
    first: list[Array] = []
    for _ in range(2):  # again, with what the first call has left in memory
        given_ = [np.ascontiguousarray(a).reshape(a.shape).copy() for a in arrays]
        outputs = executable.run(given_)
        written = set(graph.donations.values())
        for i, (before, after) in enumerate(zip(arrays, given_, strict=True)):
            if i not in written:
                assert before.tobytes() == after.tobytes(), f"input {i} was overwritten"
        for i, place in graph.donations.items():
            assert outputs[i] is given_[place], f"output {i} is not input {place}"
        outputs = [np.array(o) for o in outputs]
        if first:
            assert_same_bits(outputs, first, "the second call")
        first = outputs
    return first


def assert_same_bits(actual: list[Array], expected: list[Array], label: str) -> None:
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert _bits(a) == _bits(e), f"output {i} has other bits: {label}"


def _bits(array: Array) -> bytes:
    """Return the bits of an array, those of one NaN for all: LLVM promises nothing of them."""
    if dtypes.is_float(array.dtype):
        array = np.where(np.isnan(array), np.asarray(np.nan, array.dtype), array)
    return array.tobytes()


def check(graph: Graph, arrays: list[Array], draw: Any) -> None:
    try:
        expected = [np.asarray(a) for a in interpret(graph, arrays)]
        check_defined(graph, arrays)
        tried = trials(graph, arrays, expected)
    except (Undefined, NeedleError):
        reject()
    target = draw(st.sampled_from([None, None, None, *NARROW]))
    actual = run(graph, arrays, 1, target)
    label = target.name if target else "host"
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_near(a, e, tried[i], f"output {i} ({label})")
    if draw(st.integers(0, 3)) == 3:
        for threads in (2, 4):
            others = run(graph, arrays, threads, target)
            assert_same_bits(others, actual, f"{threads} threads, {label}")
    ran["compiled"] += 1
    ran["with gradients"] += any(node.is_backward for node in graph.nodes)
    ran["with donations"] += bool(graph.donations)


def show(graph: Graph, arrays: list[Array]) -> str:
    """Return a program and its inputs, to be read."""
    inputs = [f"{v.name} = {a!r}" for v, a in zip(graph.inputs, arrays, strict=True)]
    return "\n".join([str(graph), *inputs])


def check_example(data: Any) -> None:
    graph, arrays = data.draw(graphs())
    with np.printoptions(threshold=40, edgeitems=3):
        try:
            check(graph, arrays, data.draw)
        except Exception as error:
            error.add_note(show(graph, arrays))
            raise


common = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


def agree(
    function: Any,
    *arrays: Array,
    target: Target | None = None,
    donations: dict[int, int] | None = None,
) -> None:
    """Check a function that a random program has found."""
    graph = trace(function, *arrays).graph
    graph.donations.update(donations or {})
    expected = interpret(graph, arrays)
    tried = trials(graph, arrays, expected)
    for i, (a, e) in enumerate(zip(run(graph, list(arrays), 1, target), expected, strict=True)):
        assert_near(a, np.asarray(e), tried[i], f"output {i}")


def test_what_cancels_inside_of_a_compound_op_is_judged_by_its_parts() -> None:
    """The slope of normalised rows of two is nothing but rounding."""
    rng = np.random.default_rng(0)
    g, x = (rng.standard_normal((64, 2), dtype=np.float32) for _ in range(2))

    def slope(g: Any, x: Any) -> Any:
        return ndl.affine_normalize_slope(g, x, ndl.ones(2), eps=1e-5)

    agree(slope, g, x)
    graph = trace(slope, g, x).graph
    expected = [np.asarray(a) for a in interpret(graph, [g, x])]
    (tried,) = trials(graph, [g, x], expected)
    with pytest.raises(AssertionError, match="elements differ"):
        assert_near(expected[0] + np.float32(1e-3), expected[0], tried, "wrong")


def test_compound_ops_are_taken_apart_where_others_vanish() -> None:
    """As many ops as before do not say that they are the same."""

    def function(x: Any) -> list[Any]:
        ndl.exp(x)  # not used
        return [ndl.silu(x)]

    agree(function, np.array([-100.0, 1.0], np.float32))


def test_product_takes_in_what_its_epilogue_reads() -> None:
    """Values beside a product of one element stand after it, not in its place."""
    x, y = np.ones(1, np.float32), np.array(0.5)

    def function(x: Any, y: Any) -> list[Any]:
        z = x + 1
        square = (z.reshape(1, 1) @ z.reshape(1, 1)).reshape(())
        return [ndl.where(square > 0, square.astype(np.float64), y), (x == x).min()]

    agree(function, x, y)


def test_an_index_that_is_one_for_all_lanes_stands_where_each_lane_has_its_own() -> None:
    """Places of a constant are asked for at indices that are loaded, a vector at a time."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4), dtype=np.float32)
    index = np.array([[2, 3], [0, 0], [2, 3]])

    def function(x: Any, index: Any) -> list[Any]:
        columns = x[:, ndl.broadcast_to(ndl.asarray(0), (2,))]
        twice = ndl.broadcast_to(columns.reshape(1, 6), (2, 6)).reshape(3, 4)
        return [ndl.take_along_axis(twice, index, axis=1), index.astype("float32") + 1]

    agree(function, x, index)


def test_product_does_not_take_in_what_it_reads_itself() -> None:
    def function(x: Any) -> list[Any]:
        z = ndl.exp(x)
        square = z.reshape(1, 1) @ z.reshape(1, 1)
        return [square.reshape(()) + z]

    agree(function, np.array(0.5))


def test_what_is_computed_again_is_not_overwritten_meanwhile() -> None:
    """The second turn over a row takes the elements from the input again."""
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    y = x[::-1] + 1

    for first in (lambda x, y: x + y, lambda x, y: ndl.sigmoid(x)):

        def function(x: Any, y: Any) -> list[Any]:
            total = first(x, y)  # noqa: B023 - called now
            return [total, ndl.softmax(total, axis=1), ndl.softmax(total, axis=0) + total]

        agree(function, x, y, donations={0: 0})


def test_product_with_a_reduction_of_one_element_behind_it() -> None:
    """It combines nothing, and needs no turns of its own."""
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    y = np.ones((4, 1), np.float32)

    def function(x: Any, y: Any) -> list[Any]:
        column, number = x @ y, (x[:1] @ y).reshape(())
        return [
            ndl.argmax(column, axis=1),
            ndl.any(column > 0, axis=1),
            ndl.where((number > 0).all(), number, -number),
        ]

    agree(function, x, y)


def test_reduction_of_one_element_before_a_reduction_of_many() -> None:
    x = np.ones((3, 33), np.bool_)
    x[1, 4] = False

    def function(x: Any) -> list[Any]:
        y = ndl.any(x, axis=(), keepdims=True).astype(np.float32)
        column = ndl.argmax(y.reshape(3, 33, 1), axis=2) + ndl.all(x.reshape(3, 33, 1), axis=2)
        return [y / ndl.sum(y, axis=1, keepdims=True), column / ndl.sum(column, axis=1)[:, None]]

    agree(function, x)


def test_what_is_below_the_normal_numbers_may_be_nothing() -> None:
    """The reference of the sigmoid goes by way of infinity there, compiled code does not."""
    agree(lambda x: [ndl.sigmoid(x) * 3], np.array([-100.0, -90.0, 0.0], np.float32))


def test_what_branches_cancel_is_measured_by_what_they_round() -> None:
    x = np.linspace(2, 6, 180)
    agree(lambda x: [ndl.cond((x > 3).any(), lambda x: 1 - ndl.tanh(x) ** 2, lambda x: x, x)], x)


@pytest.mark.parametrize("target", NARROW, ids=lambda target: target.name)
def test_bfloat_is_moved_without_a_library(target: Target) -> None:
    x = np.arange(-30, 30, dtype=np.float32).reshape(5, 12).astype(dtypes.bfloat16)

    def function(x: Any) -> list[Any]:
        padded = ndl.pad(x, ((0, 1), (1, 2)), value=1)
        return [padded, padded[::-1, ::3].T, ndl.where(x > 0, x, 2.5), ndl.concat([x, x], axis=1)]

    agree(function, x, target=target)


@pytest.mark.parametrize("dtype", [dtypes.bfloat16, np.float16, np.int8, np.int16], ids=str)
def test_single_narrow_element_at_the_end_of_a_row(dtype: Any) -> None:
    """LLVM stored a single lane that had just been narrowed with its width before that."""
    rng = np.random.default_rng(0)
    a = rng.integers(-3, 4, (4, 17)).astype(np.float32)
    b = rng.integers(-3, 4, (17, 65)).astype(np.float32)
    kind = dtype if dtypes.is_float(dtype) else np.int32
    for more in (1, 9, 17, 33):

        def function(a: Any, b: Any) -> list[Any]:
            return [(a @ b).astype(dtype), a[:, :more].astype(dtype)]  # noqa: B023 - called now

        agree(function, a.astype(kind), b.astype(kind)[:, : more + 32])


def test_gradient_of_an_empty_normalised_row() -> None:
    x = ndl.Tensor(np.zeros((2, 0), np.float32), requires_grad=True)
    y = REGISTRY["layer_norm"].function(x, (0,))
    (gradient,) = ndl.grad(ndl.sum(y), [x])
    assert gradient.shape == (2, 0)


@settings(common, max_examples=200, derandomize=True, database=None)
@given(st.data())
def test_random_programs(data: Any) -> None:
    check_example(data)


@pytest.mark.nightly
@settings(common, max_examples=10_000)
@given(st.data())
def test_ten_thousand_random_programs(data: Any) -> None:
    check_example(data)


if __name__ == "__main__":  # python tests/backends/test_graph_fuzz.py 3000 [seed]
    import sys

    search = settings(common, max_examples=int(sys.argv[1]), database=None)(
        given(st.data())(check_example)
    )
    (seed(int(sys.argv[2])) if sys.argv[2:] else lambda test: test)(search)()
    print(dict(ran), os.environ.get("NEEDLE_TARGET", "host"))
