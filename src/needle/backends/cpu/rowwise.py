"""Kernels of eager execution for ops that work row by row: softmax, normalisation, cross-entropy.

They are the compiler's own: the op's decomposition is traced for any number of rows (`ROWS`) and a
known row, fused and compiled, once per length of the row. A batch of another size runs the same
code, and each row gets the same bits in it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from needle.arrays import maker
from needle.backends.cpu import cache, jit
from needle.backends.cpu.arguments import address
from needle.backends.cpu.buffers import Table, collect, has_copies, run_with_copies
from needle.backends.cpu.executable import compiled, exception_of
from needle.backends.cpu.program import Program
from needle.backends.cpu.status import TASKS_WORD
from needle.backends.cpu.target import host
from needle.backends.cpu.threads import get_num_threads
from needle.compiler import pipeline
from needle.compiler.fingerprint import fingerprint
from needle.compiler.rows import ROWS, actual
from needle.graph.ir import Graph, Node, Value
from needle.ops.record import Op
from needle.ops.samples import Array
from needle.shapes import Spec

#: Bytes below which a call is one task.
SMALL_BYTES = 1 << 16


class RowProgram:
    """A compiled graph whose inputs and outputs have rows, or are 0-d.

    Args:
        graph: its extents are known, or multiples of `ROWS`.
    """

    def __init__(self, graph: Graph) -> None:
        target = host()
        key = cache.key("rows", fingerprint(graph), repr(target))
        self.recipe, code = compiled(
            key, lambda: Program(pipeline.run(graph), 1, target, mark=ROWS)
        )
        self._library = jit.load_object(code, ["entry"])
        self._entry = self._library.function("entry", ctypes.c_void_p)
        self._idle: list[Table] = []
        self._new = [(o.slot, o.spec) for o in self.recipe.outputs if o.slot is not None]
        self._has_copies = has_copies(self.recipe)

    def run(self, arrays: Sequence[Array], rows: int) -> list[Array]:
        """Run on contiguous arrays of ``rows`` rows.

        Raises:
            OutOfRangeError: a label or an index is out of range.
        """
        recipe = self.recipe
        table = self._idle.pop() if self._idle else Table(recipe)
        nbytes = 0
        for i, array in enumerate(arrays):
            table.slots[i] = address(array)
            nbytes += array.nbytes
        new = []
        for slot, spec in self._new:
            output = maker(actual(spec.shape, rows), spec.dtype)()
            table.slots[slot] = address(output)
            new.append(output)
        table.set_rows(recipe, rows)
        table.status[TASKS_WORD] = get_num_threads() if nbytes >= SMALL_BYTES else 1
        if self._has_copies:
            return run_with_copies(recipe, arrays, new, lambda: self._run(table, rows))
        self._run(table, rows)
        return collect(recipe, arrays, new)

    def _run(self, table: Table, rows: int) -> None:
        self._entry(table.address)
        number, place, value = table.take_fault() if table.status[0] else (0, 0, 0)
        self._idle.append(table)
        if number:
            fault = self.recipe.faults[number - 1]
            raise exception_of(fault.at(rows), place, value)


def graph_of(op: Op, specs: Sequence[Spec], attrs: dict[str, Any]) -> Graph:
    """Return the graph of one call of an op."""
    inputs = [Value(spec, name=op.input_name(i)) for i, spec in enumerate(specs)]
    found = op.infer(*specs, **attrs)
    results = (found,) if isinstance(found, Spec) else found
    node = Node(op, inputs, attrs, results)
    return Graph(inputs, [node], list(node.results), {}, op.name)


_programs: dict[Any, RowProgram] = {}


def run_rows(
    op: Op, arrays: Sequence[Array], attrs: dict[str, Any], parameters: Sequence[int] = ()
) -> list[Array]:
    """Run an op on contiguous arrays whose first axis, if they have one, is that of the rows.

    Args:
        op: what is run.
        arrays: its inputs.
        attrs: its attributes.
        parameters: the places of inputs that have columns but no rows.
    """
    shapes = [
        (ROWS, *a.shape[1:]) if a.ndim and i not in parameters else a.shape
        for i, a in enumerate(arrays)
    ]
    key = (op.name, *shapes, *[a.dtype for a in arrays], *attrs.items())
    program = _programs.get(key)
    if program is None:
        specs = [Spec(shape, a.dtype) for shape, a in zip(shapes, arrays, strict=True)]
        program = _programs[key] = RowProgram(graph_of(op, specs, attrs))
    tall = (a for i, a in enumerate(arrays) if a.ndim and i not in parameters)
    return program.run(arrays, next(tall).shape[0])


def along_rows(op: Op) -> Callable[..., Any]:
    """Return the kernel of an op with one input that treats the last axes of it row by row."""

    def kernel(x: Array, **attrs: Any) -> Any:
        name = "axis" if "axis" in attrs else "axes"
        axes = (attrs[name],) if name == "axis" else attrs[name]
        first = x.ndim - len(axes)
        if axes != tuple(range(first, x.ndim)) or not x.size or not axes or not _fits(x):
            return None
        columns = math.prod(x.shape[first:])
        rows = x.reshape(-1, columns)
        outputs = run_rows(op, [rows], {**attrs, name: 1 if name == "axis" else (1,)})
        shaped = [
            o.reshape(x.shape if o.shape[1] == columns else (*x.shape[:first], *[1] * len(axes)))
            for o in outputs
        ]
        return shaped[0] if len(shaped) == 1 else tuple(shaped)

    return kernel


def affine_rows(op: Op) -> Callable[..., Any]:
    """Return the kernel of an op on rows and parameters with a value for each of their columns.

    Its attribute ``normalized`` is how many of the last axes make a row.
    """

    def kernel(*arrays: Array, **attrs: Any) -> Any:
        x, count = arrays[0], attrs["normalized"]
        if not x.size or x.dtype.char not in "fd" or any(a.dtype != x.dtype for a in arrays):
            return None
        columns = x.shape[-count:]
        parameters = [i for i, a in enumerate(arrays) if a.ndim == count]
        width = math.prod(columns)
        shaped = [
            np.ascontiguousarray(a).reshape((width,) if i in parameters else (-1, width))
            for i, a in enumerate(arrays)
        ]
        (result,) = run_rows(op, shaped, {**attrs, "normalized": 1}, parameters)
        return result.reshape(columns if result.ndim == 1 else x.shape)

    return kernel


def labelled_rows(op: Op) -> Callable[..., Any]:
    """Return the kernel of an op on rows of scores with a label for each."""

    def kernel(*arrays: Array, **attrs: Any) -> Any:
        tall = [x for x in arrays if x.ndim]
        if attrs["axis"] != 1 or len({x.shape[0] for x in tall}) != 1:
            return None
        if not all(x.ndim <= 2 and x.size and x.flags.carray for x in arrays):
            return None
        if not any(x.ndim == 2 and _fits(x) for x in arrays):
            return None
        outputs = run_rows(op, arrays, attrs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return kernel


def _fits(x: Array) -> bool:
    return x.dtype.char in "fd" and bool(x.flags.carray)
