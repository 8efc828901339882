"""How many threads NumPy's BLAS takes for a matrix product.

For small products OpenBLAS' threads cost more than they bring: in a training step of an MLP
784-128-64-10 with batch 32, two threads instead of one made the whole step 1.5 times slower (1,040
instead of 680 µs on two free cores, and many times slower with another program on one of them).
Where the BLAS is another one, or its library is not found, it is left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

R = TypeVar("R")

#: Products of fewer arithmetic operations run on one thread.
SMALL = 50_000_000


class _Threads(NamedTuple):
    """The functions of the loaded BLAS library."""

    get: Callable[[], int]
    set: Callable[[int], Any]


@functools.cache
def _threads() -> _Threads | None:
    """Find the OpenBLAS that NumPy's wheel brings along; None if there is none."""
    import ctypes

    root = Path(np.__file__).parent
    for folder in (root.parent / "numpy.libs", root / ".dylibs", root / ".libs"):
        for path in sorted(folder.glob("*openblas*")):
            try:
                library = ctypes.CDLL(str(path))
            except OSError:
                continue
            for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_"):
                if hasattr(library, name.format("get")):
                    return _Threads(
                        getattr(library, name.format("get")), getattr(library, name.format("set"))
                    )
    return None


def run_product(flops: int, function: Callable[..., R], *arguments: Any) -> R:
    """Return ``function(*arguments)``, on one BLAS thread if its products are small.

    Args:
        flops: arithmetic operations of each product.
        function: what multiplies.
        arguments: its arguments.
    """
    threads = _threads() if flops < SMALL else None
    count = threads.get() if threads is not None else 1
    if threads is None or count == 1:
        return function(*arguments)
    threads.set(1)
    try:
        return function(*arguments)
    finally:
        threads.set(count)
