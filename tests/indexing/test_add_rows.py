"""Adding rows at places: the gradient of an embedding, exact and the same every time."""

import numpy as np
import pytest

import needle as ndl
from needle.ops.places import add_rows


@pytest.mark.parametrize("width", [1, 2, 17])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("count", [1, 3, 50, 2000])
def test_is_add_at(width, dtype, count):
    rng = np.random.default_rng([width, count])
    for n in (0, 1, 9, 500):
        places = rng.integers(0, count, n)
        rows = rng.integers(-9, 10, (n, width)).astype(dtype)  # small integers: sums are exact
        expected = np.zeros((count, width), dtype)
        np.add.at(expected, places, rows)
        result = add_rows(count, places, rows)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


def test_a_row_does_not_depend_on_what_is_added_elsewhere():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 5)).astype("float32")
    places = rng.integers(0, 12, 300)
    together = add_rows(12, places, rows)
    for place in range(12):
        mine = places == place
        alone = add_rows(12, places[mine], rows[mine])
        np.testing.assert_array_equal(together[place], alone[place])
    np.testing.assert_array_equal(together, add_rows(12, places, rows))


def test_sixteen_bit_floats_are_added_in_float32():
    x = ndl.Tensor(np.ones((2, 3)), dtype="float16")
    x[np.zeros(5000, np.int64)].backward()
    assert x.grad.dtype == ndl.float16
    assert x.grad.tolist() == [[5000] * 3, [0] * 3]  # float16 stops counting at 2048


def test_bools_do_not_add():
    with pytest.raises(ndl.errors.DTypeError, match="bools do not add"):
        ndl.untake_at(ndl.asarray([True]), [[0]], (2,), (0,))
