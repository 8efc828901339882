"""Control flow: two ops whose attributes are graphs, which they run.

`SWITCH` runs one of several graphs, `LOOP` runs one again and again. ``ndl.cond``, ``while_loop``,
``scan`` and ``fori_loop`` (`needle.control`) are written with them where they are traced; in eager
execution they are ordinary Python, so these records have no vjp rules. How their gradients come
about stands in `needle.graph.switch` and `needle.graph.loop`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import bool as bool_, int64, is_integer
from needle.errors import DTypeError, ShapeError
from needle.ops.record import Kind, Op, flops_of
from needle.ops.samples import Array
from needle.shapes import Spec

if TYPE_CHECKING:
    from needle.graph.ir import Graph


def _require_scalar(spec: Spec, what: str) -> None:
    if spec.shape or not (spec.dtype == bool_ or is_integer(spec.dtype)):
        raise ShapeError(f"{what} must be a 0-d bool or integer, got {spec}")


def _check_inputs(graph: Graph, given: Sequence[Spec], what: str) -> None:
    expected = [v.spec for v in graph.inputs]
    if expected != list(given):
        said, got = (", ".join(map(str, specs)) for specs in (expected, given))
        raise ShapeError(f"{what} takes {said}; it is given {got}")


# Switch


def _infer_switch(index: Spec, *operands: Spec, branches: tuple[Graph, ...]) -> tuple[Spec, ...]:
    _require_scalar(index, "switch: the index")
    if index.dtype == bool_ and len(branches) != 2:
        raise DTypeError(f"switch: a bool chooses between 2 branches, not {len(branches)}")
    for i, branch in enumerate(branches):
        _check_inputs(branch, operands, f"switch: branch {i}")
    results = tuple(v.spec for v in branches[0].outputs)
    for i, branch in enumerate(branches[1:], 1):
        if tuple(v.spec for v in branch.outputs) != results:
            raise ShapeError(f"switch: the results of branch {i} are not those of branch 0")
    return results


def _switch(index: Array, *operands: Array, branches: tuple[Graph, ...]) -> tuple[Array, ...]:
    chosen = branches[min(max(int(index), 0), len(branches) - 1)]
    return tuple(chosen.run(operands))


def _flops(graph: Graph) -> int:
    return sum(
        flops_of(n.op, tuple(v.spec for v in n.inputs), n.results[0].spec, n.attrs)
        for n in graph.nodes
        if n.results
    )


#: ``branches[index](*operands)``. The index is a bool (False chooses the first of two branches) or
#: an integer, which is clamped to those there are.
SWITCH = Op(
    name="switch",
    function=_switch,
    samples=list,
    is_method=False,
    kind=Kind.CONTROL,
    infer=_infer_switch,
    reference=_switch,
    flops=lambda *specs, branches: max(map(_flops, branches)),
    inputs=("index", "operands"),
    is_variadic=True,
)


# Loop


def split_loop(
    inputs: Sequence[Any],
    *,
    body: Graph,
    test: Graph | None,
    carries: int,
    scanned: int,
    counted: bool,
    **_: Any,
) -> tuple[list[Any], list[Any], list[Any], list[Any], Any]:
    """Return the inputs of a loop by what they are for.

    Returns:
        What the carried values are at first; what is scanned; what else the body reads; what else
        the test reads; the number of turns, or None.
    """
    rest = list(inputs)
    count = rest.pop() if counted else None
    own = len(body.inputs)
    return (
        rest[:carries],
        rest[carries : carries + scanned],
        rest[carries + scanned : own],
        (rest[own:]),
        count,
    )


def _infer_loop(
    *inputs: Spec,
    body: Graph,
    test: Graph | None,
    carries: int,
    scanned: int,
    length: int | None,
    reverse: bool,
    counted: bool,
) -> tuple[Spec, ...]:
    first, stacks, constants, others, count = split_loop(
        inputs, body=body, test=test, carries=carries, scanned=scanned, counted=counted
    )
    if counted:
        _require_scalar(count, "loop: the number of turns")
    if length is None and (len(body.outputs) > carries or scanned or reverse):
        raise ShapeError("loop: what is scanned or stacked needs a length")
    if length is None and test is None and not counted:
        raise ShapeError("loop: it needs a length, a number of turns or a test")
    if test is not None and (counted or reverse):
        raise ShapeError("loop: with a test it is neither counted nor reversed")
    for spec in stacks:
        if spec.shape[:1] != (length,):
            raise ShapeError(f"loop: it scans {length} slices, and is given {spec}")
    slices = [Spec(spec.shape[1:], spec.dtype) for spec in stacks]
    _check_inputs(body, [*first, *slices, *constants], "loop: the body")
    after = [v.spec for v in body.outputs[:carries]]
    if after != first:
        said, got = (", ".join(map(str, specs)) for specs in (first, after))
        raise ShapeError(f"loop: it carries {said}; the body returns {got}")
    if test is not None:
        _check_inputs(test, [*first, *others], "loop: the test")
        if [v.spec for v in test.outputs] != [Spec((), bool_)]:
            raise ShapeError("loop: the test returns a 0-d bool")
    turns = (Spec((), int64),) if test is not None else ()
    stacked = (Spec((length or 0, *v.spec.shape), v.spec.dtype) for v in body.outputs[carries:])
    return (*first, *turns, *stacked)


def _loop(
    *inputs: Array,
    body: Graph,
    test: Graph | None,
    carries: int,
    scanned: int,
    length: int | None,
    reverse: bool,
    counted: bool,
) -> tuple[Array, ...]:
    carry, stacks, constants, others, count = split_loop(
        inputs, body=body, test=test, carries=carries, scanned=scanned, counted=counted
    )
    turns: float = math.inf if length is None else length
    if counted:
        turns = min(max(int(count), 0), turns)
    results = [np.zeros((length or 0, *v.shape), v.dtype) for v in body.outputs[carries:]]
    turn = 0
    while turn < turns and (test is None or test.run([*carry, *others])[0]):
        at = int(turns) - 1 - turn if reverse else turn
        outputs = body.run([*carry, *(stack[at] for stack in stacks), *constants])
        carry = outputs[:carries]
        for result, y in zip(results, outputs[carries:], strict=True):
            result[at] = y
        turn += 1
    taken = () if test is None else (np.asarray(turn, dtype=int64),)
    return (*carry, *taken, *results)


#: Runs ``body`` again and again. Its inputs are the carried values, one slice of each scanned
#: stack, and what is the same in all turns; its outputs are the carried values of the next turn,
#: and slices of new stacks.
#:
#: There are ``length`` turns; if ``counted``, only as many of them as the last input says; with a
#: ``test``, only until that is false of the carried values (and of inputs of its own). Without a
#: length, nothing is scanned and nothing stacked. With ``reverse``, the last slice comes first. The
#: results are the carried values at the end; with a test the number of turns; the stacks, which
#: are zero where no turn came to.
LOOP = Op(
    name="loop",
    function=_loop,
    samples=list,
    is_method=False,
    kind=Kind.CONTROL,
    infer=_infer_loop,
    reference=_loop,
    flops=lambda *specs, body, length, **attrs: _flops(body) * (length or 1),
    inputs=("operands",),
    is_variadic=True,
)

__all__: list[str] = []
