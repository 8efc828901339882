"""What these tests check is the front: they run on the interpreter, whose results are exact."""

from __future__ import annotations

import pytest

from needle.compiled import executable


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable, "BACKENDS", ("interpret", "cpu"))
