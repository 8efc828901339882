"""The machine's measured ceilings, to hold every figure against: matrix GFLOP/s, copy GB/s."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def _median(function: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Return GB/s of copying 256 MB, bytes read plus bytes written."""
    source = np.ones(32 * 1024 * 1024, dtype=np.float64)
    target = np.empty_like(source)
    np.copyto(target, source)
    return 2 * source.nbytes / _median(lambda: np.copyto(target, source), 7) / 1e9


def matrix_rate(threads: int) -> float:
    """Return GFLOP/s of the best float32 matrix product at hand (PyTorch's MKL), 2048 cubed."""
    import torch

    torch.set_num_threads(threads)
    n = 2048
    x, y = torch.randn(n, n), torch.randn(n, n)
    x @ y
    return float(2 * n**3 / _median(lambda: x @ y, 9) / 1e9)


def processor() -> str:
    """Return the processor's name and what of its vector units matters here."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((ln.split(":")[1].strip() for ln in text.splitlines() if "model name" in ln), "?")
    flags = next((ln for ln in text.splitlines() if ln.startswith("flags")), "")
    units = [
        u for u, f in (("AVX-512", "avx512f"), ("AMX", "amx_tile"), ("AVX2", "avx2")) if f in flags
    ]
    return f"{name} ({', '.join(units)})" if units else name
