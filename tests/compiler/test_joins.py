"""Joins in compiled programs: each part is written to its place by what computes it."""

import numpy as np
import pytest

import needle as ndl


def array(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32")


def reads_its_own(x):
    joined = ndl.concat([x, x + 1, x * x], 0)
    return joined.sum(), ndl.concat([joined, joined.sum(0, keepdims=True), x], 0)


def nested(x, y):
    first = ndl.concat([x, y, x + y], 0)
    second = ndl.concat([y, x, x * y], 0)
    return ndl.concat([first, second, first * 2], 1)


def of_a_loop(x):
    _, totals = ndl.scan(lambda c, v: (c + v, c * v), ndl.zeros(3), x)
    return ndl.concat([totals, x, x + 1], 0)


CASES = {
    "inputs": (lambda *x: ndl.concat(x, 0), [(3, 5), (2, 5), (1, 5)]),
    "columns, one of them empty": (lambda *x: ndl.concat(x, 1), [(3, 5), (3, 2), (3, 0), (3, 17)]),
    "all empty": (lambda *x: ndl.concat(x, 1) + 1, [(0, 5), (0, 2), (0, 3)]),
    "one part twice": (lambda x: ndl.concat([x, x * 2, x], 1), [(3, 5)]),
    "products": (
        lambda x, w, v: ndl.concat([x @ w, x @ v, ndl.exp(x @ w)], 1),
        [(7, 4), (4, 33), (4, 3)],
    ),
    "gates": (
        lambda x, y: ndl.stack([ndl.exp(x + y), ndl.tanh(x + y) * y, x - y, x * (x + y)], 1),
        [(20, 200), (20, 200)],
    ),
    "reductions": (
        lambda x: ndl.concat([x.sum(1), x.max(1), (x - x.mean(1, keepdims=True)).sum(1)], 0),
        [(9, 40)],
    ),
    "softmax": (
        lambda x: ndl.concat([ndl.softmax(x, -1), x, ndl.softmax(x * 2, -1)], 1),
        [(9, 40)],
    ),
    "read while others are written": (reads_its_own, [(4, 6)]),
    "nested": (nested, [(4, 6), (4, 6)]),
    "factor of a product": (
        lambda x, y, w: ndl.concat([x, y, x * y], 1) @ w,
        [(5, 4), (5, 4), (12, 7)],
    ),
    "as large as what its parts are made of": (
        lambda x, w, v: ndl.concat([(x @ w)[2:] * 2, (x @ w)[:2] * 3], 0) @ v,
        [(4, 5), (5, 4), (4, 6)],
    ),
    "two parts": (lambda x, y, w: ndl.concat([x + 1, y], 1) @ w, [(5, 4), (5, 4), (8, 7)]),
    "broadcasts": (
        lambda x: ndl.concat([ndl.broadcast_to(x, (3, 4)), ndl.zeros((2, 4)), x + x[:, None]], 0),
        [(4,)],
    ),
    "transposed": (lambda x, y: ndl.concat([x.T, y, x.T + 1], 0), [(4, 6), (6, 4)]),
    "more than a kernel takes": (
        lambda x: ndl.stack([x[i] * i for i in range(50)], 1),
        [(50, 3, 5)],
    ),
    "numbers": (lambda x: ndl.stack([x.sum(), x.max(), x.min(), x[0, 0]]), [(50, 3)]),
    "bools": (lambda x: ndl.concat([x > 0, x < 0, x == 0], 0), [(5, 3)]),
    "of a loop": (of_a_loop, [(5, 3)]),
}


@pytest.mark.parametrize("case", CASES)
def test_joins_are_those_of_eager_execution(case):
    function, shapes = CASES[case]
    tensors = [ndl.asarray(array(*shape)) for shape in shapes]
    expected = listed(function(*tensors))
    results = []
    for threads in (1, 2, 4):
        with_threads(threads)
        results.append([r.numpy() for r in listed(ndl.compile(lambda *x: function(*x))(*tensors))])
    for first, *others, right in zip(*results, expected, strict=True):
        np.testing.assert_allclose(first, right.numpy(), rtol=2e-5, atol=1e-5)
        for other in others:
            np.testing.assert_array_equal(first, other)


def listed(results):
    return list(results) if isinstance(results, tuple) else [results]


def with_threads(count):
    ndl.set_num_threads(count)


@pytest.fixture(autouse=True)
def _restore_threads():
    before = ndl.get_num_threads()
    yield
    ndl.set_num_threads(before)


def kernels(function, *shapes):
    tensors = [ndl.asarray(array(*shape)) for shape in shapes]
    return ndl.compile(function).explain(*tensors).groups


def test_parts_made_of_one_value_share_a_kernel():
    assert len(kernels(*_case("gates"))) == 1


def test_what_is_only_copied_shares_a_kernel():
    shapes = [(3, 5)] * 30
    assert len(kernels(lambda *x: ndl.concat(x, 1), *shapes)) == 1


def test_a_product_is_written_to_its_part():
    assert len(kernels(lambda x, w, v: ndl.concat([x @ w, x @ v], 1), (7, 4), (4, 33), (4, 3))) == 2


def _case(name):
    function, shapes = CASES[name]
    return (function, *shapes)
