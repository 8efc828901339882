"""profile: where the time goes, kernel by kernel, layer by layer and op by op."""

from __future__ import annotations

import json
import os
import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from needle.backends.cpu import stamps
from needle.backends.cpu.threads import get_num_threads
from needle.compiled import profile_table
from needle.config import modes
from needle.errors import ProfileError
from needle.ops.engine import engine
from needle.ops.record import Op
from needle.ops.samples import Array


@dataclass(frozen=True)
class Event:
    """Something that took time.

    Attributes:
        name: of the kernel, compiled function or op.
        kind: "kernel", "call" of a compiled function, "op" that ran eagerly, or "preparation" of a
            program whose kernels can be timed.
        start: in nanoseconds from the start of the profile.
        duration: in nanoseconds.
        thread: the number of the thread that called.
        function: name of the compiled function; empty for an op.
        work: of a kernel, what it does; None otherwise.
    """

    name: str
    kind: str
    start: int
    duration: int
    thread: int
    function: str = ""
    work: Any = None


@dataclass(frozen=True)
class Row:
    """All events of one name.

    Attributes:
        name: of the kernel, module path or op.
        calls: how often it ran; of a module path, the kernels that belong to it.
        seconds: how long, together.
        flops: arithmetic operations, together.
        bytes_moved: bytes read and written, together.
        function: name of the compiled function that it belongs to; empty otherwise.
        ops: what is computed.
        median: seconds of the call in the middle, which those that waited for a core, or for
            memory to be given to the process, do not change; 0 for a module path.
    """

    name: str
    calls: int
    seconds: float
    flops: float = 0.0
    bytes_moved: float = 0.0
    function: str = ""
    ops: tuple[str, ...] = ()
    median: float = 0.0

    @property
    def flop_rate(self) -> float:
        """Arithmetic operations each second, in the call in the middle."""
        return self.flops / self.calls / self.median if self.median else 0.0

    @property
    def byte_rate(self) -> float:
        """Bytes read and written each second, in the call in the middle."""
        return self.bytes_moved / self.calls / self.median if self.median else 0.0


