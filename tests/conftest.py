"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, which are too large to be part of the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NEEDLE_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set NEEDLE_TEST_DATA to its place)")
    return folder


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch, on one thread. Without it tests are skipped, but in CI, where it must be."""
    if os.environ.get("CI"):
        import torch
    else:
        torch = pytest.importorskip("torch", reason="PyTorch, to compare with, is not installed")
    torch.set_num_threads(1)
    return torch
