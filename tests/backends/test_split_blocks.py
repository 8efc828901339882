"""Code that branches can be emitted into an earlier block."""

import ctypes

import numpy as np
import pytest

from needle import dtypes
from needle.backends.cpu import jit
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module


def run(emit, *arrays):
    module = Module()
    f = Function(module, "f", {f"p{i}": "ptr" for i in range(len(arrays))}, internal=False)
    emit(f, *(f"%p{i}" for i in range(len(arrays))))
    f.end()
    function = jit.load(module).function("f", *[ctypes.c_void_p] * len(arrays))
    function(*(a.ctypes.data for a in arrays))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("value", [-3.0, 3.0])
def test_branches_before_loops(depth, known, value):
    """In each loop, what branches is computed before it and before all loops around it."""
    x, n, total = np.array([value]), np.array([4]), np.zeros(1)

    def emit(f, x, n, total):
        stop = 4 if known else f.load(n, 0, dtypes.int64)

        def nest(level, carried, places):
            places = [*places, f.segment()]
            before = f.segment()

            def body(i, carried):
                (sums,) = carried
                for place in (before, *places):
                    with f.into(place):
                        a = f.load(x, 0, dtypes.float64)
                        negative = f.less(a, f.like(0, a))
                        (a,) = f.branch(negative, lambda a=a: [f.mul(a, a)], lambda a=a: [a])
                    sums = f.add(sums, a)
                if level < depth:
                    (sums,) = nest(level + 1, [sums], places)
                return [sums]

            return f.loop(0, stop, 1, carried, body)

        (sums,) = nest(1, [f.constant(0, dtypes.float64)], [])
        f.store(sums, total, 0)

    run(emit, x, n, total)
    each = 9.0 if value < 0 else 3.0
    assert total[0] == sum(4**level * (level + 1) for level in range(1, depth + 1)) * each


def test_a_loop_before_a_loop():
    total = np.zeros(1, dtype=np.int64)

    def emit(f, total):
        place = f.segment()

        def body(i, carried):
            with f.into(place):
                one = f.constant(1, dtypes.int64)
                (three,) = f.loop(0, 3, 1, [f.like(0, one)], lambda _, c: [f.add(c[0], one)])
                (more,) = f.branch(f.less(one, three), lambda: [three], lambda: [one])
            return [f.add(carried[0], more)]

        (result,) = f.loop(0, 5, 1, [f.constant(0, dtypes.int64)], body)
        f.store(result, total, 0)

    run(emit, total)
    assert total[0] == 15