@dataclass(eq=False)
class Profile:
    """What ran while a profile was taken; `str` of it is a report.

    Attributes:
        events: in the order in which they ended.
        nanoseconds: how long the profile was taken.
    """

    events: list[Event] = field(default_factory=list)
    nanoseconds: int = 0
    _start: int = 0

    @property
    def kernels(self) -> list[Row]:
        """For each kernel of each compiled function how long it ran, the longest first."""
        found: dict[tuple[str, int], list[Event]] = {}
        for event in self._of("kernel"):
            # Two functions, or two signatures of one, may have kernels of the same name.
            found.setdefault((event.function, id(event.work)), []).append(event)
        rows = []
        for (function, _), events in found.items():
            work, n = events[0].work, len(events)
            rows.append(
                Row(
                    events[0].name,
                    n,
                    _seconds(events),
                    n * work.flops,
                    n * work.bytes_moved,
                    function,
                    work.ops,
                    _median(events),
                )
            )
        return sorted(rows, key=lambda row: -row.seconds)

    @property
    def modules(self) -> list[Row]:
        """For each module path how long its part of the kernels ran, the longest first.

        The time of a kernel that several modules share is divided by their arithmetic.
        """
        seconds: dict[str, float] = {}
        calls: dict[str, int] = {}
        shares: dict[int, dict[str, float]] = {}
        for event in self._of("kernel"):
            if id(event.work) not in shares:
                shares[id(event.work)] = event.work.shares()
            for path, share in shares[id(event.work)].items():
                seconds[path] = seconds.get(path, 0.0) + share * event.duration * 1e-9
                calls[path] = calls.get(path, 0) + 1
        rows = [Row(path, calls[path], s) for path, s in seconds.items()]
        return sorted(rows, key=lambda row: -row.seconds)

    @property
    def ops(self) -> list[Row]:
        """For each op that ran eagerly how long it ran, the longest first."""
        return self._rows("op")

    @property
    def calls(self) -> list[Row]:
        """For each compiled function how long its calls ran, the longest first."""
        return self._rows("call")

    @cached_property
    def ceilings(self) -> Any:
        """What the machine can do at most; measured when first asked for."""
        from needle.backends.cpu.ceilings import ceilings

        return ceilings(get_num_threads())

    def _of(self, kind: str) -> Iterator[Event]:
        return (event for event in self.events if event.kind == kind)

    def _rows(self, kind: str) -> list[Row]:
        found: dict[str, list[Event]] = {}
        for event in self._of(kind):
            found.setdefault(event.name, []).append(event)
        rows = [
            Row(name, len(events), _seconds(events), median=_median(events))
            for name, events in found.items()
        ]
        return sorted(rows, key=lambda row: -row.seconds)

    def __str__(self) -> str:
        return profile_table.text(self)

    def __repr__(self) -> str:
        return f"<profile of {self.nanoseconds * 1e-6:.3g} ms: {len(self.events)} events>"

    def show(self) -> None:
        """Print the report; as tables with colours where there is a terminal."""
        profile_table.show(self)

    def trace(self) -> dict[str, Any]:
        """Return the events in Chrome's format, as they are written to a file by `save`."""
        process = os.getpid()
        events: list[dict[str, Any]] = [
            {
                "ph": "M",
                "name": "process_name",
                "ts": 0,
                "pid": process,
                "tid": 0,
                "args": {"name": "needle"},
            }
        ]
        # What encloses others stands before them.
        for event in sorted(self.events, key=lambda e: (e.start, -e.duration)):
            arguments: dict[str, Any] = {}
            if event.work is not None:
                arguments = {
                    "function": event.function,
                    "ops": " ".join(event.work.ops),
                    "modules": ", ".join(event.work.scopes),
                    "lines": ", ".join(event.work.lines),
                    "flops": event.work.flops,
                    "bytes": event.work.bytes_moved,
                }
            events.append(
                {
                    "ph": "X",
                    "name": event.name,
                    "cat": event.kind,
                    "ts": event.start / 1000,
                    "dur": event.duration / 1000,
                    "pid": process,
                    "tid": event.thread,
                    "args": arguments,
                }
            )
        return {"traceEvents": events, "displayTimeUnit": "ns"}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the events to a file that ``ui.perfetto.dev`` and ``chrome://tracing`` show.

        Args:
            path: of the file; what is there is overwritten.
        """
        Path(path).write_text(json.dumps(self.trace()), encoding="utf-8")


def _seconds(events: Sequence[Event]) -> float:
    return sum(event.duration for event in events) * 1e-9


def _median(events: Sequence[Event]) -> float:
    return statistics.median(event.duration for event in events) * 1e-9


@contextmanager
def profile() -> Iterator[Profile]:
    """Record how long kernels, compiled functions and eager ops take.

    Compiled functions are compiled once more, with a clock between the kernels; that is done before
    the first call in the profile, and recorded apart from it. All threads are recorded. What
    happens outside costs nothing.

    Yields:
        A `Profile`; print it, or save it for a viewer.

    Raises:
        ProfileError: a profile is being taken already.

    Example:
        >>> scale = ndl.compile(lambda x: ndl.exp(x) * 2)
        >>> with ndl.profile() as p:
        ...     _ = scale(ndl.ones(1000))
        >>> [(row.ops, row.calls) for row in p.kernels]
        [(('exp', 'multiply'), 1)]
    """
    from needle.backends.cpu import executable

    if not _active.acquire(blocking=False):
        raise ProfileError(
            "profile: a profile is being taken already, and it records all threads; leave its "
            "`with` block first"
        )
    recorder = _Recorder()
    eager = engine.apply
    try:
        recorder.start(eager)
        executable.record_with(recorder.run)
        engine.apply = recorder.apply
        yield recorder.profile
    finally:
        engine.apply = eager
        executable.record_with(None)
        recorder.end()
        _active.release()


_active = threading.Lock()


class _Timed:
    """An executable with stamps, and what its kernels do."""

    def __init__(self, executable: Any) -> None:
        from needle.compiled.kernels import kernels_of

        self.executable, programs = executable.stamped()
        self.kernels = kernels_of(*programs, rows=executable.rows)
        #: Held during a call: stamps are those of the last one.
        self.lock = threading.RLock()


class _Recorder:
    """Runs ops and executables, and writes down how long they take."""

    def __init__(self) -> None:
        self.profile = Profile()
        self._timed: dict[Any, _Timed] = {}
        self._making = threading.RLock()

    def start(self, eager: Any) -> None:
        self._eager = eager
        self._origin = stamps.now()

    def end(self) -> None:
        self.profile.nanoseconds = stamps.now() - self._origin

    def _note(self, name: str, kind: str, start: int, end: int, **more: Any) -> None:
        thread = threading.get_native_id()
        event = Event(name, kind, start - self._origin, end - start, thread, **more)
        self.profile.events.append(event)

    def apply(self, op: Op, inputs: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        """Run an op; what is traced does not count."""
        if modes.state.trace is not None:
            return self._eager(op, inputs, attrs)
        start = stamps.now()
        try:
            return self._eager(op, inputs, attrs)
        finally:
            self._note(op.name, "op", start, stamps.now())

    def run(self, executable: Any, arrays: Sequence[Array], prepared: Any = None) -> list[Array]:
        """Run the variant of an executable that has stamps."""
        name = executable.source.graph.name
        timed = self._find(executable, name)
        with timed.lock:
            start = stamps.now()
            outputs: list[Array] = timed.executable.run(arrays, prepared)
            end = stamps.now()
            times = timed.executable.last_stamps()
        self._note(name, "call", start, end, function=name)
        for kernel, first, last in zip(timed.kernels, times[:-1], times[1:], strict=True):
            self._note(kernel.name, "kernel", first, last, function=name, work=kernel)
        return outputs

    def _find(self, executable: Any, name: str) -> _Timed:
        timed = self._timed.get(executable)
        if timed is None:
            with self._making:
                timed = self._timed.get(executable)
                if timed is None:
                    start = stamps.now()
                    timed = self._timed[executable] = _Timed(executable)
                    self._note(name, "preparation", start, stamps.now(), function=name)
        return timed
