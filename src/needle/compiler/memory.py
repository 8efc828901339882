"""The memory planner: one arena for all intermediate values, laid out before anything runs.

The steps of a program are known, and so is from which step to which each buffer lives. Buffers that
live at the same time get different places; the others share. How much memory that takes is known
when compiling, and it is close to the least possible: what lives at the fullest moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from needle.errors import ArgumentError

#: Bytes to which every buffer is aligned: a cache line, and the longest vector.
ALIGNMENT = 64


@dataclass(frozen=True)
class Buffer:
    """A piece of memory that some steps of a program use.

    Attributes:
        name: what reports call it.
        nbytes: its size.
        first: the step that writes it.
        last: the last step that uses it, at least ``first``.
        takes_over: buffers, by number, whose storage it may take over, since the step that writes
            it reads each of their elements just before it writes the one in its place.
    """

    name: str
    nbytes: int
    first: int
    last: int
    takes_over: tuple[int, ...] = ()

    @property
    def room(self) -> int:
        """Its size, rounded up to the alignment."""
        return -(-self.nbytes // ALIGNMENT) * ALIGNMENT

    def meets(self, other: Buffer) -> bool:
        """Whether there is a step in which both live."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Where each buffer lies in the arena.

    Attributes:
        buffers: what was placed.
        offsets: the place of each, in bytes from the start of the arena.
        nbytes: size of the arena: the planned peak of memory.
        lower_bound: bytes that live at the fullest moment; no plan can do with less.
        steps: number of steps of the program.
    """

    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]
    nbytes: int
    lower_bound: int
    steps: int

    def live_bytes(self, step: int) -> int:
        """Return how many bytes of the arena live in a step."""
        places = {
            (offset, b.room)
            for b, offset in zip(self.buffers, self.offsets, strict=True)
            if b.first <= step <= b.last
        }
        return sum(room for _, room in places)

    @property
    def fullest_step(self) -> int:
        """The step in which most bytes live, the first of several."""
        return max(range(self.steps), key=self.live_bytes, default=0)

    def __str__(self) -> str:
        """Return a table: each buffer, its size, its place and its life, the largest first."""
        rows = [("buffer", "bytes", "offset", "steps")]
        order = sorted(range(len(self.buffers)), key=lambda i: -self.buffers[i].nbytes)
        for i in order:
            b = self.buffers[i]
            rows.append((b.name, f"{b.nbytes:,}", f"{self.offsets[i]:,}", f"{b.first}–{b.last}"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{name:<{widths[0]}}  {size:>{widths[1]}}  {place:>{widths[2]}}  {life:>{widths[3]}}"
            for name, size, place, life in rows
        ]
        unshared = sum(b.room for b in self.buffers)
        lines.append(
            f"{self.nbytes:,} bytes for {len(self.buffers)} buffers of {unshared:,}; "
            f"the most that lives at once is {self.lower_bound:,}, in step {self.fullest_step}"
        )
        return "\n".join(lines)

    def timeline(self, width: int = 72, height: int = 20) -> str:
        """Return a picture in characters: steps from left to right, the arena from bottom to top.

        Each buffer is a rectangle of one letter. What is too small for a character is left out.
        """
        if not self.nbytes or not self.steps:
            return "(empty)"
        width = min(width, self.steps)
        grid = [[" "] * width for _ in range(height)]
        for i, (b, offset) in enumerate(zip(self.buffers, self.offsets, strict=True)):
            letter = "abcdefghijklmnopqrstuvwxyz"[i % 26]
            left, right = b.first * width // self.steps, (b.last + 1) * width // self.steps
            low = round(offset * height / self.nbytes)
            high = round((offset + b.room) * height / self.nbytes)
            for row in range(low, high):
                for column in range(left, max(right, left + 1)):
                    grid[row][column] = letter
        return "\n".join("".join(row).rstrip() for row in reversed(grid))

    def draw(self, width: int = 960, height: int = 480) -> str:
        """Return the same picture as SVG; each rectangle tells its buffer when pointed at."""
        steps, top = max(self.steps, 1), max(self.nbytes, 1)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 20}" '
            f'viewBox="0 0 {width} {height + 20}" font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="#f6f6f4"/>',
        ]
        for i, (b, offset) in enumerate(zip(self.buffers, self.offsets, strict=True)):
            x, w = b.first * width / steps, (b.last + 1 - b.first) * width / steps
            h = b.room * height / top
            y = height - offset * height / top - h
            name = b.name.replace("&", "&amp;").replace("<", "&lt;")
            parts.append(
                f'<rect x="{x:.2f}" y="{y:.2f}" width="{w:.2f}" height="{h:.2f}" '
                f'fill="hsl({i * 137 % 360} 55% 65%)" stroke="white" stroke-width="0.5">'
                f"<title>{name}: {b.nbytes:,} bytes, steps {b.first}–{b.last}</title></rect>"
            )
        parts.append(
            f'<text x="4" y="{height + 14}">{self.nbytes:,} bytes, {self.steps} steps</text></svg>'
        )
        return "\n".join(parts)


def plan_memory(buffers: Sequence[Buffer], steps: int | None = None) -> MemoryPlan:
    """Return places in one arena for all buffers, close to the smallest arena possible.

    Buffers that may take over the storage of another, of the same size, at the end of its life do
    so. The rest is placed greedily, best fit, in several orders, and the smallest result is taken;
    the outcome is the same every time.

    Args:
        buffers: all buffers of the program.
        steps: number of steps; by default up to the last use.

    Raises:
        ArgumentError: a buffer that ends before it begins, or takes over what does not exist.

    Example:
        >>> from needle.compiler.memory import Buffer, plan_memory
        >>> a, b, c = Buffer("a", 64, 0, 1), Buffer("b", 64, 1, 2), Buffer("c", 64, 2, 3)
        >>> plan = plan_memory([a, b, c])
        >>> plan.nbytes, plan.offsets
        (128, (0, 64, 0))
    """
    _check(buffers)
    blocks = _merged(buffers)
    bound = lower_bound(block.buffer for block in blocks)
    best: list[int] | None = None
    size = 0
    for order in _ORDERS:
        chosen = sorted(range(len(blocks)), key=lambda i: order(blocks[i].buffer))
        offsets = _place([b.buffer for b in blocks], chosen)
        total = max((o + b.buffer.room for o, b in zip(offsets, blocks, strict=True)), default=0)
        if best is None or total < size:
            best, size = offsets, total
        if size == bound:
            break
    places = [0] * len(buffers)
    for block, offset in zip(blocks, best or [], strict=True):
        for member in block.members:
            places[member] = offset
    count = max((b.last + 1 for b in buffers), default=0) if steps is None else steps
    return MemoryPlan(tuple(buffers), tuple(places), size, bound, count)


def lower_bound(buffers: Iterable[Buffer]) -> int:
    """Return the most bytes that live at once."""
    changes: dict[int, int] = {}
    for b in buffers:
        changes[b.first] = changes.get(b.first, 0) + b.room
        changes[b.last + 1] = changes.get(b.last + 1, 0) - b.room
    most = now = 0
    for step in sorted(changes):
        now += changes[step]
        most = max(most, now)
    return most


def _check(buffers: Sequence[Buffer]) -> None:
    for b in buffers:
        if b.last < b.first or b.nbytes < 0:
            raise ArgumentError(
                f"plan_memory: buffer {b.name} of {b.nbytes} bytes lives from step {b.first} to "
                f"{b.last}"
            )
        if any(not 0 <= i < len(buffers) for i in b.takes_over):
            raise ArgumentError(f"plan_memory: buffer {b.name} takes over one that does not exist")


@dataclass
class _Block:
    """Buffers that follow each other in the same storage."""

    buffer: Buffer
    members: list[int]


def _merged(buffers: Sequence[Buffer]) -> list[_Block]:
    """Return the buffers, those that take over storage merged with those that give it."""
    blocks: dict[int, _Block] = {}
    block_of: dict[int, _Block] = {}
    for i in sorted(range(len(buffers)), key=lambda i: buffers[i].first):
        b = buffers[i]
        for source in b.takes_over:
            block = block_of.get(source)
            before = buffers[source]
            if block is None or before.room != b.room:
                continue
            if not before.first < before.last == b.first:
                continue
            if block.members[-1] == source:  # else somebody has taken it over already
                block.buffer = Buffer(b.name, b.nbytes, block.buffer.first, b.last)
                block.members.append(i)
                block_of[i] = block
                break
        else:
            blocks[i] = block_of[i] = _Block(b, [i])
    return list(blocks.values())


#: In which orders buffers are placed: large ones first, those that live long, those of most area.
_ORDERS = (
    lambda b: (-b.room, b.first, b.last),
    lambda b: (-b.room * (b.last + 1 - b.first), b.first),
    lambda b: (b.first - b.last, -b.room, b.first),
    lambda b: (b.first, -b.room, -b.last),
)


def _place(buffers: Sequence[Buffer], order: Iterable[int]) -> list[int]:
    """Place the buffers, one after the other, each into the smallest gap that holds it."""
    offsets = [0] * len(buffers)
    placed: list[int] = []  # by offset
    for i in order:
        b = buffers[i]
        free, best, best_gap = 0, -1, 0
        for j in placed:
            other = buffers[j]
            if not b.meets(other):
                continue
            gap = offsets[j] - free
            if gap >= b.room and (best < 0 or gap < best_gap):
                best, best_gap = free, gap
            free = max(free, offsets[j] + other.room)
        offsets[i] = free if best < 0 else best
        low, high = 0, len(placed)
        while low < high:
            middle = (low + high) // 2
            if offsets[placed[middle]] < offsets[i]:
                low = middle + 1
            else:
                high = middle
        placed.insert(low, i)
    return offsets
