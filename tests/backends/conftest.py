"""Fixtures for tests of the backends."""

import pytest
from pool_programs import Kernels

import needle as ndl


@pytest.fixture(scope="module")
def kernels():
    return Kernels()


@pytest.fixture
def use():
    """Set the number of threads, for one test."""
    before = ndl.get_num_threads()
    yield ndl.set_num_threads
    ndl.set_num_threads(before)
