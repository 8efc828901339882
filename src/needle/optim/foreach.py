"""Run one update rule over many tensors: the one place where optimizers do arithmetic.

An update rule is two functions, written with operators and the functions of an array namespace
``xp`` only, so that it runs on tensors and on NumPy arrays alike:

- ``coefficients(xp, options, **numbers)`` computes, in float64, what all parameters share: from the
  learning rate, the step count and the like, all 0-d, to a tuple of 0-d values.
- ``update(xp, options, c, param, grad, **state)`` overwrites one parameter and its state, element
  by element, with the coefficients ``c`` in the dtype of the parameter.

On tensors every operation is an op, so a step can be traced like everything else. In eager mode on
the CPU the same functions run on the arrays below the tensors, which gives the same bits and costs
0.3 µs instead of 1 µs for each operation. Because rules are elementwise and take what changes
between steps as values, one generated kernel for all tensors can replace `run_on_arrays` and
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

import needle
from needle.config import modes
from needle.dtypes import accumulation_dtype, float32, float64
from needle.inplace import assign
from needle.optim import kernels
from needle.tensor import Tensor

#: A tensor or an array: what the functions of a rule compute with.
Values = Any
#: Elements of an array that are updated at a time: 64 KiB of float32.
BLOCK = 1 << 14
#: Elements from which on a compiled kernel is faster than NumPy on the arrays.
COMPILED_FROM = 256
#: What shapes the arithmetic: flags that are set and numbers that are in use. Never changes values.
Options = frozenset[str]


class Rule(Protocol):
    """What an optimizer is to this module; see the module's docstring."""

    def coefficients(self, xp: Any, options: Options, **numbers: Values) -> tuple[Values, ...]:
        """Return what the updates of all parameters share."""

    def update(
        self, xp: Any, options: Options, c: Any, param: Values, grad: Values, **state: Values
    ) -> None:
        """Overwrite one parameter and its state."""


class Row(NamedTuple):
    """A parameter with what its update reads and writes."""

    param: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]


def run(
    rule: Rule,
    options: Options,
    numbers: Mapping[str, Tensor],
    step: Tensor | None,
    rows: Sequence[Row],
) -> None:
    """Count a step, then update the parameters of all rows.

    Args:
        rule: the functions to run.
        options: handed to them.
        numbers: 0-d float64 tensors, handed to `coefficients` by name.
        step: 0-d int64 tensor that is incremented first, and handed to `coefficients` as ``step``;
            None for a rule that counts no steps.
        rows: parameters, gradients of the same shape and dtype, state tensors by name.
    """
    # Looking for anomalies is the ops' work, and only ops can be traced.
    if not modes.state.anomaly and modes.state.trace is None and is_plain(rows, numbers, step):
        run_on_arrays(rule, options, numbers, step, rows)
    else:
        run_on_tensors(rule, options, numbers, step, rows)


def is_plain(rows: Sequence[Row], numbers: Mapping[str, Tensor], step: Tensor | None) -> bool:
    """Whether all values are writable arrays of a dtype that NumPy computes in, run eagerly."""
    for param, grad, state in rows:
        data = param._data
        if data.__class__ is not np.ndarray or grad._data.__class__ is not np.ndarray:
            return False
        if data.dtype is not float32 and data.dtype is not float64:
            return False
        if not data.flags.writeable:
            return False
        for t in state.values():
            if t._data.__class__ is not np.ndarray:
                return False
    if step is not None and step._data.__class__ is not np.ndarray:
        return False
    return all(t._data.__class__ is np.ndarray for t in numbers.values())


def run_on_arrays(
    rule: Rule,
    options: Options,
    numbers: Mapping[str, Tensor],
    step: Tensor | None,
    rows: Sequence[Row],
) -> None:
    """`run` on the arrays below the tensors, marking each tensor that it writes as changed."""
    values = {name: t._data for name, t in numbers.items()}
    if step is not None:
        np.add(step._data, 1, out=step._data)
        mark_written(step)
        values["step"] = step._data
    quiet = modes.state.quiet
    exact = quiet(rule.coefficients, np, options, **values)
    cast: dict[Any, Any] = {}
    for param, grad, state in rows:
        data = param._data
        c = cast.get(data.dtype)
        if c is None:
            c = cast[data.dtype] = type(exact)(*[quiet(x.astype, data.dtype) for x in exact])
        arrays = {name: t._data for name, t in state.items()}
        if data.size < COMPILED_FROM or not kernels.update(
            rule, options, c, data, grad._data, arrays
        ):
            for part, slope, parts in _blocks(data, grad._data, arrays):
                quiet(rule.update, np, options, c, part, slope, **parts)
        mark_written(param)
        for t in state.values():
            mark_written(t)


def _blocks(
    data: Any, grad: Any, state: dict[str, Any]
) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """Yield large arrays in blocks that stay in the cache, as do the temporaries of a formula.

    Temporaries as large as the arrays would come from the operating system anew at each step.
    """
    everything = (data, grad, *state.values())
    if data.size <= 2 * BLOCK or not all(a.flags.c_contiguous for a in everything):
        yield data, grad, state
        return
    values, slopes = data.reshape(-1), grad.reshape(-1)
    flat = {name: array.reshape(-1) for name, array in state.items()}
    for start in range(0, data.size, BLOCK):
        block = slice(start, start + BLOCK)
        yield values[block], slopes[block], {name: array[block] for name, array in flat.items()}


def run_on_tensors(
    rule: Rule,
    options: Options,
    numbers: Mapping[str, Tensor],
    step: Tensor | None,
    rows: Sequence[Row],
) -> None:
    """`run` with ops. Parameters of 16-bit floats are computed in float32 and rounded once."""
    values: dict[str, Values] = dict(numbers)
    if step is not None:
        step += 1
        values["step"] = step
    exact = rule.coefficients(needle, options, **values)
    cast: dict[Any, Any] = {}
    for param, grad, state in rows:
        dtype = accumulation_dtype(param.dtype)
        c = cast.get(dtype)
        if c is None:
            c = cast[dtype] = type(exact)(*[x.astype(dtype) for x in exact])
        if dtype == param.dtype:
            rule.update(needle, options, c, param, grad, **state)
        else:
            wide = param.detach().astype(dtype)
            rule.update(needle, options, c, wide, grad.detach().astype(dtype), **state)
            assign(param, wide, "step")


def overwrite(target: Values, value: Values) -> None:
    """Store ``value`` in ``target``: for rules whose new value no in-place operator gives."""
    if isinstance(target, Tensor):
        assign(target, value, "step")
    else:
        np.copyto(target, value)


def mark_written(tensor: Tensor) -> None:
    """Count a write to the storage, so that a backward pass through the old value is an error."""
    if tensor._version is not None:
        tensor._version[0] += 1
