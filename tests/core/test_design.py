"""The programs of the design document, as written there."""

import numpy
import pytest

import needle as ndl


def test_imperative_program():
    v1 = ndl.Tensor([1])
    v2 = ndl.exp(v1)
    v3 = v2 + 1
    v4 = v2 * v3
    if v4.numpy() > 0.5:
        v5 = v4 * 2
    else:
        v5 = v4
    v5.backward()
    # d/dx 2 eˣ (eˣ + 1)
    e = numpy.exp(1.0)
    assert isinstance(v1.grad, ndl.Tensor)
    assert v1.grad.dtype == ndl.float32
    assert v1.grad.numpy() == pytest.approx([2 * (2 * e * e + e)])


def test_module_program():
    h1 = ndl.Tensor(numpy.linspace(-1, 1, 2 * 28 * 28, dtype=numpy.float32).reshape(2, 28 * 28))

    import needle.nn as nn

    linear_block = nn.Sequential(nn.Linear(28 * 28, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    h2 = linear_block(h1)

    assert h2.shape == (2, 64)
    first, second = linear_block[0], linear_block[2]
    hidden = numpy.maximum(h1.numpy() @ first.weight.numpy() + first.bias.numpy(), 0)
    expected = numpy.maximum(hidden @ second.weight.numpy() + second.bias.numpy(), 0)
    numpy.testing.assert_allclose(h2.numpy(), expected, rtol=1e-4, atol=1e-6)
    h2.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in linear_block.parameters())
