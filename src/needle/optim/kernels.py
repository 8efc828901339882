"""Update rules as compiled kernels: one pass over a parameter, its gradient and its state.

The rule is traced for any number of elements, once for each dtype and each set of options, and its
arithmetic becomes one loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import needle
from needle.arrays import memory_order
from needle.backends.cpu.rowwise import RowProgram
from needle.compiler.rows import ROWS
from needle.config import autocast, no_grad
from needle.errors import CompileError
from needle.graph.trace import trace_call
from needle.ops.samples import Array
from needle.tensor import wrap

if TYPE_CHECKING:
    from needle.optim.foreach import Options, Rule

_programs: dict[Any, RowProgram] = {}


def update(
    rule: Rule, options: Options, c: Any, param: Array, grad: Array, state: Mapping[str, Array]
) -> bool:
    """Overwrite a parameter and its state by the compiled rule.

    Args:
        rule: the optimizer.
        options: what shapes its arithmetic.
        c: a named tuple of 0-d values of the parameter's dtype.
        param: without gaps, its axes in memory in any order.
        grad: of the parameter's shape and dtype.
        state: arrays of its shape, by name.

    Returns:
        Whether it did; not for arrays with gaps.
    """
    arrays = (param, grad, *state.values())
    order = memory_order(param)
    if order is not None:
        # Its state was made to lie as it does, and the gradient if eager execution made it.
        param, grad, *rest = arrays = tuple(a.transpose(order) for a in arrays)
        if not grad.flags.c_contiguous:
            arrays = (param, np.ascontiguousarray(grad), *rest)
    if not all(a.flags.c_contiguous for a in arrays):
        return False
    key = (type(rule), options, param.dtype, tuple(state), tuple(a.dtype for a in state.values()))
    program = _programs.get(key)
    if program is None:
        program = _programs[key] = _compile(rule, options, c, arrays, tuple(state))
    numbers = [np.asarray(x) for x in c]
    program.run([*(a.reshape(-1) for a in arrays), *numbers], param.size)
    return True


def _compile(
    rule: Rule, options: Options, c: Any, arrays: tuple[Array, ...], names: tuple[str, ...]
) -> RowProgram:
    def step(tensors: list[Any], numbers: list[Any]) -> None:
        param, grad, *state = tensors
        rule.update(
            needle, options, type(c)(*numbers), param, grad, **dict(zip(names, state, strict=True))
        )

    rows = [wrap(_rows(a)) for a in arrays]
    numbers = [wrap(np.zeros((), np.asarray(x).dtype)) for x in c]
    with no_grad(), autocast(enabled=False):
        traced = trace_call(step, (rows, numbers), {}, keep_grads=False)
    if len(traced.graph.inputs) != len(rows) + len(numbers):
        raise CompileError(
            f"{type(rule).__name__}.update takes tensors from elsewhere than its arguments"
        )
    return RowProgram(traced.graph)


def _rows(like: Array) -> Array:
    """Return an array of `ROWS` elements that takes no memory."""
    return np.broadcast_to(np.zeros((), like.dtype), (ROWS,))
