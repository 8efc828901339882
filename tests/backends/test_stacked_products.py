"""Products of many matrices with one: compiled, they are one product of more rows."""

import numpy as np
import pytest

import needle as ndl


def array(shape, dtype):
    values = np.random.default_rng(sum(shape)).standard_normal(shape)
    return ndl.asarray(values.astype("float32")).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    ("left", "right", "axes"),
    [
        ((3, 5, 7), (7, 4), None),
        ((35, 20, 16), (16, 70), None),
        ((2, 3, 4, 5), (5, 6), None),
        ((2, 1, 4, 5), (5, 1), None),
        ((4, 3, 1), (1, 33), None),
        ((3, 5, 7), (7, 4), (1, 0, 2)),  # whose rows are not equally far apart
        ((5, 3, 7), (5, 4), (1, 2, 0)),
        ((2, 0, 7), (7, 4), None),
    ],
)
def test_bits_are_those_of_eager_products(left, right, axes, dtype):
    def program(x, w, b):
        y = (x if axes is None else x.permute_dims(axes)) @ w
        return y, ndl.relu(y + b)

    tensors = [array(left, dtype), array(right, dtype), array(right[1:], dtype)]
    expected = program(*tensors)
    before = ndl.get_num_threads()
    try:
        for threads in (1, 2, 4):
            ndl.set_num_threads(threads)
            for a, b in zip(ndl.compile(program)(*tensors), expected, strict=True):
                np.testing.assert_array_equal(
                    a.astype("float64").numpy(), b.astype("float64").numpy()
                )
    finally:
        ndl.set_num_threads(before)
