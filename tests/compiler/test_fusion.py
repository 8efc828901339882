"""Groups of kernels: what shares loops reads of each other what is computed there."""

import numpy as np

import needle as ndl
from needle.backends import cpu
from needle.compiler import pipeline
from needle.compiler.fusion import Fusion
from needle.compiler.passes.split_folds import LONG
from needle.graph import trace


def test_merged_groups_read_their_values_in_place():
    """A third value reads both in place, but one of the two reads the other flipped."""

    def program(x, y):
        a = ndl.sin(x) * y + 1.0
        b = ndl.flip(ndl.exp(a) * a, 0) * y + ndl.flip(a, 0)
        return a * b + a, b * x + b

    args = [ndl.asarray(np.random.default_rng(i).normal(size=(5, 4))) for i in range(2)]
    traced = trace(program, *args)
    for group in Fusion(pipeline.run(traced.graph)).run():
        for piece in group.pieces:
            for value, at in piece.reads:
                assert group.place_of(value) in (None, at)
    actual = cpu.build(traced.graph).run(traced.arrays(*args))
    for a, e in zip(actual, program(*args), strict=True):
        np.testing.assert_allclose(a, e.numpy(), rtol=1e-13)


def test_gradients_of_flipped_products():
    """Found by random programs: three kernels that should have been two."""

    def program(x, y):
        z = ndl.flip(x, 0) * (x + y) * 0.5 + (x + y) * 0.1 + 0.0
        gx, gy = ndl.grad((z * z).sum(), [x, y], create_graph=True)
        return ndl.grad((ndl.sin(gx) * gx + gy * ndl.cos(gy)).sum(), [x, y])

    args = [ndl.Tensor(np.random.default_rng(i).normal(size=(3, 3))) for i in range(2)]
    traced = trace(program, *args)
    actual = cpu.build(traced.graph).run(traced.arrays(*args))
    for a, e in zip(actual, program(*args), strict=True):
        np.testing.assert_allclose(a, e.numpy(), rtol=1e-11)


def test_long_places_keep_what_tasks_share_apart():
    """Where the largest of many elements stands is found by one task, for any number of rows."""

    def program(x):
        y = ndl.sin(x) * 2
        return y, ndl.argmax(y, axis=1), y * ndl.argmin(y, axis=1, keepdims=True)

    kernels = []
    for rows in (2, 70):
        x = ndl.asarray(np.random.default_rng(rows).normal(size=(rows, LONG)))
        traced = trace(program, x)
        groups = Fusion(pipeline.run(traced.graph)).run()
        kernels.append(sorted(sorted(p.value.node.op.name for p in g.pieces) for g in groups))
        found = [cpu.build(traced.graph, n).run(traced.arrays(x)) for n in (1, 2)]
        for one, two, expected in zip(*found, program(x), strict=True):
            np.testing.assert_array_equal(one, two)
            np.testing.assert_allclose(one, expected.numpy(), rtol=1e-12)
    assert kernels[0] == kernels[1]
    # What reads and what is read, element by element, are kernels of their own.
    assert ["argmax"] in kernels[0]
    assert ["argmin"] in kernels[0]
