"""Ctrl-C as a request: the loop finishes the step it is in, saves, and says so."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """Notes SIGINT (Ctrl-C) and SIGTERM (from a job scheduler) instead of dying of them.

    After the first signal the previous handlers are back, so that a second Ctrl-C stops at once.
    Outside of the main thread, where Python delivers no signals, it does nothing.

    Attributes:
        received: The signal that came, or None.

    Example:
        >>> import signal
        >>> from needle.train.signals import StopSignals
        >>> with StopSignals() as stop:
        ...     signal.raise_signal(signal.SIGINT)
        ...     stop.received is signal.SIGINT
        True
    """

    HANDLED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in self.HANDLED:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            # None stands for a handler that was not installed from Python; it cannot be set back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
