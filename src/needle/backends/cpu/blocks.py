"""Basic blocks: set right which of them phis name, where one was split after it was named.

Code that does not change in a loop is written before the loop, into a block that is complete
already. If it branches, it splits that block: what followed is another block now, and phis that
name the first part as where they are reached from mean the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from needle.backends.cpu.operands import Segment

_LABEL = re.compile(r"^([\w.]+):$")
_TARGET = re.compile(r"label %([\w.]+)")
_PHI = re.compile(r"^  %[\w.]+ = phi ")
_FROM = re.compile(r", %([\w.]+)\](?=,|$)")


def lines_of(segment: Segment) -> Iterator[str]:
    """Yield the lines of a segment and of those in it, in order."""
    for line in segment:
        if isinstance(line, str):
            yield line
        else:
            yield from lines_of(line)


def settle_phis(lines: Sequence[str]) -> list[str]:
    """Return the lines of a function with phis that name the blocks that lead to them.

    The parts of a block follow each other in the text, as the blocks did; so names that are wrong
    and blocks that are missing belong together in the order of the text.

    Args:
        lines: of the body, the label of the first block among them.
    """
    place: dict[str, int] = {}
    sources: dict[str, dict[str, None]] = {}
    block = ""
    for line in lines:
        label = _LABEL.match(line)
        if label:
            block = label[1]
            place[block] = len(place)
        elif line.startswith(("  br ", "  switch ")):
            for target in _TARGET.findall(line):
                sources.setdefault(target, {})[block] = None
    settled = []
    for line in lines:
        label = _LABEL.match(line)
        if label:
            block = label[1]
        elif _PHI.match(line):
            named = _FROM.findall(line)
            real = sources.get(block, {})
            wrong = sorted((n for n in named if n not in real), key=place.__getitem__)
            missing = sorted((r for r in real if r not in named), key=place.__getitem__)
            new = dict(zip(wrong, missing, strict=True))
            if new:
                line = _FROM.sub(lambda m: f", %{new.get(m[1], m[1])}]", line)  # noqa: B023
        settled.append(line)
    return settled
