"""compile(check=True): compare compiled code with the references of the ops, op by op."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from needle.compiled.executable import Executable
from needle.dtypes import is_float
from needle.errors import DivergenceError
from needle.graph.interpret import run_node
from needle.graph.ir import Graph, Node, Value
from needle.graph.text import node_text
from needle.ops.record import Kind
from needle.ops.samples import Array

#: Units in the last place by which an element may differ from that of the reference.
ALLOWED = 16.0
#: By which results of the whole program may differ, relative to the largest element. Errors add up
#: from op to op, and only a fault of the program makes them so large.
ALLOWED_AT_THE_END = 1e-3

#: How many times as far results may differ as they do when inputs are nudged by their last bits,
#: and how often that is tried. Where terms cancel, as in the gradient of a bias ahead of a
#: normalisation, a result is nothing but rounding, and no share of its own size is an error.
AMPLIFIED, NUDGES = 16.0, 3

#: Ops that only move elements, or draw them, whose results are equal or wrong.
_EXACT = frozenset({Kind.MOVEMENT, Kind.RANDOM})
#: Ops whose elements are sums of many: their errors are measured against the largest element.
_SUMS = frozenset(
    {
        Kind.REDUCTION,
        Kind.NORMALIZATION,
        Kind.CONTRACTION,
        Kind.ATTENTION,
        Kind.SCAN,
        Kind.INDEXING,
        Kind.CONTROL,
    }
)


class Difference(NamedTuple):
    """Where two arrays differ most.

    Attributes:
        ulp: by how many units in the last place; infinite for NaN, infinities and integers.
        place: the index of the element.
        actual: what it is.
        expected: what it should be.
    """

    ulp: float
    place: tuple[int, ...]
    actual: object
    expected: object

    def __str__(self) -> str:
        where = f" at {list(self.place)}" if self.place else ""
        size = "" if math.isinf(self.ulp) else f", {self.ulp:.3g} ulp"
        return f"{self.actual!s} instead of {self.expected!s}{where}{size}"


class Checked:
    """An executable that compares each op with its reference before each run.

    Every op gets the inputs that compiled code computed for it, so that an error is found where it
    arises and not where it has grown.

    Args:
        graph: the graph.
        build: makes an executable of a graph.

    Raises:
        DivergenceError: when it runs: an op, or the program as a whole, gives another result.
    """

    def __init__(self, graph: Graph, build: Callable[[Graph], Executable]) -> None:
        self.graph = graph
        self.executable = build(graph)
        values = [v for node in graph.nodes for v in node.results]
        self._exposed = build(Graph(graph.inputs, graph.nodes, values, {}, f"{graph.name}_checked"))

    def run(self, arrays: list[Array]) -> list[Array]:
        """Compare, then run; see `Executable.run`."""
        held = dict(zip(self.graph.inputs, [a.copy() for a in arrays], strict=True))
        exposed = self._exposed.run([held[v] for v in self.graph.inputs])
        results = iter(exposed)
        for node in self.graph.nodes:
            actual = [next(results) for _ in node.results]
            self._check_node(node, held, actual)
            held.update(zip(node.results, actual, strict=True))
        outputs = self.executable.run(arrays)
        nudged: list[dict[Value, Array]] = []
        for i, (value, output) in enumerate(zip(self.graph.outputs, outputs, strict=True)):
            expected = held[value] if value.constant is None else value.constant
            found = difference(output, expected, by_largest=True)
            if found.ulp <= _allowed_at_the_end(value, expected):
                continue
            nudged = nudged or [self._nudged(held, seed) for seed in range(NUDGES)]
            others = [run.get(value, expected) for run in nudged]
            rounding = max(difference(o, expected, by_largest=True).ulp for o in others)
            if found.ulp > AMPLIFIED * rounding:
                raise DivergenceError(
                    f"{self.graph.name}: output {i} of the compiled program ({value!r}) is not "
                    f"what its ops give one by one: {found}; no op is wrong by itself"
                )
        return outputs

    def _nudged(self, held: dict[Value, Array], seed: int) -> dict[Value, Array]:
        """Return the results of all ops for inputs that differ in their last bits."""
        rng = np.random.default_rng(seed)
        inputs = [_nudge(held[v], rng) for v in self.graph.inputs]
        results = [v for node in self.graph.nodes for v in node.results]
        return dict(zip(results, self._exposed.run(inputs), strict=True))

    def _check_node(self, node: Node, held: dict[Value, Array], actual: Sequence[Array]) -> None:
        inputs = [held[v] if v.constant is None else v.constant for v in node.inputs]
        expected = run_node(node, inputs)
        scale = _scale(node, inputs)
        by_largest = (
            node.op.kind in _SUMS or node.op.kind is Kind.CONTROL or node.op.decompose is not None
        )
        for a, e in zip(actual, expected, strict=True):
            found = difference(a, e, by_largest, scale)
            if found.ulp <= _allowed(node, inputs, e):
                continue
            place = f" at {node.location}" if node.location else ""
            scope = f" in layer {node.scope}" if node.scope else ""
            part = "the backward pass of " if node.is_backward else ""
            raise DivergenceError(
                f"{self.graph.name}: the compiled result of {node.op.name}, in {part}the call"
                f"{place}{scope}, is not that of eager execution: {found}\n    {node_text(node)}"
            )


def _allowed_at_the_end(value: Value, expected: Array) -> float:
    return ALLOWED_AT_THE_END / _epsilon(expected) if is_float(value.dtype) else 0.0


def _nudge(array: Array, rng: np.random.Generator) -> Array:
    """Return an array whose floats are one unit in the last place, at most two, away."""
    if not is_float(array.dtype):
        return array
    wide = array.astype(np.float64)
    signs = rng.choice([-1.0, 1.0], array.shape)
    nudged: Array = np.asarray(wide * (1 + signs * _epsilon(array))).astype(array.dtype)
    return nudged


def _allowed(node: Node, inputs: Sequence[Array], result: Array) -> float:
    if not is_float(result.dtype) or node.op.kind in _EXACT:
        return 0.0
    if node.op.kind is Kind.CONTROL:  # many ops at once, one after the other
        return min(ALLOWED * _ops_in(node), ALLOWED_AT_THE_END / _epsilon(result))
    if node.op.kind not in _SUMS:
        return ALLOWED
    # The rounding errors of a sum of n grow like √n.
    terms = max((a.size for a in inputs), default=1) / max(result.size, 1)
    return ALLOWED * max(1.0, math.sqrt(terms))


def _ops_in(node: Node) -> int:
    """Return how many ops a loop or a switch runs, at most."""
    turns = node.attrs.get("length") or 1
    graphs = [graph for _, graph in node.graphs()]
    inside = sum(_ops_in(n) if any(n.graphs()) else 1 for graph in graphs for n in graph.nodes)
    return max(int(turns) * inside, 1)


def _epsilon(array: Array) -> float:
    return float(ml_dtypes.finfo(array.dtype).eps)  # type: ignore[no-untyped-call]


def _scale(node: Node, inputs: Sequence[Array]) -> float:
    """Return how large the numbers are that an op may cancel on the way to its result."""
    if node.op.kind is Kind.CONTRACTION:
        return math.prod(_largest([a]) for a in inputs)
    if node.op.kind in _SUMS or node.op.decompose is not None:
        return _largest(inputs)
    return 0.0


def _largest(arrays: Sequence[Array]) -> float:
    """Return the largest finite absolute value in floating arrays."""
    largest = 0.0
    for array in arrays:
        if is_float(array.dtype) and array.size:
            size = np.abs(array.astype(np.float64))
            largest = max(largest, float(np.where(np.isfinite(size), size, 0.0).max()))
    return largest


def difference(
    actual: Array, expected: Array, by_largest: bool = False, scale: float = 0.0
) -> Difference:
    """Return where two arrays of the same shape and dtype differ most.

    Args:
        actual: what was computed.
        expected: what it should be.
        by_largest: whether to measure by the unit of the largest expected element, and not of each.
        scale: by that of a number of this size, if it is larger.
    """
    if not expected.size:
        return Difference(0.0, (), None, None)
    if not is_float(expected.dtype):
        ulps = np.where(actual == expected, 0.0, np.inf)
    else:
        wide = np.float64
        a, e = actual.astype(wide), expected.astype(wide)
        with np.errstate(all="ignore"):
            same = (a == e) | (np.isnan(a) & np.isnan(e))
            size = np.abs(e)
            if by_largest:
                size = np.maximum(_largest([expected]), scale)
            ulps = np.abs(a - e) / _unit(size, expected)
            ulps = np.where(same, 0.0, np.where(np.isfinite(ulps), ulps, np.inf))
    worst = np.unravel_index(int(np.argmax(ulps)), ulps.shape)
    place = tuple(int(i) for i in worst)
    return Difference(float(ulps[worst]), place, actual[worst], expected[worst])


def _unit(size: Array, like: Array) -> Array:
    """Return the distance of numbers of a size from their neighbours, in the dtype of ``like``."""
    info: Any = ml_dtypes.finfo(like.dtype)  # type: ignore[no-untyped-call]
    _, exponent = np.frexp(size)
    finest = float(info.smallest_subnormal)
    unit = np.maximum(np.ldexp(float(info.eps), exponent - 1), finest)
    return np.where(size == 0, finest, unit)
