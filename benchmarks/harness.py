"""Frameworks taking turns: interleaved medians, import times, peak memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """A framework's process; see `benchmarks.worker`."""

    def __init__(self, framework: str, threads: int) -> None:
        self.framework = framework
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", framework, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(threads),
        )

    def ask(self, **request: Any) -> Any:
        """Send a request and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.framework} process ended while asked for {request}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def environment(threads: int) -> dict[str, str]:
    """Return the environment of the workers: the number of threads for every library."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    # As users have it: compiled modules are cached.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, **dict.fromkeys(names, str(threads))}


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: what is measured.
        unit: of the values.
        values: median by framework; smaller is better.
        spread: quartiles by framework.
        target: what the project promises, in words.
        limit: the promise: needle's value at most this (in the unit), or at most ``ratio`` ×
            PyTorch's.
        ratio: see ``limit``.
    """

    name: str
    unit: str
    values: dict[str, float] = field(default_factory=dict)
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    target: str = ""
    limit: float | None = None
    ratio: float | None = None

    @property
    def speedup(self) -> float:
        """How many times PyTorch's value is needle's: above 1 needle is better."""
        return self.values["torch"] / self.values["needle"]

    @property
    def is_met(self) -> bool | None:
        """Whether the promise holds; None where there is none."""
        if self.limit is not None:
            return self.values["needle"] <= self.limit
        if self.ratio is not None:
            return self.values["needle"] <= self.ratio * self.values["torch"]
        return None


def take_turns(
    workers: list[Worker], program: str, args: dict[str, Any], seconds: float
) -> dict[str, list[float]]:
    """Return the seconds per call of each framework, measured in turns of a few milliseconds."""
    for worker in workers:
        worker.ask(do="prepare", program=program, args=args)
    times: dict[str, list[float]] = {w.framework: [] for w in workers}
    end = time.perf_counter() + seconds
    turn = 0
    while turn < 4 or time.perf_counter() < end:
        for worker in workers if turn % 2 else reversed(workers):
            times[worker.framework] += worker.ask(do="run", seconds=0.03)
        turn += 1
    return times


def summarise(row: Row, samples: dict[str, list[float]], scale: float) -> Row:
    """Put medians and quartiles of ``samples``, times ``scale``, into ``row``."""
    for framework, values in samples.items():
        scaled = sorted(v * scale for v in values)
        row.values[framework] = statistics.median(scaled)
        row.spread[framework] = (scaled[len(scaled) // 4], scaled[3 * len(scaled) // 4])
    return row


def import_times(modules: dict[str, str], rounds: int, threads: int) -> dict[str, list[float]]:
    """Return the seconds that a new interpreter takes to import each module, beyond an empty
    one's."""

    def spawn(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment(threads))
        return time.perf_counter() - start

    times: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(rounds):
        empty = spawn("pass")
        for name, module in modules.items():
            times[name].append(spawn(f"import {module}") - empty)
    return times


def peak_memory(program: str, args: dict[str, Any], calls_seconds: float) -> dict[str, float]:
    """Return the peak resident bytes of a fresh process that runs the program."""
    peaks = {}
    for framework in ("needle", "torch"):
        worker = Worker(framework, 2)
        worker.ask(do="prepare", program=program, args=args)
        worker.ask(do="run", seconds=calls_seconds)
        peaks[framework] = float(worker.ask(do="memory"))
        worker.close()
    return peaks
