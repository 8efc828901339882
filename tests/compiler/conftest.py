"""Every pass is verified in these tests."""

import pytest


@pytest.fixture(autouse=True)
def verify_each_pass(monkeypatch):
    monkeypatch.setenv("NEEDLE_VERIFY", "1")
