"""What a traced function may ask of values in Python, if somebody answers: a `Guide`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from needle.dtypes import DType, is_float

if TYPE_CHECKING:
    from needle.graph.ir import Value
    from needle.graph.tracing import Trace


class Guide(Protocol):
    """Tells a trace what Python gets where it asks for a value, so that the function goes on.

    What has been asked and answered is a condition under which the trace holds.
    """

    def begin(self, inputs: Sequence[Value], arrays: Sequence[Any]) -> None:
        """Begin a trace whose inputs hold ``arrays`` in this call."""

    def answer(self, trace: Trace, value: Value, use: str) -> Any:
        """Return what a ``use`` of the only element of ``value`` gives."""

    def end(self, trace: Trace) -> None:
        """Let go of all arrays: the function has returned."""


def is_guardable(use: str, dtype: DType) -> bool:
    """Whether what a ``use`` gives is one of few values, so that there can be a trace for each."""
    return use in ("bool()", "int()", "index()") or (use == "item()" and not is_float(dtype))
