"""The search: candidates of a kernel take turns, and the fastest has to beat the model's choice.

Before each turn, caches get as they are in the program. Where it is large, they hold something else
(`Alone.sweep`), so that weights come from further away, and so does what the kernel before has
written. Where it is small, each core has written its part of what the kernel reads
(`Alone.hand_over`). Kernels that run again and again on what they have just read would be another
contest: in a small network's step, what won that was no faster.

What counts is the least of several times, because other programs only ever make a kernel slower.
The fastest of many candidates may have been lucky, so it is measured again, beside the model's
choice alone, twice; it is taken if it is faster both times by more than noise explains.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from needle.backends.cpu.target import Target
from needle.backends.cpu.tuning.alone import Alone
from needle.backends.cpu.tuning.candidates import AnyPlan, Spec

#: By what share of its time a kernel has to be faster than that of the model's choice.
MARGIN = 0.03
#: How many turns there are: at least, and at most; more than the least for so many seconds.
LEAST_TURNS, MOST_TURNS, SECONDS = 4, 100, 0.25
#: After two turns, candidates stay that take at most so many times as long as the fastest.
CLOSE = 1.12


class Found(NamedTuple):
    """What a search has found.

    Attributes:
        choice: number of the candidate to take; 0 is the model's choice.
        tried: how many candidates there were.
        model: seconds that the model's choice took, at least; 0 if there was no choice.
        best: seconds that the candidate to take took.
    """

    choice: int
    tried: int
    model: float
    best: float

    @property
    def gain(self) -> float:
        """How many times as fast the kernel is as by the model's choice."""
        return self.model / self.best if self.best else 1.0


def search(
    spec: Spec,
    plans: Sequence[AnyPlan],
    target: Target,
    threads: int,
    *,
    is_cold: bool,
    deadline: float,
) -> Found | None:
    """Return which of some plans to take; None if time is up before that is known.

    Args:
        spec: what is computed.
        plans: the candidates, the model's choice first.
        target: the processor, which is this machine's.
        threads: for which they are planned.
        is_cold: whether caches hold something else when a kernel begins.
        deadline: when time is up, as `time.perf_counter` tells it.
    """
    if len(plans) == 1:
        return Found(0, 1, 0.0, 0.0)
    if time.perf_counter() >= deadline:
        return None
    contest = _Contest(Alone(spec, plans, target, threads), len(plans), is_cold, deadline)
    rival = contest.fastest()
    if contest.is_late():
        return None
    if rival == 0:
        return Found(0, len(plans), contest.least[0], contest.least[0])
    times = [contest.least_of_two(rival) for _ in range(2)]
    if contest.is_late():
        return None
    wins = all(other < (1 - MARGIN) * model for model, other in times)
    model, best = (min(pair) for pair in zip(*times, strict=True))
    return Found(rival, len(plans), model, best) if wins else Found(0, len(plans), model, model)


class _Contest:
    """Kernels that take turns.

    Attributes:
        least: seconds of each, at least.
    """

    def __init__(self, alone: Alone, count: int, is_cold: bool, deadline: float) -> None:
        self._alone = alone
        self._is_cold = is_cold
        self._deadline = deadline
        self.least = [float("inf")] * count
        for i in range(count):  # pages are made, and code is brought in
            alone.run(i)

    def is_late(self) -> bool:
        """Whether time is up."""
        return time.perf_counter() > self._deadline

    def fastest(self) -> int:
        """Return the fastest of all; the model's choice if another is not worth a closer look."""
        racing = list(range(len(self.least)))
        start = time.perf_counter()
        for turn in range(MOST_TURNS):
            for i in racing if turn % 2 else reversed(racing):
                self.least[i] = min(self.least[i], self._time(i))
                if self.is_late():
                    return 0
            if turn:
                most = CLOSE * min(self.least)
                racing = [i for i in racing if i == 0 or self.least[i] <= most]
            if turn + 1 >= LEAST_TURNS and time.perf_counter() - start > SECONDS:
                break
        best = min(racing, key=self.least.__getitem__)
        return best if self.least[best] < (1 - MARGIN / 2) * self.least[0] else 0

    def least_of_two(self, rival: int) -> tuple[float, float]:
        """Return the least times of the model's choice and of another one, measured anew."""
        least = [float("inf")] * 2
        start = time.perf_counter()
        for turn in range(MOST_TURNS):
            for j in (0, 1) if turn % 2 else (1, 0):
                least[j] = min(least[j], self._time(rival if j else 0))
            if turn + 1 >= LEAST_TURNS and time.perf_counter() - start > SECONDS:
                break
        return least[0], least[1]

    def _time(self, number: int) -> float:
        if self._is_cold:
            self._alone.sweep()
        else:
            self._alone.hand_over()
        return self._alone.run(number)
