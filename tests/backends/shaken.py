"""How far results may be from the reference: what rounding does to them, by trying.

The graph is interpreted again with the errors that an op may have: the results of each op that
rounds are shaken by a few units in the last place, those of sums also before they are summed up.
Compound ops are tried in parts as well: what cancels inside of one is not seen from outside. An
element may differ from the reference by a multiple of what that changed. So what is exact must be
equal (nothing was shaken), what is ill-conditioned may differ by much, and what jumps (the floor of
a rounded number, the order of two that are nearly equal) may be anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from needle import dtypes
from needle.compiler.passes.decompose import decompose
from needle.graph.interpret import interpret, run_node
from needle.graph.ir import Graph, Node, Value
from needle.ops.convolution_form import Convolution
from needle.ops.record import Kind

Array = np.ndarray[Any, Any]

#: By how many units in the last place results are shaken.
ULPS = 4.0
#: How often the graph is interpreted with errors, and by how many times the largest change of an
#: element it may be off: chance may spare an element in each of the tries.
TRIES, MARGIN = 3, 8.0

#: Ops that round as NumPy does, or not at all: their results are equal, or wrong.
_ROUNDING = "add subtract multiply divide square sqrt reciprocal astype"
_MOVING = """
    negative abs sign floor ceil round trunc maximum minimum relu where clip masked_fill
    equal not_equal less less_equal greater greater_equal isnan isinf isfinite
    logical_and logical_or logical_not logical_xor
    max min any all argmax argmin sort argsort top_indices window_argmax expect_range
