"""An axis of C cut into tiles, whether its extent is known or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from needle.backends.cpu.gemm.plan import split
from needle.backends.cpu.llvm import Function, Index, Operand

T = TypeVar("T")


@dataclass(frozen=True)
class Run(Generic[T]):
    """Neighbouring tiles of one size.

    Attributes:
        count: how many tiles.
        size: elements of each along the axis.
        kinds: what a tile of the run is. More than one: `choice` says which, and there is one tile
            at most.
        choice: index into ``kinds``.
        tail: how many lanes of the tile's last vector exist; 0 for all.
    """

    count: Index
    size: int
    kinds: Sequence[T]
    choice: Index = 0
    tail: Index = 0


class Tiling(Generic[T]):
    """All tiles of an axis, numbered from 0.

    Args:
        f: where to emit the arithmetic on extents that are not known.
        runs: the tiles in order.
    """

    def __init__(self, f: Function, runs: Sequence[Run[T]]) -> None:
        self.f = f
        self.runs = [run for run in runs if run.count != 0]
        self.starts: list[tuple[Index, Index]] = []
        tile: Index = 0
        offset: Index = 0
        for run in self.runs:
            self.starts.append((tile, offset))
            tile = f.add_index(tile, run.count)
            offset = f.add_index(offset, f.mul_index(run.count, run.size))
        self.count = tile

    def each(
        self, start: Index, stop: Index, visit: Callable[[Index, Index, T, Index], None]
    ) -> None:
        """Emit ``visit(tile, offset, kind, tail)`` for the tiles start … stop − 1."""

        def run(low: Index, high: Index, size: int, offset: Index, kind: T, tail: Index) -> None:
            def tile(i: Index, _: list[Operand]) -> None:
                beyond = self.f.mul_index(self.f.sub_index(i, low), size)
                visit(i, self.f.add_index(offset, beyond), kind, tail)

            self.f.loop(low, high, 1, [], tile)

        self.each_run(start, stop, run)

    def each_run(
        self,
        start: Index,
        stop: Index,
        visit: Callable[[Index, Index, int, Index, T, Index], None],
    ) -> None:
        """Emit ``visit(low, high, size, offset, kind, tail)`` for the runs of equal tiles, low …
        high − 1, among the tiles start … stop − 1; ``offset`` is that of tile ``low``."""
        f = self.f
        for run, (first, offset) in zip(self.runs, self.starts, strict=True):
            low = max_index(f, start, first)
            high = f.min_index(stop, f.add_index(first, run.count))
            here = f.add_index(offset, f.mul_index(f.sub_index(low, first), run.size))
            if isinstance(run.choice, int):
                visit(low, high, run.size, here, run.kinds[run.choice], run.tail)
                continue
            cases = [
                lambda run=run, kind=kind, low=low, high=high, here=here: visit(
                    low, high, run.size, here, kind, run.tail
                )
                for kind in run.kinds
            ]
            f.switch(run.choice, cases)


def max_index(f: Function, x: Index, y: Index) -> Index:
    """Return the larger of x and y."""
    if isinstance(x, int) and isinstance(y, int):
        return max(x, y)
    if isinstance(y, int) and y == 0:
        return x
    a, b = f.operand(x), f.operand(y)
    return f.select(f.compare("sgt", a, b), a, b)


def tile_rows(f: Function, extent: Index, size: int, is_fused: bool = False) -> Tiling[int]:
    """Cut rows: kinds are numbers of rows. Near-equal tiles, if the extent is known.

    Args:
        f: where to emit the arithmetic.
        extent: how many rows.
        size: rows of the largest tile.
        is_fused: whether each kind is code of the kernel's own. Then there are few: what is left
            over when the extent is not known goes into tiles of powers of two.
    """
    if isinstance(extent, int):
        return Tiling(f, [Run(count, part, [part]) for part, count in split(extent, size)])
    whole = f.floordiv_index(extent, size)
    rest = f.mod_index(extent, size)
    if is_fused:
        runs = [Run(whole, size, [size])]
        for bit in reversed(range((size - 1).bit_length())):
            left = f.mod_index(f.floordiv_index(rest, 1 << bit), 2)
            runs.append(Run(left, 1 << bit, [1 << bit]))
        return Tiling(f, runs)
    runs = [Run(whole, size, [size])]
    if size > 1:
        left = f.min_index(rest, 1)
        runs.append(Run(left, size, range(1, size), choice=f.sub_index(rest, 1)))
    return Tiling(f, runs)


def tile_columns(
    f: Function, extent: Index, lanes: int, vectors: int, masks: bool
) -> Tiling[tuple[int, ...]]:
    """Cut columns: kinds are the widths of a tile's vectors.

    Without masks the columns that do not fill a vector go into narrower ones, and scalars.
    """
    if isinstance(extent, int):
        return Tiling(f, _known_columns(extent, lanes, vectors, masks))
    size = vectors * lanes
    whole = f.floordiv_index(extent, size)
    rest = f.mod_index(extent, size)
    runs = [Run[tuple[int, ...]](whole, size, [(lanes,) * vectors])]
    if masks:
        last = f.sub_index(rest, 1)
        choice = f.floordiv_index(last, lanes)
        tail = f.add_index(f.mod_index(last, lanes), 1)
        kinds = [(lanes,) * (i + 1) for i in range(vectors)]
        runs.append(Run(f.min_index(rest, 1), size, kinds, choice, tail))
    else:
        if vectors > 1:
            runs.append(Run(f.floordiv_index(rest, lanes), lanes, [(lanes,)]))
        runs.append(Run(f.mod_index(rest, lanes), 1, [(0,)]))
    return Tiling(f, runs)


def _known_columns(
    extent: int, lanes: int, vectors: int, masks: bool
) -> list[Run[tuple[int, ...]]]:
    runs = []
    left = extent
    for part, count in split(-(-extent // lanes), vectors):
        size = part * lanes
        full = min(count, left // size)
        runs.append(Run[tuple[int, ...]](full, size, [(lanes,) * part]))
        left -= full * size
        if full == count:
            continue
        # The last tile: what is left does not fill it.
        whole, tail = divmod(left, lanes)
        if masks:
            runs.append(Run(1, size, [(lanes,) * (whole + 1)], tail=tail))
        else:
            widths = [lanes] * whole
            power = lanes // 2
            while power:
                if tail & power:
                    widths.append(power if power > 1 else 0)
                power //= 2
            runs.append(Run(1, size, [tuple(widths)]))
        left = 0
    return runs
