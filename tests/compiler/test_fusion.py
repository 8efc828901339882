"""Groups of kernels: what shares loops reads of each other what is computed there."""

import numpy as np
import pytest

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


def _groups_of(program, *args):
    return Fusion(pipeline.run(trace(program, *args).graph)).run()


def test_sums_over_the_same_elements_share_a_kernel():
    """The gradients of a shift and a scale by channels, as normalisation has them."""

    def program(x, g):
        return ndl.sum(g, (0, 1)), ndl.sum(g * x, (0, 1)), ndl.max(x, (0, 1))

    x, g = (ndl.asarray(np.random.default_rng(i).normal(size=(6, 5, 7))) for i in range(2))
    assert len(_groups_of(program, x, g)) == 1
    traced = trace(program, x, g)
    for threads in (1, 2):
        actual = cpu.build(traced.graph, threads).run(traced.arrays(x, g))
        for a, e in zip(actual, program(x, g), strict=True):
            np.testing.assert_allclose(a, e.numpy(), rtol=1e-12)


def test_sums_that_depend_on_each_other_through_others_do_not_share():
    """The second sum needs the first by way of a sorted copy, which is a kernel of its own."""

    def program(x):
        first = ndl.sum(x, 0)
        return ndl.sum(x * ndl.sort(first), 0)

    x = ndl.asarray(np.random.default_rng(0).normal(size=(6, 5)))
    assert len(_groups_of(program, x)) == 3
    traced = trace(program, x)
    (actual,) = cpu.build(traced.graph).run(traced.arrays(x))
    np.testing.assert_allclose(actual, program(x).numpy(), rtol=1e-12)


def test_products_of_all_pixels_take_images_in():
    """What follows a product as images, element by element, is its epilogue."""

    def program(x, weight, rest, bias):
        rows = ndl.reshape(x, (3 * 4 * 5, 6))
        images = ndl.reshape(ndl.matmul(rows, weight), (3, 4, 5, 7))
        active = ndl.relu(images * 2 + bias) + rest
        return active, ndl.reshape(ndl.exp(active), (12, 5, 7))

    shapes = (3, 4, 5, 6), (6, 7), (3, 4, 5, 7), (7,)
    args = [ndl.asarray(np.random.default_rng(i).normal(size=s)) for i, s in enumerate(shapes)]
    assert len(_groups_of(program, *args)) == 1
    traced = trace(program, *args)
    for threads in (1, 2):
        actual = cpu.build(traced.graph, threads).run(traced.arrays(*args))
        for a, e in zip(actual, program(*args), strict=True):
            np.testing.assert_allclose(a, e.numpy(), rtol=1e-12)


def test_products_do_not_take_in_what_reads_them_out_of_place():
    def program(x, weight):
        product = ndl.matmul(x, weight)
        return ndl.exp(ndl.flip(product, 0)), ndl.exp(ndl.reshape(product, (2, 14))[:, :7])

    args = [
        ndl.asarray(np.random.default_rng(i).normal(size=s)) for i, s in enumerate([(4, 6), (6, 7)])
    ]
    assert len(_groups_of(program, *args)) == 3
    traced = trace(program, *args)
    for a, e in zip(cpu.build(traced.graph).run(traced.arrays(*args)), program(*args), strict=True):
        np.testing.assert_allclose(a, e.numpy(), rtol=1e-12)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_activations_are_computed_again_behind_products(approximate):
    """The backward pass of GELU reads what the product gave, and keeps nothing else of it; from
    small arrays, which stay in caches, it reads what has been computed before."""
    kept = {}
    for rows in (8, 1024):
        rng = np.random.default_rng(rows)
        x, up, down = (ndl.asarray(rng.normal(size=s)) for s in ((rows, 16), (16, 64), (64, 16)))

        def program(x, up, down):
            y = ndl.gelu(x @ up, approximate) @ down
            return ndl.grad((y * y).sum(), [up, down])

        for w in (up, down):
            w.requires_grad = True
        traced = trace(program, x, up, down)
        groups = Fusion(pipeline.run(traced.graph)).run()
        own = {p.value: g for g in groups for p in g.pieces}
        kept[rows] = {
            v for g in groups for p in g.pieces for v, _ in p.reads if own.get(v, g) is not g
        }
        kept[rows] = [v for v in kept[rows] if v.size == rows * 64]
        actual = cpu.build(traced.graph).run(traced.arrays(x, up, down))
        for a, e in zip(actual, program(x, up, down), strict=True):
            np.testing.assert_allclose(a, e.numpy(), rtol=1e-9, atol=1e-9)
    assert len(kept[1024]) == 3  # the product, its activation, and the gradient of the product
    assert len(kept[8]) > 3


def test_what_many_rows_share_is_computed_once():
    """A root for each channel, not for each element; of few rows it stays where it is used."""

    def program(x, variance):
        return x * ndl.rsqrt(variance)

    def stored(rows):
        args = (ndl.asarray(np.ones(shape)) for shape in ((rows, 8), (8,)))
        return {p.value.node.op.name for g in _groups_of(program, *args) for p in g.pieces}

    assert stored(100) == {"rsqrt", "multiply"}
    assert stored(10) == {"multiply"}
