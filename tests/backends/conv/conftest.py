"""Fixtures of the tests of generated convolutions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conv_kernels import TARGETS, Compiled

from needle.backends.cpu.conv.spec import ConvSpec


@pytest.fixture(params=TARGETS)
def compiled(request: pytest.FixtureRequest) -> Callable[..., Compiled]:
    """Compiles a specification, for this machine and for narrower vectors."""
    target = TARGETS[request.param]

    def make(spec: ConvSpec, threads: int = 1) -> Compiled:
        return Compiled(spec, threads, target)

    return make
