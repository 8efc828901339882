"""Fixtures that all tests share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiler's cache, away from the user's; child processes use it, too."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["NEEDLE_CACHE_DIR"] = str(folder)
    return folder


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
    """PyTorch, on one thread. Tests that use it are marked ``peers``."""
    import torch

    torch.set_num_threads(1)
    return torch


def has_peers() -> bool:
    try:
        return importlib.util.find_spec("torch") is not None
    except ValueError:  # switched off by sys.modules["torch"] = None
        return False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the comparisons with PyTorch where it is missing; in CI that is an error."""
    peers = [item for item in items if item.get_closest_marker("peers")]
    if not peers or has_peers():
        return
    if os.environ.get("CI"):
        raise pytest.UsageError(f"{len(peers)} tests compare with PyTorch, which is not installed")
    for item in peers:
        item.add_marker(pytest.mark.skip(reason="PyTorch, to compare with, is not installed"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not has_peers():
        terminalreporter.write_line(
            "WARNING: PyTorch is not installed, so nothing was compared with it "
            "(pip install 'needle-dl[peers]')",
            red=True,
            bold=True,
        )
