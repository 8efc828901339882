"""Kernels of eager execution for ops that NumPy needs several passes over memory for.

Forward, a kernel is the op's lowering or decomposition; backward, all vjp rules of a call that are
wanted, traced together. It is compiled for any number of rows. Of an elementwise op a row is one
element, and arrays are flat; where the record says how many axes make a row (``row_axes``), those
before are one; otherwise rows lie along the first axis of what has as many axes as the op's first
input, and what has fewer is a parameter of all rows.

No element's bits may depend on how many there are besides it. So what NumPy computes exactly, too,
is left to it for small arrays, where it is faster; what has no one right result (exponentials, the
error function, sums) runs the kernel at any size, except for a single number. Eager results are
then those of compiled programs, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from needle import tree
from needle.backends.cpu.eager_kernels import LARGE
from needle.backends.cpu.rowwise import RowProgram, graph_of
from needle.compiler import pipeline
from needle.compiler.rows import ROWS
from needle.config import modes
from needle.graph.ir import Graph
from needle.graph.trace import trace_call
from needle.ops.record import BoundRule, Kind, Op
from needle.ops.samples import Array
from needle.shapes import Shape, Spec
from needle.tensor import Tensor, wrap

#: What an array that a kernel reads may hold: floats that it computes with, conditions, random
#: bits. 16-bit floats are widened by the references.
_CHARS = "fd?I"

#: A vjp rule with its arguments.
Call = tuple[BoundRule, list[Any]]


class _Rows(NamedTuple):
    """Arrays, and how a program takes them.

    Attributes:
        arrays: as they were given.
        has_rows: for each, whether its first axis is that of the rows.
        extent: how many rows there are.
        shape: that elementwise results get; None where rows are more than elements.
    """

    arrays: list[Array]
    has_rows: list[bool]
    extent: int
    shape: Shape | None

    def key(self) -> tuple[Any, ...]:
        """Return what a program depends on."""
        return tuple([(spec.dtype.char, spec.shape) for spec in self.specs()])

    def specs(self) -> list[Spec]:
        """Return what a program is made for: any number of rows."""
        rest = [(a.shape[1:] if self.shape is None else ()) for a in self.arrays]
        return [
            Spec((ROWS, *shape) if tall else a.shape, a.dtype)
            for a, shape, tall in zip(self.arrays, rest, self.has_rows, strict=True)
        ]

    def run(self, program: RowProgram) -> list[Array]:
        """Return the results of a program."""
        given = []
        for a in self.arrays:
            if self.shape is not None and a.ndim and a.shape != self.shape:
                a = np.broadcast_to(a, self.shape)
            if not (a.flags.c_contiguous and a.flags.aligned):
                a = a.copy()
            given.append(a if self.shape is None or not a.ndim else a.reshape(-1))
        results = program.run(given, self.extent)
        return results if self.shape is None else [r.reshape(self.shape) for r in results]


def forward(op: Op) -> Callable[..., Any]:
    """Return the kernel of an op."""
    programs: dict[Any, RowProgram | None] = {}
    is_elementwise = op.kind is Kind.ELEMENTWISE
    least = LARGE if op.exact else 1

    def kernel(*arrays: Array, **attrs: Any) -> Any:
        if len(arrays) == 1 and is_elementwise and not attrs:
            # The frequent case, and the same in fewer steps: small calls are most of Python's time.
            x = arrays[0]
            known = programs.get(x.dtype.char)
            if known is not None and x.flags.carray and x.ndim and x.size >= least:
                return known.run([x.reshape(-1)], x.size)[0].reshape(x.shape)
        batch: Shape = ()
        if op.row_axes:
            x = arrays[0]
            batch = x.shape[: x.ndim - op.row_axes]
            arrays = (x.reshape(-1, *x.shape[x.ndim - op.row_axes :]),) if x.size else ()
        rows = _rows(arrays, is_elementwise, least) if arrays else None
        if rows is None:
            return None
        key = (*rows.key(), *attrs.items())
        if key not in programs:
            graph = graph_of(op, rows.specs(), attrs)
            # What only copies has nothing left to compute.
            programs[key] = RowProgram(graph) if pipeline.run(graph).nodes else None
            if len(arrays) == 1 and is_elementwise and not attrs:
                programs[arrays[0].dtype.char] = programs[key]
        program = programs[key]
        if program is None:
            return None
        results = rows.run(program)
        if op.row_axes:
            results = [r.reshape(*batch, *r.shape[1:]) for r in results]
        return results[0] if len(results) == 1 else tuple(results)

    return kernel


def backward(op: Op) -> Callable[[list[Call]], list[Tensor] | None]:
    """Return what runs the vjp rules of a call of an op."""
    programs: dict[Any, RowProgram | None] = {}
    is_elementwise = op.kind is Kind.ELEMENTWISE
    # As many elements as the kernel of the op itself is for.
    is_always = op.kernel is not None and not op.exact
    least = 1 if is_always else LARGE
    # A rule that asks for a shape with rows in it would be one of that number of rows.
    knows_rows = {
        rule
        for rule in op.rules.values()
        for source, place in rule.sources
        if source in ("shape", "shapes") and (is_elementwise or place == 0)
    }

    def kernel(calls: list[Call]) -> list[Tensor] | None:
        if knows_rows and not knows_rows.isdisjoint(rule for rule, _ in calls):
            return None
        leaves, structure = tree.flatten([arguments for _, arguments in calls])
        # A value that several rules name is read once.
        places: dict[int, int] = {}
        arrays: list[Array] = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                if leaf._data.__class__ is not np.ndarray:
                    return None
                if id(leaf._data) not in places:
                    places[id(leaf._data)] = len(arrays)
                    arrays.append(leaf._data)
        rows = _rows(arrays, is_elementwise, least) if arrays else None
        if rows is None or (op.is_ufunc and any(a.shape != rows.shape for a in arrays if a.ndim)):
            return None  # to make small operands large would cost what is gained
        marks = [places[id(x._data)] if isinstance(x, Tensor) else ("is", x) for x in leaves]
        key = (*[rule for rule, _ in calls], *rows.key(), *marks)
        if key not in programs:
            fused = _Fused([rule for rule, _ in calls], structure, marks)
            programs[key] = fused.program(rows, is_always)
        program = programs[key]
        if program is None:
            return None
        return [wrap(r) for r in rows.run(program)]

    return kernel


def _rows(arrays: Sequence[Array], is_elementwise: bool, least: int) -> _Rows | None:
    """Return arrays as programs take them; None for what is left to NumPy."""
    first = arrays[0]
    if modes.state.trace is not None:
        return None
    for a in arrays:
        if a.__class__ is not np.ndarray or a.dtype.char not in _CHARS:
            return None
    if not is_elementwise:
        tall = [a.ndim == first.ndim for a in arrays]
        return _Rows(list(arrays), tall, first.shape[0], None) if first.size else None
    shape = first.shape
    if any(a.ndim and a.shape != shape for a in arrays):
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
    size = math.prod(shape)
    if not shape or size < least or all(a.dtype.kind != "f" for a in arrays):
        return None
    return _Rows(list(arrays), [a.ndim > 0 for a in arrays], size, shape) if size else None


class _Fused:
    """Vjp rules to be traced together.

    Args:
        rules: the rules.
        structure: of the list of their arguments.
        marks: for each leaf of the arguments, which array it is, or what else.
    """

    def __init__(self, rules: list[BoundRule], structure: Any, marks: list[Any]) -> None:
        self.rules, self.structure, self.marks = rules, structure, marks

    def program(self, rows: _Rows, is_always: bool) -> RowProgram | None:
        """Return the program; None if the rules' ops are as good, or would give other bits."""
        stand_ins = [
            wrap(np.broadcast_to(np.zeros((), spec.dtype), spec.shape)) for spec in rows.specs()
        ]
        graph = trace_call(self._run, (stand_ins,), {}, keep_grads=False).graph
        outputs = set(graph.outputs)
        if len(graph.inputs) != len(stand_ins) or len(outputs) != len(self.rules):
            return None  # the rules take values from elsewhere, or give one twice
        if not outputs.isdisjoint(graph.inputs):
            return None  # one hands on what it gets, which has a storage and a count of writes
        is_flat = all(o.shape == (ROWS,) for o in graph.outputs)
        if rows.shape is not None and not (is_flat and (is_always or _pays(graph))):
            return None
        return RowProgram(graph)

    def _run(self, tensors: list[Tensor]) -> list[Tensor]:
        leaves = [tensors[m] if isinstance(m, int) else m[1] for m in self.marks]
        arguments = tree.unflatten(self.structure, leaves)
        return [rule.cotangent(given) for rule, given in zip(self.rules, arguments, strict=True)]


def _pays(graph: Graph) -> bool:
    """Whether a graph has the bits of its ops, and takes NumPy several passes."""
    ops = [node.op for node in pipeline.run(graph).nodes]
    if any(op.kind is not Kind.ELEMENTWISE for op in ops):
        return False
    passes = sum(1 if op.is_ufunc else 2 for op in ops)
    return passes > 1 and all(op.exact or op.kernel is not None for op in ops)