"""
ROUNDING = frozenset(_ROUNDING.split())
EXACT = ROUNDING.union(_MOVING.split())
_EXACT_KINDS = frozenset({Kind.MOVEMENT, Kind.RANDOM})


#: Ops that choose one of several elements: of 0 and −0, either.
CHOOSING = frozenset({"maximum", "minimum", "relu", "clip", "max", "min"})


class Undefined(Exception):
    """What the program computes is not defined: an integer of NaN, say."""


def trials(
    graph: Graph, arrays: Sequence[Array], expected: Sequence[Array]
) -> list[list[tuple[Array, Array]]]:
    """Return for each output what it is without errors and with, in several tries."""
    bases = [(graph, expected)]
    parts = decompose(graph)
    if [node.op for node in parts.nodes] != [node.op for node in graph.nodes]:
        bases.append((parts, [np.asarray(a) for a in interpret(parts, arrays)]))
    pairs: list[list[tuple[Array, Array]]] = [[] for _ in expected]
    for form, exact in bases:
        for seed in range(TRIES):
            results = interpret_shaken(form, arrays, seed)
            for pair, e, a in zip(pairs, exact, results, strict=True):
                pair.append((e, a))
    return pairs


def interpret_shaken(graph: Graph, arrays: Sequence[Array], seed: int) -> list[Array]:
    """Return the outputs of ``graph``, with errors that rounding may make."""
    return _run(graph, arrays, np.random.default_rng(seed), set())


def _run(
    graph: Graph, arrays: Sequence[Array], rng: np.random.Generator, changed: set[Value]
) -> list[Array]:
    """Run ``graph`` and what is inside of it; ``changed`` are inputs that have been rounded."""
    held = dict(zip(graph.inputs, arrays, strict=True))

    def run_inner(graph: Graph, arrays: Sequence[Array]) -> list[Array]:
        return _run(graph, arrays, rng, set(graph.inputs))

    for node in graph.nodes:
        inputs = [held[v] if v.constant is None else v.constant for v in node.inputs]
        results: Sequence[Array]
        if is_exact(node):
            results = run_node(node, inputs)
            if not changed.isdisjoint(node.inputs):
                changed.update(node.results)
                if node.op.name in ROUNDING:  # of other numbers, it may be to the other side
                    results = [shake(a, rng) for a in results]
            if node.op.name in CHOOSING and _has_both_zeros(inputs):
                changed.update(node.results)
                results = [_signed_zeros(a, rng) for a in results]
        elif node.op.kind is Kind.CONTROL:  # rounds nothing itself
            changed.update(node.results)
            with mock.patch.object(Graph, "run", run_inner):
                results = run_node(node, inputs)
        else:
            changed.update(node.results)
            if node.op.kind is not Kind.ELEMENTWISE or node.op.decompose is not None:
                inputs = [shake(a, rng) for a in inputs]
                results = run_node(node, inputs)
                refuse_overflow(inputs, results)
                # Errors of many equal terms do not cancel.
                terms = max((a.size for a in inputs), default=1)
                results = [shake(a, rng, max(1.0, math.sqrt(terms) / 8)) for a in results]
            else:
                results = [shake(a, rng) for a in run_node(node, inputs)]
                results = [restore_underflow(node, inputs, a) for a in results]
        held.update(zip(node.results, results, strict=True))
    return [held[v] if v.constant is None else v.constant for v in graph.outputs]


def _has_both_zeros(inputs: Sequence[Array]) -> bool:
    signs: set[bool] = set()
    for array in inputs:
        if dtypes.is_float(array.dtype):
            signs.update(np.signbit(array[array == 0].astype(np.float64)).tolist())
    return len(signs) == 2


def _signed_zeros(array: Array, rng: np.random.Generator) -> Array:
    if not dtypes.is_float(array.dtype):
        return array
    signs = rng.choice([-1.0, 1.0], array.shape)
    return np.where(array == 0, np.copysign(0.0, signs).astype(array.dtype), array)


def refuse_overflow(inputs: Sequence[Array], results: Sequence[Array]) -> None:
    """Raise `Undefined` where sums, or parts of them, may overflow: that depends on their order."""
    if all(np.isfinite(r.astype(np.float64)).all() for r in results if dtypes.is_float(r.dtype)):
        return
    for array in inputs:
        if dtypes.is_float(array.dtype):
            wide = np.abs(array.astype(np.float64))
            limit = 1e150 if array.dtype == np.float64 else 1e15
            if (wide[np.isfinite(wide)] > limit).any():
                raise Undefined("a sum may overflow")


def restore_underflow(node: Node, inputs: Sequence[Array], result: Array) -> Array:
    """Return what an elementwise op gives, with the elements that are 0 only because something on
    the way left the range of the dtype as float64 gives them."""
    if not dtypes.is_float(result.dtype) or result.dtype == np.float64 or (result != 0).all():
        return result
    wide_inputs = [a.astype(np.float64) if dtypes.is_float(a.dtype) else a for a in inputs]
    with np.errstate(all="ignore"):
        wide = np.asarray(node.op.reference(*wide_inputs, **node.attrs)).astype(result.dtype)
    return np.where(result == 0, wide, result)


def is_exact(node: Node) -> bool:
    """Whether the results of an op have no rounding errors besides those of the reference."""
    if not any(dtypes.is_float(v.dtype) for v in node.results):
        return node.op.decompose is None
    return node.op.name in EXACT or node.op.kind in _EXACT_KINDS


def shake(array: Array, rng: np.random.Generator, times: float = 1.0) -> Array:
    """Return floats changed by a few units in the last place, ``times`` as many; zeros stay, but
    for their sign."""
    if not dtypes.is_float(array.dtype):
        return array
    info = ml_dtypes.finfo(array.dtype)
    # Of different sizes, so that those of two ops do not cancel.
    signs = rng.choice([-1.0, 1.0], array.shape) * rng.uniform(0.5, 1.5, array.shape)
    with np.errstate(all="ignore"):
        wide = array.astype(np.float64)
        step = np.maximum(np.abs(wide) * float(info.eps), float(info.smallest_subnormal))
        shaken = wide + np.where(np.isfinite(wide), signs * ULPS * times * step, 0.0)
        result = np.where(wide == 0, np.copysign(0.0, signs), shaken)
        return np.asarray(result).astype(array.dtype)


def check_defined(graph: Graph, arrays: Sequence[Array]) -> None:
    """Raise `Undefined` where no result is promised.

    Floats are converted to integers that do not hold them; something is searched for in a vector
    that is not sorted; what is not finite is convolved: the references, or the kernels, multiply it
    by the zeros that they fill in, and get NaN where no window reaches.
    """
    held = dict(zip(graph.inputs, arrays, strict=True))
    for node in graph.nodes:
        inputs = [held[v] if v.constant is None else v.constant for v in node.inputs]
        if node.op.name == "astype":
            (x,), target = inputs, node.result.dtype
            if dtypes.is_float(x.dtype) and target.kind in "iu" and x.size:
                info = np.iinfo(target)
                wide = x.astype(np.float64)
                if not ((wide > float(info.min) - 1) & (wide < float(info.max))).all():
                    raise Undefined(f"{target} of {x}")
        if node.op.name == "searchsorted" and not np.array_equal(
            np.sort(inputs[0]), inputs[0], True
        ):
            raise Undefined(f"a search in {inputs[0]}")
        is_convolution = isinstance(node.op.lower, Convolution) or (
            node.op.kind is Kind.CONTRACTION and node.op.decompose is not None
        )
        if is_convolution and not all(np.isfinite(x.astype(np.float64)).all() for x in inputs):
            raise Undefined(f"{node.op.name} of what is not finite")
        held.update(zip(node.results, run_node(node, inputs), strict=True))


def assert_near(
    actual: Array, expected: Array, tried: Sequence[tuple[Array, Array]], label: str
) -> None:
    """Raise unless ``actual`` is as near to ``expected`` as the `trials` demand."""
    assert actual.dtype == expected.dtype, f"{label}: dtype {actual.dtype}"
    assert actual.shape == expected.shape, f"{label}: shape {actual.shape}"
    if not dtypes.is_float(expected.dtype):
        stable = np.logical_and.reduce([base == other for base, other in tried])
        wrong = stable & (actual != expected)
        allowed: Any = np.zeros(expected.shape)
    else:
        info = ml_dtypes.finfo(expected.dtype)
        a, e = actual.astype(np.float64), expected.astype(np.float64)
        allowed = np.zeros(e.shape)
        with np.errstate(all="ignore"):
            for base, other in tried:
                b, s = base.astype(np.float64), other.astype(np.float64)
                change = np.where((s == b) | (np.isnan(s) & np.isnan(b)), 0.0, np.abs(s - b))
                # NaN or infinite here, a number there: it may be anything.
                allowed = np.maximum(allowed, np.where(np.isnan(change), np.inf, change))
            allowed = MARGIN * allowed
            if allowed.any():  # what chance has spared is within its rounding, at least
                least = np.maximum(float(info.eps) * np.abs(e), float(info.smallest_subnormal))
                allowed = np.maximum(allowed, MARGIN * np.where(np.isfinite(e), least, 0.0))
            same = (a == e) | (np.isnan(a) & np.isnan(e))
            wrong = ~same & ~(np.abs(a - e) <= allowed) & ~np.isinf(allowed)
    if not wrong.any():
        return
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    raise AssertionError(
        f"{label}: {int(wrong.sum())} of {wrong.size} elements differ, first {list(place)}: got "
        f"{actual[place]!s}, expected {expected[place]!s}, allowed {allowed[place]:.3g}"
    )
