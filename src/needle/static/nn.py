"""`needle.nn.functional` over symbols, and TensorFlow 1's names for what it calls otherwise."""

from __future__ import annotations

import functools
from typing import Any

from needle.nn import functional as F
from needle.static.declare import declared
from needle.static.names import NN_NAMES


def __getattr__(name: str) -> Any:
    return _found(name)


@functools.cache
def _found(name: str) -> Any:
    function = NN_NAMES.get(name) or (None if name.startswith("_") else getattr(F, name, None))
    if not callable(function):
        raise AttributeError(f"module 'needle.static.nn' has no attribute {name!r}")
    return declared(function)


def __dir__() -> list[str]:
    return sorted({*NN_NAMES, *(n for n in dir(F) if not n.startswith("_"))})
