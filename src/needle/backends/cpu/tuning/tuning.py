"""What is asked of a search; it needs none of what generates code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """How plans are searched.

    Attributes:
        seconds: that a program's search may take; what has not been searched then is left to the
            model.
        is_frugal: whether no kernel may take more memory than by the model's choice.
    """

    seconds: float
    is_frugal: bool = False
