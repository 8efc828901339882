"""Faults: what native code may report, which cannot raise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from needle.compiler.rows import actual, rows_in
from needle.shapes import Shape


@dataclass
class Fault:
    """What a kernel may report: a value that an op refuses, or an index out of range.

    Attributes:
        op: name of the op that refuses it; empty for an index.
        attrs: the op's attributes, or of an index those of `Loaded`.
        shape: of the tensor that holds the value.
        location: the user's line.
    """

    op: str
    attrs: dict[str, Any]
    shape: Shape
    location: str

    def at(self, rows: int) -> Fault:
        """Return it for a call with so many rows."""
        attrs = dict(self.attrs)
        if rows_in(attrs.get("extent", 0)):
            attrs["extent"] = rows_in(attrs["extent"]) * rows
            attrs["what"] = attrs["what"].replace(str(self.attrs["extent"]), str(attrs["extent"]))
        return Fault(self.op, attrs, actual(self.shape, rows), self.location)
