"""The ways to run a program with control flow, which must agree."""

from __future__ import annotations

import numpy as np

import needle as ndl
from needle import tree
from needle.backends import cpu
from needle.compiler import pipeline
from needle.graph import trace, verify


def leaves_of(result):
    """Return the arrays of a structure of tensors."""
    leaves, _ = tree.flatten(result)
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, ndl.Tensor)]


def run_interpreted(function, *args):
    """Return the results of a function as it was traced."""
    traced = trace(function, *args)
    return verify(traced.graph).run(traced.arrays(*args))


def run_optimised(function, *args):
    """Return the results of a function after all passes of the compiler."""
    traced = trace(function, *args)
    return verify(pipeline.run(traced.graph)).run(traced.arrays(*args))


def run_native(function, *args, threads=2):
    """Return the results of native code."""
    traced = trace(function, *args)
    arrays = [np.array(a, order="C") for a in traced.arrays(*args)]
    return cpu.build(traced.graph, threads).run(arrays)


WAYS = (run_interpreted, run_optimised, run_native)


def check(function, *args, tolerance=1e-12):
    """Raise unless ``function`` returns the same in eager execution and in all ways to compile."""
    expected = leaves_of(function(*args))
    assert expected
    for way in WAYS:
        actual = way(function, *args)
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == e.dtype
            assert a.shape == e.shape
            np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance, err_msg=str(way))


def loss_of(result):
    """Return a number in which each element of the floating results counts differently."""
    leaves, _ = tree.flatten(result)
    total = ndl.asarray(0.0, dtype="float64")
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, ndl.Tensor) and leaf.requires_grad:
            weights = ndl.cos(ndl.arange(leaf.size, dtype="float64") + i).reshape(leaf.shape)
            total = total + (leaf * weights).sum()
    return total


def _filled(found, wanted):
    """Return zeros for missing gradients: a trace does not know which branch will run."""
    return [ndl.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)]


def wanted_of(args):
    """Return the tensors among the arguments that require gradients."""
    return [a for a in tree.flatten(args)[0] if isinstance(a, ndl.Tensor) and a.requires_grad]


def gradients(function):
    """Return the function of the gradients of all floating arguments."""

    def first(*args):
        wanted = wanted_of(args)
        found = ndl.grad(loss_of(function(*args)), wanted, allow_unused=True)
        return _filled(found, wanted)

    return first


def second_gradients(function):
    """Return the function of the gradients of a function of all gradients."""

    def second(*args):
        wanted = wanted_of(args)
        loss = loss_of(function(*args))
        first = ndl.grad(loss, wanted, create_graph=True, allow_unused=True)
        total = sum(
            (ndl.sin(g) * g + g * x).sum()
            for g, x in zip(first, wanted, strict=True)
            if g is not None
        )
        return _filled(ndl.grad(total, wanted, allow_unused=True), wanted)

    return second


def check_all(function, *args, order=2, tolerance=1e-12):
    """Check values, gradients, and gradients of gradients."""
    check(function, *args, tolerance=tolerance)
    if order >= 1:
        check(gradients(function), *args, tolerance=tolerance)
    if order >= 2:
        check(second_gradients(function), *args, tolerance=tolerance * 100)


def normal(*shape, seed=0, grad=True):
    """Return normal float64 numbers, the same at each call."""
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return ndl.Tensor(values, requires_grad=grad)
