"""Steps of random programs: each makes a tensor of one that is given, and of others.

A step is a function ``step(draw, x, others)``: ``draw`` is Hypothesis's, ``x`` the tensor, and
``others`` all that are there, ``x`` among them. Where it has nothing to do, it returns ``x``.
"""

import numpy as np
from hypothesis import strategies as st

import needle as ndl
from needle import dtypes

DTYPES = (np.float32, np.float64, np.float16, np.int32, np.bool_)
UNARY = ("exp", "abs", "negative", "square", "relu", "floor", "sign", "sqrt", "reciprocal", "isnan")
BINARY = ("add", "subtract", "multiply", "divide", "maximum", "equal", "less", "greater_equal")
NUMBERS = (0, 1, -1, 2, 0.0, -0.0, 0.5, -8.0, 3.0)


def unary(draw, x, others):
    name = draw(st.sampled_from(UNARY))
    if x.dtype == dtypes.bool and name not in ("isnan",):
        return ndl.logical_not(x)
    return getattr(ndl, name)(x)


def binary(draw, x, others):
    name = draw(st.sampled_from(BINARY))
    y = draw(st.sampled_from([o for o in others if fits(x, o)] or [x]))
    if x.dtype == y.dtype == dtypes.bool and name == "subtract":
        name = "multiply"
    pair = (x, y) if draw(st.booleans()) else (y, x)
    return getattr(ndl, name)(*pair)


def with_number(draw, x, others):
    name = draw(st.sampled_from(("add", "subtract", "multiply", "divide", "maximum")))
    number = draw(st.sampled_from(NUMBERS))
    if x.dtype == dtypes.bool:
        return x.astype(np.int32)
    pair = (x, number) if draw(st.booleans()) else (number, x)
    return getattr(ndl, name)(*pair)


def fits(x, y):
    try:
        np.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        return False
    return True


def choice(draw, x, others):
    y = draw(st.sampled_from([o for o in others if o.shape == x.shape]))
    test = x if x.dtype == dtypes.bool else x > 0
    return ndl.where(~test if draw(st.booleans()) else test, x, y)


def convert(draw, x, others):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtypes.is_float(x.dtype) and not dtypes.is_float(dtype):
        # What is no integer of the dtype is undefined.
        x = ndl.where(ndl.abs(x) < 100, x, 1.0)
    return x.astype(dtype)


def permute(draw, x, others):
    return ndl.permute_dims(x, draw(st.permutations(range(x.ndim))))


def reshape(draw, x, others):
    shapes = [(x.size,), (1, *x.shape), (*x.shape, 1), x.shape[::-1]]
    if x.ndim > 1:
        shapes.append((x.shape[0], x.size // x.shape[0] if x.shape[0] else 0))
    return ndl.reshape(x, draw(st.sampled_from(shapes)))


def broadcast(draw, x, others):
    shape = tuple(3 if n == 1 and draw(st.booleans()) else n for n in x.shape)
    return ndl.broadcast_to(x, (2, *shape) if draw(st.booleans()) else shape)


def part(draw, x, others):
    if not x.ndim or 0 in x.shape:
        return x
    slices = []
    for n in x.shape:
        start = draw(st.integers(0, n - 1))
        step = draw(st.sampled_from((1, 1, 2, -1)))
        slices.append(slice(start, None, step) if draw(st.booleans()) else slice(None, None, step))
    return x[tuple(slices)]


def surround(draw, x, others):
    pads = [(draw(st.integers(0, 1)), draw(st.integers(0, 1))) for _ in x.shape]
    return ndl.pad(x, pads, draw(st.sampled_from((0, 1))))


def reduce(draw, x, others):
    axes = tuple(a for a in range(x.ndim) if draw(st.booleans()))
    name = draw(st.sampled_from(("sum", "max", "min")))
    if 0 in x.shape:
        name = "sum"
    return getattr(ndl, name)(x, axes, keepdims=draw(st.booleans()))


def join(draw, x, others):
    same = [o for o in others if o.shape == x.shape]
    return ndl.concat([x, draw(st.sampled_from(same))]) if x.ndim else x


def softmax(draw, x, others):
    return ndl.softmax(x, -1) if x.ndim and x.dtype != dtypes.bool else x


STEPS = (unary, binary, binary, with_number, choice, convert, permute, reshape, broadcast, part,
         surround, reduce, join, softmax)  # fmt: skip
