"""Frameworks taking turns: interleaved medians, import times, peak memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
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
        limit: the promise: needle's value at most this (in the unit).
        ratio: the promise: the best peer's value is at least this many times needle's.
        moved: bytes that must be read and written, each once, where that bounds the time.
        is_main: whether the README shows it, too.
    """

    name: str
    unit: str
    values: dict[str, float] = field(default_factory=dict)
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    target: str = ""
    limit: float | None = None
    ratio: float | None = None
    moved: float | None = None
    is_main: bool = False

    @property
    def own(self) -> float:
        """Needle's value: compiled, where that was measured."""
        return self.values.get("needle compiled", self.values.get("needle", float("nan")))

    @property
    def best(self) -> float:
        """The best peer's value."""
        peers = [v for name, v in self.values.items() if not name.startswith("needle")]
        return min(peers, default=float("nan"))

    @property
    def speedup(self) -> float:
        """How many times needle's value the best peer's is: above 1 needle is better."""
        return self.best / self.own

    @property
    def is_met(self) -> bool | None:
        """Whether the promise holds; None where there is none."""
        if self.limit is not None:
            return self.own <= self.limit
        if self.ratio is not None:
            return self.speedup >= self.ratio
        return None

    @property
    def byte_rate(self) -> float | None:
        """Bytes moved per second; None where they do not bound the time (given in µs)."""
        return None if self.moved is None else self.moved / (self.own * 1e-6)


class ForeignLoad:
    """How much other programs use the processors while we measure (on Linux; else nothing)."""

    def __init__(self, pids: list[int]) -> None:
        self.pids = [*pids, os.getpid()]
        self.start = self._reading()

    def _reading(self) -> tuple[float, float]:
        """Return the seconds since some start, and the processor seconds of all others."""
        tick = os.sysconf("SC_CLK_TCK")
        try:
            fields = [int(n) for n in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
            ours = 0
            for pid in self.pids:
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ours += int(stat[11]) + int(stat[12])
        except OSError:
            return time.perf_counter(), 0.0
        # All but idle, waiting for a disk, and programs of low priority, which give way to us.
        busy = sum(fields) - fields[1] - fields[3] - fields[4]
        return time.perf_counter(), (busy - ours) / tick

    def cores(self) -> float:
        """Return how many processors the others kept busy since the start, on average."""
        now = self._reading()
        return (now[1] - self.start[1]) / max(now[0] - self.start[0], 1e-3)


def wait_for_quiet(pids: list[int], limit: float) -> bool:
    """Wait until others leave the processors alone; False if ``limit`` seconds were not enough."""
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        load = ForeignLoad(pids)
        time.sleep(0.5)
        if load.cores() < 0.1:
            return True
    return False


def take_turns(
    workers: list[Worker], program: str, args: dict[str, Any], seconds: float
) -> dict[str, list[float]]:
    """Return the seconds per call of each framework, measured in turns of a few milliseconds.

    Measures again, up to three times, when other programs used the processors meanwhile.
    """
    workers = [w for w in workers if w.ask(do="prepare", program=program, args=args)]
    pids = [w.process.pid for w in workers]
    for _ in range(4):
        quiet = wait_for_quiet(pids, 30.0)
        load = ForeignLoad(pids)
        times: dict[str, list[float]] = {w.framework: [] for w in workers}
        end = time.perf_counter() + seconds
        turn = 0
        while turn < 4 or time.perf_counter() < end:
            for worker in workers if turn % 2 else reversed(workers):
                times[worker.framework] += worker.ask(do="run", seconds=0.03)
            turn += 1
        if load.cores() < 0.1:
            break
        print(f"{program}: others use the processors; measuring again", file=sys.stderr)
    else:
        print(f"{program}: not a quiet machine (quiet before: {quiet})", file=sys.stderr)
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


def tensor_peaks(program: str, args: dict[str, Any]) -> dict[str, float]:
    """Return the bytes of a step's tensors at its fullest moment: needle's plan, PyTorch's
    allocations."""
    peaks = {}
    for framework in ("needle compiled", "torch"):
        worker = Worker(framework, 1)
        worker.ask(do="prepare", program=program, args=args)
        peaks[framework] = float(worker.ask(do="tensors"))
        worker.close()
    return peaks


def training_times(rounds: int, threads: int) -> dict[str, list[float]]:
    """Return the seconds of ``needle train digits``, a process's whole life, eager and compiled
    (with the programs on disk, as from the second time on)."""
    times: dict[str, list[float]] = {"needle": [], "needle compiled": []}
    with tempfile.TemporaryDirectory() as folder:
        env = {**environment(threads), "NEEDLE_CACHE_DIR": f"{folder}/cache"}
        for turn in range(rounds + 1):
            for framework, options in (("needle", ["--eager"]), ("needle compiled", [])):
                command = [sys.executable, "-m", "needle", "train", "digits"]
                command += ["--out", f"{folder}/{turn}-{framework}", *options]
                start = time.perf_counter()
                subprocess.run(command, check=True, env=env, cwd=ROOT, capture_output=True)
                if turn:  # the first fills the cache
                    times[framework].append(time.perf_counter() - start)
    return times


def peak_memory(program: str, args: dict[str, Any], calls_seconds: float) -> dict[str, float]:
    """Return the peak resident bytes of a fresh process that runs the program."""
    peaks = {}
    for framework in ("needle", "needle compiled", "torch"):
        worker = Worker(framework, 2)
        worker.ask(do="prepare", program=program, args=args)
        worker.ask(do="run", seconds=calls_seconds)
        peaks[framework] = float(worker.ask(do="memory"))
        worker.close()
    return peaks


def compile_times(
    program: str, args: dict[str, Any], threads: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of a step's first call, in new processes: with an empty cache, and with
    what the one before has left there."""
    code = (
        "import time; from benchmarks import needle_programs as p; p.compile_programs(); "
        f"step = p.{program}(**{args!r}); import numpy, llvmlite.binding; "
        "start = time.perf_counter(); step(); print(time.perf_counter() - start)"
    )
    cold, warm = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            env = {**environment(threads), "NEEDLE_CACHE_DIR": folder}
            for times in (cold, warm, warm):
                done = subprocess.run(
                    [sys.executable, "-c", code],
                    check=True,
                    env=env,
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                )
                times.append(float(done.stdout))
    return cold, warm
