"""``python -m benchmarks.guards``: what guards cost, beside the same functions without branches.

Both functions compute the same, the condition included. What a guard adds is that a call runs two
programs instead of one, and that what the first has computed goes through memory to the second.
The functions take turns; the fastest of many rounds counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import needle as ndl
from needle import nn

ROUNDS, SECONDS = 40, 0.01


def small(size: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return calls of an elementwise function, without and with a guard."""
    x = ndl.asarray(np.random.default_rng(0).random(size, np.float32))

    @ndl.compile
    def plain(x: Any) -> Any:
        return ndl.exp(x * 2), x.sum() > 0

    @ndl.compile(branches="specialise")
    def guarded(x: Any) -> Any:
        if x.sum() > 0:
            return ndl.exp(x * 2)
        return x

    return lambda: plain(x), lambda: guarded(x)


def several(count: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return calls of a function that asks so many times."""
    x = ndl.asarray(np.random.default_rng(0).random(100, np.float32))

    @ndl.compile
    def plain(x: Any) -> Any:
        asked = [(x * (i + 1)).sum() > 0 for i in range(count)]
        return x + 1, asked

    @ndl.compile(branches="specialise")
    def guarded(x: Any) -> Any:
        for i in range(count):
            if not (x * (i + 1)).sum() > 0:
                return x
        return x + 1

    return lambda: plain(x), lambda: guarded(x)


def training(batch: int, width: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return training steps of an MLP: one clips by `where`, one in a branch."""
    rng = np.random.default_rng(0)
    x = ndl.asarray(rng.standard_normal((batch, 784), np.float32))
    labels = ndl.asarray(rng.integers(0, 10, batch))

    def step(branches: str | None) -> Callable[[], Any]:
        ndl.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        optimizer = ndl.optim.SGD(model.parameters(), lr=1e-3)

        def run(x: Any, labels: Any) -> Any:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            norm = ndl.sqrt(sum((p.grad * p.grad).sum() for p in model.parameters()))
            if branches is None:
                scale = ndl.where(norm > 100, 100 / norm, 1.0)
                for p in model.parameters():
                    p.grad = p.grad * scale
            elif norm > 100:
                for p in model.parameters():
                    p.grad = p.grad * (100 / norm)
            optimizer.step()
            return loss

        compiled = ndl.compile(run, branches=branches)
        return lambda: compiled(x, labels)

    return step(None), step("specialise")


def fastest(functions: list[Callable[[], Any]]) -> list[float]:
    """Return the seconds of a call of each function, in its fastest round."""
    counts = []
    for function in functions:
        function()
        start = time.perf_counter()
        for _ in range(10):
            function()
        counts.append(max(1, int(SECONDS / ((time.perf_counter() - start) / 10))))
    best = [float("inf")] * len(functions)
    for _ in range(ROUNDS):
        for i, (function, count) in enumerate(zip(functions, counts, strict=True)):
            start = time.perf_counter()
            for _ in range(count):
                function()
            best[i] = min(best[i], (time.perf_counter() - start) / count)
    return best


def main() -> None:
    """Measure, and print a table."""
    table = Table("function", "one program (µs)", "guarded (µs)", "ratio")
    cases = {
        "exp of 100 numbers, 1 guard": small(100),
        "exp of 100,000 numbers, 1 guard": small(100_000),
        "100 numbers, 4 guards": several(4),
        "MLP 784-128-64-10, batch 32, norm of the gradients": training(32, 128),
        "MLP 784-1024-64-10, batch 128, norm of the gradients": training(128, 1024),
    }
    for name, pair in cases.items():
        plain, guarded = fastest(list(pair))
        table.add_row(name, f"{plain * 1e6:.1f}", f"{guarded * 1e6:.1f}", f"{guarded / plain:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
