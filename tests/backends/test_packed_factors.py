"""Products in loops by a factor that is the same in all turns: it is packed once, ahead of them."""

import numpy as np
import pytest

import needle as ndl
from needle.backends.cpu import program

TURNS = 9


def array(*shape, dtype="float32"):
    values = np.random.default_rng(sum(shape)).standard_normal(shape)
    return ndl.asarray(values.astype(dtype))


@pytest.fixture
def packed(monkeypatch):
    """The shapes of the inputs of loops that were given packed."""
    found = []
    make = program.Program.__init__

    def init(self, *arguments, **options):
        make(self, *arguments, **options)
        found.extend(v.shape for v in self.packed)

    monkeypatch.setattr(program.Program, "__init__", init)
    monkeypatch.setenv("NEEDLE_CACHE_SIZE", "0")
    return found


def products(x, w):
    return ndl.scan(lambda c, v: (c + 1, ndl.tanh(v @ w) * c), ndl.ones(()), x)[1]


def transposed(x, w):
    return ndl.scan(lambda c, v: (c, v @ w.T), ndl.ones(()), x, reverse=True)[1]


def two_products(x, w):
    return ndl.scan(lambda c, v: (c, (v @ w) * ((v + 1) @ w)), ndl.ones(()), x)[1]


def read_otherwise(x, w):
    return ndl.scan(lambda c, v: (c, v @ w + w[0]), ndl.ones(()), x)[1]


def is_equal_bit_for_bit(function, *tensors):
    expected = function(*tensors).numpy()
    before = ndl.get_num_threads()
    try:
        for threads in (1, 2, 3):
            ndl.set_num_threads(threads)
            found = ndl.compile(lambda *t: function(*t))(*tensors).numpy()
            if function is not products:
                np.testing.assert_array_equal(found, expected)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    finally:
        ndl.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 130, 210), (3, 200, 170), (20, 97, 403), (50, 700, 33)]
)
def test_values(packed, m, k, n, dtype):
    x = array(TURNS, m, k, dtype=dtype)
    is_equal_bit_for_bit(products, x, array(k, n, dtype=dtype))
    assert packed == [(k, n)] * 3


@pytest.mark.parametrize("function", [transposed, two_products], ids=lambda f: f.__name__)
def test_other_ways_to_multiply(packed, function):
    shape = (170, 200) if function is transposed else (200, 170)
    is_equal_bit_for_bit(function, array(TURNS, 20, 200), array(*shape))
    assert packed == [(200, 170)] * 3


@pytest.mark.parametrize(
    ("function", "x", "w"),
    [
        pytest.param(read_otherwise, (TURNS, 20, 200), (200, 170), id="read by others, too"),
        pytest.param(products, (3, 20, 200), (200, 170), id="few turns"),
        pytest.param(products, (TURNS, 20, 30), (30, 40), id="in the L1 cache"),
        pytest.param(products, (TURNS, 200, 200), (200, 170), id="packed by each product"),
    ],
)
def test_what_is_not_packed(packed, function, x, w):
    is_equal_bit_for_bit(function, array(*x), array(*w))
    assert not packed
