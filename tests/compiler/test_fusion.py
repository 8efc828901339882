"""Groups of kernels: what shares loops reads of each other what is computed there."""

import numpy as np

import needle as ndl
from needle.backends import cpu
from needle.compiler import pipeline
from needle.compiler.fusion import Fusion
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
