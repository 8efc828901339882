"""What these tests check is the front: both sides run the references, whose results are exact."""

from __future__ import annotations

import pytest

from needle.compiled import executable
from needle.ops.record import REGISTRY, Op
from needle.optim import foreach


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable, "BACKENDS", ("interpret", "cpu"))
    monkeypatch.setattr(foreach, "COMPILED_FROM", 1 << 62)
    for op in REGISTRY.values():
        if isinstance(op, Op) and op.kernel is not None:
            monkeypatch.setattr(op, "kernel", None)
