"""What searches have found: kept in this process, and on disk.

On disk a result is an entry of the compiler's cache (`needle.backends.cpu.cache`) without any code:
numbers in JSON, one file for each kernel, which appears by renaming. So processes may search at the
same time, a damaged or foreign file is dropped, and another version of needle finds nothing.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

from needle.backends.cpu import cache
from needle.backends.cpu.linux import cpu_name
from needle.backends.cpu.target import Target
from needle.backends.cpu.tuning.candidates import Spec
from needle.backends.cpu.tuning.search import Found

_known: dict[str, Found] = {}


def text_of(spec: Spec, target: Target, threads: int, *, is_cold: bool, room: int) -> str:
    """Return what a result is known by: all that a search depends on, besides the sources.

    Not the epilogue, which is the same work for all candidates: layers that differ in what follows
    share a result, and a change there does not ask for another search. The processor's name counts,
    because machines with the same instructions may have other caches.

    Args:
        spec: what is computed.
        target: the processor.
        threads: into about how many tasks it is split.
        is_cold: see `search`.
        room: see `candidates`.
    """
    parts = (replace(spec, epilogue=None), target, threads, is_cold, room, cpu_name())
    return "\n".join(repr(part) for part in parts)


def recall(text: str, tried: int) -> Found | None:
    """Return what a search has found, in this process or before; None if there is nothing.

    Args:
        text: from `text_of`.
        tried: how many candidates there are now.
    """
    found = _known.get(text)
    if found is None:
        entry = cache.get(_key(text))
        found = None if entry is None else _checked(entry.metadata)
        if found is not None:
            _known[text] = found
    return found if found is not None and found.tried == tried else None


def remember(text: str, found: Found) -> None:
    """Keep what a search has found."""
    _known[text] = found
    cache.put(_key(text), [], {"tiles": found._asdict()})


def forget() -> None:
    """Forget what this process knows; what lies on disk stays."""
    _known.clear()


def _key(text: str) -> str:
    return cache.key("tiles", text)


def _checked(metadata: Any) -> Found | None:
    """Return a result from a file, if it is one."""
    with contextlib.suppress(TypeError, KeyError, ValueError):
        found = Found(**metadata["tiles"])
        numbers = all(type(x) is int for x in found[:2])
        times = all(type(x) is float and math.isfinite(x) and x >= 0 for x in found[2:])
        if numbers and times and 0 <= found.choice < found.tried:
            return found
    return None
