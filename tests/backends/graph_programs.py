"""Random programs over all ops of the registry, as graphs with arrays to run them on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import assume, strategies as st
from random_steps import STEPS

import needle as ndl
from needle import dtypes, tree
from needle.errors import NeedleError, TraceError
from needle.graph import trace, verify
from needle.graph.ir import Graph
from needle.ops.record import REGISTRY, Kind, Op
from needle.testing import cases_under_test
from needle.testing.cases import Case

Array = np.ndarray[Any, Any]

#: Values are left out if they have more elements or axes.
MOST_ELEMENTS, MOST_AXES = 12_000, 5

FLOATS = (np.float32, np.float32, np.float32, np.float64, np.float64, dtypes.bfloat16, np.float16)
OTHERS = (np.int32, np.int64, np.bool_, np.uint8, np.int8)
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-42, 1e-310, 3e38, -7.25, 100.0]
EXTENTS = (0, 1, 2, 3, 5, 7, 8, 16, 17, 33, 65)

CASES = tuple(c for c in cases_under_test() if c.entry.name != "nonzero")
NAMES = tuple(sorted({c.entry.name for c in CASES}))
CASES_OF = {name: [c for c in CASES if c.entry.name == name] for name in NAMES}
ELEMENTWISE = tuple(
    entry
    for entry in REGISTRY.values()
    if isinstance(entry, Op)
    and entry.kind is Kind.ELEMENTWISE
    and len(entry.inputs) in (1, 2)
    and entry.name not in ("astype", "expect_range")  # they need more arguments
)


def elementwise(draw: Any, x: Any, others: Any) -> Any:
    """Any elementwise op, on anything that broadcasts."""
    entry = draw(st.sampled_from(ELEMENTWISE))
    arguments = [x]
    if len(entry.inputs) == 2:
        arguments.append(draw(st.sampled_from([o for o in others if fits(x, o)])))
        if draw(st.booleans()):
            arguments.reverse()
    return entry.function(*arguments)


def fits(x: Any, y: Any) -> bool:
    try:
        shape = np.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        return False
    return math.prod(shape) <= MOST_ELEMENTS


def as_float(x: Any) -> Any:
    return x if dtypes.is_float(x.dtype) else x.astype(np.float32)


def product(draw: Any, x: Any, others: Any) -> Any:
    """A matrix product, with a tensor that fits or with x itself, turned round."""
    if x.ndim < 1:
        return x
    x = x if x.dtype != dtypes.bool else x.astype(np.int32)
    fitting = [
        o for o in others if o.ndim > 1 and o.shape[-2] == x.shape[-1] and o.ndim + x.ndim < 6
    ]
    if fitting and draw(st.booleans()):
        y = draw(st.sampled_from(fitting))
        return ndl.matmul(x, y if y.dtype != dtypes.bool else y.astype(x.dtype))
    return ndl.matmul(x, ndl.moveaxis(x, -1, -2) if x.ndim > 1 else x)


def statistics(draw: Any, x: Any, others: Any) -> Any:
    """A reduction, along any axes."""
    name = draw(st.sampled_from(("sum", "mean", "var", "prod", "max", "min", "any", "argmax")))
    if name in ("any",):
        x = x > 0 if x.dtype != dtypes.bool else x
    elif name != "sum":
        x = as_float(x)
    if name == "argmax":
        return ndl.argmax(x, draw(st.integers(0, x.ndim - 1))) if x.ndim else x
    axes = tuple(a for a in range(x.ndim) if draw(st.booleans()))
    return getattr(ndl, name)(x, axes, keepdims=draw(st.booleans()))


def along(draw: Any, x: Any, others: Any) -> Any:
    """A function of the elements along one axis."""
    if not x.ndim:
        return x
    axis = draw(st.integers(0, x.ndim - 1))
    name = draw(st.sampled_from(("softmax", "log_softmax", "cumulative_sum", "sort", "flip")))
    if "softmax" in name:
        x = as_float(x)
    return getattr(ndl, name)(x, axis=axis)


def norm(draw: Any, x: Any, others: Any) -> Any:
    if not x.ndim:
        return x
    name = draw(st.sampled_from(("layer_norm", "rms_norm")))
    return REGISTRY[name].function(as_float(x), (x.shape[-1],))


def pick_rows(draw: Any, x: Any, others: Any) -> Any:
    """Rows by number, which may repeat, given or computed."""
    if not x.ndim or not x.shape[0]:
        return x
    axis = draw(st.integers(0, x.ndim - 1))
    n = x.shape[axis]
    if not n:
        return x
    places = draw(st.lists(st.integers(-n, n - 1), max_size=5))
    return ndl.take(x, ndl.asarray(places, dtype=np.int64), axis=axis)


def write(draw: Any, x: Any, others: Any) -> Any:
    """Write into a copy, in place."""
    y = x.clone()
    source = draw(st.sampled_from([o for o in others if o.dtype == x.dtype]))
    if not x.ndim or draw(st.booleans()):
        if x.dtype == dtypes.bool:
            return y
        y += source if source.shape == x.shape else 1
        return y
    start = draw(st.integers(0, 2))
    if source.shape == x.shape and draw(st.booleans()):
        y[start:] = source[start:]
    else:
        y[start::2] = 1
    return y


#: Functions that keep shape and dtype, of a tensor and another one from outside.
BODIES: tuple[Callable[[Any, Any], Any], ...] = (
    lambda a, b: a * 0.5 + b,
    lambda a, b: ndl.tanh(a),
    lambda a, b: ndl.where(a > b, a, -b),
    lambda a, b: a - ndl.mean(a, axis=-1, keepdims=True) if a.ndim else a,
    lambda a, b: ndl.flip(a, axis=0) * b if a.ndim else a,
)


def control(draw: Any, x: Any, others: Any) -> Any:
    """A branch or a loop, which uses a tensor from outside."""
    x = as_float(x)
    if 0 in x.shape:
        return x
    outside = draw(
        st.sampled_from([x] + [o for o in others if (o.shape, o.dtype) == (x.shape, x.dtype)])
    )
    first, second = draw(st.sampled_from(BODIES)), draw(st.sampled_from(BODIES))
    kind = draw(st.sampled_from(("cond", "switch", "fori", "while", "scan")))
    number = draw(st.integers(0, 4))
    if kind == "cond":
        is_true = (x > number - 2).any()
        return ndl.cond(is_true, lambda a: first(a, outside), lambda a: second(a, outside), x)
    if kind == "switch":
        index = (x > number - 2).sum() % 3
        branches = [lambda a: first(a, outside), lambda a: second(a, outside), lambda a: a]
        return ndl.switch(index, branches, x)
    if kind == "fori":
        return ndl.fori_loop(0, number, lambda i, a: first(a, outside), x)
    if kind == "while":
        count, last = ndl.while_loop(
            lambda carry: carry[0] < number,
            lambda carry: (carry[0] + 1, first(carry[1], outside)),
            (ndl.asarray(0), x),
            max_steps=4,
        )
        return last + count.astype(x.dtype)
    if not x.ndim or x.shape[0] > 40:
        return x
    row = outside[0]

    def body(carry: Any, part: Any) -> tuple[Any, Any]:
        return first(carry, part), second(carry, part) + row

    last, rows = ndl.scan(body, row, x, reverse=draw(st.booleans()))
    return rows + last


MORE_STEPS = (control, elementwise, elementwise, product, statistics, along, norm, pick_rows, write)


class CaseStep:
    """A sample of the registry, whose floats may be replaced by what the program has computed.

    Attributes:
        case: the sample.
        arrays: its arguments, to be inputs of the graph.
    """

    def __init__(self, draw: Any, name: str) -> None:
        self.case: Case = draw(st.sampled_from(CASES_OF[name]))
        dtype = draw(st.sampled_from(FLOATS))
        self.arrays: list[Array] = []

        def collect(array: Array) -> Array:
            array = array.astype(dtype) if dtypes.is_float(array.dtype) else array
            self.arrays.append(array)
            return array

        self.case.arguments(collect)

    def __call__(self, draw: Any, inputs: Any, values: Any) -> list[Any]:
        """Return the results that are tensors."""
        rest = iter(inputs)

        def argument(array: Array) -> Any:
            given = next(rest)
            if not dtypes.is_float(given.dtype) or not draw(st.booleans()):
                return given
            return resized(draw(st.sampled_from(values)), given.shape, given.dtype)

        outcome = self.case.call(argument)
        return [t for t in tree.flatten(outcome)[0] if isinstance(t, ndl.Tensor)]


def resized(x: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return the elements of ``x``, repeated or cut, in another shape."""
    size = math.prod(shape)
    if not x.size:
        return ndl.zeros(shape, dtype=dtype)
    flat = ndl.reshape(x, (x.size,))
    if x.size < size:
        flat = ndl.tile(flat, (-(-size // x.size),))
    return ndl.reshape(flat[:size], shape).astype(dtype)


def random_array(draw: Any, shape: tuple[int, ...], dtype: Any, is_special: bool) -> Array:
    """Return an array of ordinary values, of few integers, or with special ones among them."""
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    values: Array = rng.standard_normal(shape)
    if draw(st.booleans()):
        values = rng.integers(-3, 4, shape).astype(np.float64)
    if is_special:
        values = np.where(rng.random(shape) < 0.3, rng.choice(SPECIAL, shape), values)
    kind = np.dtype(dtype)
    if not dtypes.is_float(kind):
        values = np.clip(np.nan_to_num(values, nan=0), 0 if kind.kind == "u" else -100, 100)
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(kind)


@st.composite
def graphs(draw: Any) -> tuple[Graph, list[Array]]:
    """A graph that was traced, with gradients and donations in a part of cases, and its inputs."""
    is_special = draw(st.integers(0, 3)) == 3
    shape = tuple(draw(st.lists(st.sampled_from(EXTENTS), max_size=3)))
    if math.prod(shape) > MOST_ELEMENTS:
        shape = shape[:2]
    if draw(st.integers(0, 19)) == 19:
        shape = (draw(st.sampled_from((4_097, 10_000))),)
    shapes = [shape, shape[-1:] if draw(st.booleans()) else shape]
    arrays = [
        random_array(draw, s, draw(st.sampled_from(FLOATS + OTHERS)), is_special) for s in shapes
    ]
    steps: list[Any] = []
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.integers(0, 2)) == 0:
            step = CaseStep(draw, draw(st.sampled_from(NAMES)))
            steps.append((step, len(arrays)))
            arrays += step.arrays
        else:
            steps.append((draw(st.sampled_from(STEPS + MORE_STEPS)), None))
    has_gradients = draw(st.integers(0, 1)) == 1

    def program(*inputs: Any) -> list[Any]:
        values = list(inputs)
        for step, place in steps:
            made: list[Any]
            try:
                if place is None:
                    made = [step(draw, draw(st.sampled_from(values)), values)]
                else:
                    made = step(draw, inputs[place : place + len(step.arrays)], values)
            except TraceError:
                raise
            except NeedleError:
                continue  # shapes or dtypes that do not fit
            values += [t for t in made if t.size <= MOST_ELEMENTS and t.ndim <= MOST_AXES]
        results = [t for t in values if all(t is not x for x in inputs)][-4:] or values[-1:]
        return results + (gradients(results, inputs) if has_gradients else [])

    tensors = [
        ndl.Tensor(a, requires_grad=has_gradients and dtypes.is_float(a.dtype)) for a in arrays
    ]
    try:
        traced = trace(program, *tensors)
    except TraceError:
        assume(False)
    donate(draw, traced.graph)
    # Tensors that the program made of lists are captured.
    captured = [np.asarray(source.find()) for source in traced.sources]
    return verify(traced.graph), arrays + captured


def gradients(results: list[Any], inputs: Any) -> list[Any]:
    """Return the gradients of a sum of all elements, each times a factor of its own."""
    total = None
    for t in results:
        if dtypes.is_float(t.dtype) and t.requires_grad:
            factors = np.cos(np.arange(t.size)).reshape(t.shape)
            part = ndl.sum(t.astype(np.float64) * ndl.asarray(factors))
            total = part if total is None else total + part
    wanted = [x for x in inputs if x.requires_grad]
    if total is None or not wanted:
        return []
    return [g for g in ndl.grad(total, wanted, allow_unused=True) if g is not None]


def donate(draw: Any, graph: Graph) -> None:
    """Let outputs take over the storage of inputs of the same shape and dtype."""
    if draw(st.booleans()):
        return
    free = list(range(len(graph.inputs)))
    for i, value in enumerate(graph.outputs):
        fitting = [j for j in free if graph.inputs[j].spec == value.spec]
        if fitting and draw(st.booleans()):
            graph.donations[i] = draw(st.sampled_from(fitting))
            free.remove(graph.donations[i])
