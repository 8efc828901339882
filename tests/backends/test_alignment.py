"""Where large arrays begin: on a cache line, whoever makes them; and what that must not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import arrays, data, nn
from needle.arrays import ALIGNMENT, LARGE_RESULT, aligned, is_own, maker

#: More than NumPy would align by chance.
TIMES = 6


def offset(x: Any) -> int:
    array = x if isinstance(x, np.ndarray) else x.numpy()
    return int(array.ctypes.data % ALIGNMENT)


@pytest.mark.parametrize("rows", [512, 513, 700])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x @ w,
        lambda x, w: ndl.log_softmax(x @ w, axis=-1),
        lambda x, w: nn.functional.layer_norm(x, (128,)),
    ],
    ids=["product", "softmax", "normalisation"],
)
@pytest.mark.parametrize("is_compiled", [True, False])
def test_results(function: Any, rows: int, is_compiled: bool) -> None:
    x, w = ndl.randn(rows, 128), ndl.randn(128, 128)
    assert x.nbytes >= LARGE_RESULT
    run = ndl.compile(function) if is_compiled else function
    results = [run(x, w) for _ in range(TIMES)]
    assert [offset(y) for y in results] == [0] * TIMES
    for y in results[1:]:
        assert not np.shares_memory(y.numpy(), results[0].numpy())
        np.testing.assert_array_equal(y.numpy(), results[0].numpy())


def test_every_output_of_a_program() -> None:
    x = ndl.randn(257, 300)
    results = ndl.compile(lambda x: (x * 2, x.sum(), x + 1))(x)
    assert [offset(results[i]) for i in (0, 2)] == [0, 0]
    np.testing.assert_array_equal(results[2].numpy(), x.numpy() + 1)


def test_batches() -> None:
    rows = [np.full(1100, i, np.float32) for i in range(64)]
    batch = data.default_collate(rows)
    assert offset(batch) == 0
    np.testing.assert_array_equal(batch.numpy(), np.stack(rows))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (7, 9), (1 << 16,)])
@pytest.mark.parametrize("dtype", [ndl.float32, ndl.bfloat16, ndl.bool, ndl.int64], ids=str)
def test_aligned(shape: tuple[int, ...], dtype: Any) -> None:
    for x in (aligned(shape, dtype), aligned(shape, dtype, np.zeros), maker(shape, dtype)()):
        assert (x.shape, x.dtype) == (shape, dtype)
        assert x.flags.carray
        x[...] = 1
    assert offset(aligned(shape, dtype)) == 0


def test_whose_memory_it_is() -> None:
    x = aligned((64, 64), ndl.float32)
    assert is_own(x)
    assert not is_own(x.reshape(-1))
    assert not is_own(x[1:])
    view = x.T
    assert not is_own(x)
    del view
    assert is_own(x)
    assert is_own(np.zeros(3))
    assert not is_own(np.zeros(3)[1:])
    last = x[-1:]
    del x
    assert not is_own(last), "it would keep all of x alive"


def test_gradients_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leaf takes over the product that is its gradient, as it does where NumPy made it."""
    made: list[int] = []

    def noted(*args: Any) -> Any:
        array = aligned(*args)
        made.append(array.ctypes.data)
        return array

    monkeypatch.setattr(arrays, "aligned", noted)
    x, w = ndl.randn(131, 277), ndl.randn(277, 273)
    w.requires_grad = True
    (x @ w).sum().backward()
    assert w.grad is not None
    assert w.grad.numpy().ctypes.data in made
    np.testing.assert_allclose(
        w.grad.numpy(), x.numpy().T @ np.ones((131, 273), np.float32), rtol=1e-4, atol=1e-4
    )
