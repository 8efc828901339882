"""Large parameters are updated in blocks: the bits are those of one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import optim
from needle.optim import foreach


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (optim.AdamW, {"lr": 0.01}),
        (optim.RMSprop, {"lr": 0.01, "momentum": 0.5}),
        (optim.Adagrad, {"lr": 0.01}),
    ],
)
@pytest.mark.parametrize("extra", [0, 1, 37])
def test_blocks_do_not_change_a_bit(
    make: Any, options: dict[str, Any], extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(block: int) -> np.ndarray:
        monkeypatch.setattr(foreach, "BLOCK", block)
        rng = np.random.default_rng(0)
        w = ndl.Tensor(rng.standard_normal((300 + extra, 7), dtype=np.float32))
        optimizer = make([w], **options)
        for _ in range(3):
            w.grad = ndl.asarray(rng.standard_normal(w.shape, dtype=np.float32))
            optimizer.step()
        return w.detach().numpy().copy()

    np.testing.assert_array_equal(train(256), train(1 << 30))
