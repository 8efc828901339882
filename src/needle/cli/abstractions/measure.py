"""Times and memory of the styles, side by side: in turns, in one process."""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

import numpy as np

from needle.cli.abstractions.styles import NETWORKS, STYLES, Batch, Network, Trained, losses

#: Steps whose losses are compared.
COMPARED = 20
#: Seconds of one turn: as long as timers need to be exact, so that all see the same machine.
TURN = 0.02

Progress = Callable[[str], None]


@dataclass
class Figures:
    """What was measured of a network in one style.

    Attributes:
        step: seconds, the median of all turns.
        memory: bytes of all arrays at the fullest moment of a step.
        losses: of the first steps, from the same weights on the same batches.
    """

    step: float
    memory: int
    losses: list[float]


@dataclass
class Comparison:
    """What was measured of all networks.

    Attributes:
        machine: processor, threads and versions.
        networks: what each network is, by its key.
        figures: by network and style.
    """

    machine: dict[str, Any]
    networks: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, Figures]] = field(default_factory=dict)

    def ratio(self, network: str, style: str) -> float:
        """Return how many times as long as the compiled imperative step a step takes."""
        found = self.figures[network]
        return found[style].step / found["compiled"].step

    def agreement(self, network: str, style: str) -> str:
        """Return how the losses of a style stand to those of the compiled imperative step."""
        expected = np.array(self.figures[network]["compiled"].losses)
        actual = np.array(self.figures[network][style].losses)
        if np.array_equal(expected, actual):
            return "the same bits"
        return f"within {np.abs(actual / expected - 1).max():.0e}"

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Comparison:
        """Return what `as_json` gave the values of."""
        figures = {
            network: {style: Figures(**found) for style, found in styles.items()}
            for network, styles in values["figures"].items()
        }
        return cls(values["machine"], values["networks"], figures)


def compare(
    names: Sequence[str], seconds: float = 2.0, progress: Progress = lambda what: None
) -> Comparison:
    """Return times, memory and losses of networks in all styles.

    Args:
        names: of the networks, from `NETWORKS`.
        seconds: how long each style of each network is timed.
        progress: is told what comes next.
    """
    found = Comparison(_machine())
    batches = [Batch(i) for i in range(COMPARED)]
    for name in names:
        network = NETWORKS[name]
        found.networks[name] = network.name
        curves, memory = {}, {}
        for style in STYLES:
            progress(f"{network.name}: memory of {style}")
            memory[style] = peak_memory(network, style)
        made = {}
        for style, make in STYLES.items():
            progress(f"{network.name}: losses of {style}")
            made[style] = make(network)
            curves[style] = losses(made[style], batches)
        progress(f"{network.name}: timing, in turns")
        times = _take_turns({style: one.step for style, one in made.items()}, seconds)
        found.figures[name] = {
            style: Figures(statistics.median(times[style]), memory[style], curves[style])
            for style in STYLES
        }
    return found


def peak_memory(network: Network, style: str) -> int:
    """Return the bytes of all arrays that a style holds at the fullest moment of a step.

    These are what its arrays take before a step, and how much more memory there is in between.
    """
    batch = Batch()

    def warm() -> Trained:
        made = STYLES[style](network)
        made.give(batch)
        for _ in range(2):
            made.step()
        return made

    warm()  # what is made once for the whole process is nobody's
    gc.collect()
    tracemalloc.start()
    try:
        made = warm()
        gc.collect()
        arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        snapshot = tracemalloc.take_snapshot().filter_traces([arrays])
        held = sum(trace.size for trace in snapshot.traces)
        del snapshot
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        made.step()
        return int(held + tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


def _take_turns(steps: dict[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """Return the seconds per step of each style, in many short turns."""
    times: dict[str, list[float]] = {style: [] for style in steps}
    calls = {}
    for style, step in steps.items():
        start = time.perf_counter()
        step()
        calls[style] = max(1, round(TURN / max(time.perf_counter() - start, 1e-7)))
    end = time.perf_counter() + seconds * len(steps)
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for style, step in steps.items():
            step()  # what others left in the caches is gone
            start = time.perf_counter()
            for _ in range(calls[style]):
                step()
            times[style].append((time.perf_counter() - start) / calls[style])
    return times


def _machine() -> dict[str, Any]:
    import needle as ndl
    from needle.train import environment

    return {
        "date": date.today().isoformat(),
        "processor": environment.cpu_name(),
        "threads": ndl.get_num_threads(),
        **environment.versions(),
    }
