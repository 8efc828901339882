"""The inner product of generated convolutions: a tile of sums in registers over nested loops.

A tile is some elements of A, at known distances from the first, times a few vectors of B. In a
convolution the elements are pixels of one channel, and the vectors output channels; the loops run
over taps and channels. In its gradient by the weight the elements are taps and channels, and the
loops run over pixels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from needle import dtypes
from needle.backends.cpu.conv.finish import Box, Finish, Resumed, call_function
from needle.backends.cpu.conv.spec import Epilogue
from needle.backends.cpu.gemm.packing import ask_for
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType

#: Multiply-adds in one turn of the innermost loop, about.
UNROLLED = 48
#: What a number of turns that is not known is taken for.
MANY = 128


class Level(NamedTuple):
    """One of the nested loops over products.

    Attributes:
        turns: how many; None: given when the tile is called.
        a: elements of A from one turn to the next.
        b: elements of B.
    """

    turns: int | None
    a: int
    b: int


def nest(loops: Sequence[tuple[int, int]], step: int) -> tuple[Level, ...]:
    """Return nested loops, given as turns and elements of A between them, the innermost last.

    Elements of B follow each other at a distance of ``step``. Loops of one turn are left out, and
    those whose elements of A follow each other, too, are one loop.
    """
    levels: list[Level] = []
    products = 1
    for turns, a in reversed(loops):
        inner = levels[0] if levels else None
        if inner and inner.turns is not None and (turns == 1 or a == inner.turns * inner.a):
            levels[0] = Level(turns * inner.turns, inner.a, inner.b)
        elif inner and inner.turns == 1:
            levels[0] = Level(turns, a, products * step)
        else:
            levels.insert(0, Level(turns, a, products * step))
        products *= turns
    return tuple(levels)


@dataclass(frozen=True)
class Tile:
    """A function that computes a tile; `call` emits a call of it.

    Attributes:
        box: the places of its elements.
        a: elements of A from the first to each.
        out: elements of the result from the first to each, if there is no epilogue.
        widths: lanes of its vectors; 0 for a scalar.
        tail: how many lanes of the last vector exist; 0 for all.
        levels: the loops, the innermost last.
        dtype: of all.
        resumes: whether the sums may be added to those of earlier blocks: the argument ``first``
            says that there are none, ``last`` that no more follow. Between they are in ``partial``.
        epilogue: what is done with the sums; None stores them.
        ahead: how many products ahead vectors of B are asked for; 0 where they lie side by side, or
            near.
    """

    box: Box
    a: tuple[int, ...]
    out: tuple[int, ...]
    widths: tuple[int, ...]
    tail: int
    levels: tuple[Level, ...]
    dtype: DType
    resumes: bool = False
    epilogue: Epilogue | None = None
    ahead: int = 0

    @property
    def key(self) -> Hashable:
        """What the function is memoised by."""
        epilogue = self.epilogue.key if self.epilogue else None
        return ("convolution tile", replace(self, epilogue=None), epilogue)

    @property
    def finish(self) -> Finish:
        """What is done with the sums."""
        products = 1
        for level in self.levels:
            products *= MANY if level.turns is None else level.turns
        return Finish(self.box, self.out, self.widths, self.dtype, products, self.epilogue)

    @property
    def arguments(self) -> dict[str, str]:
        """The function's arguments and their types."""
        arguments = {"a": "ptr noalias readonly", "b": "ptr noalias readonly"}
        arguments |= self.finish.arguments()
        if self.resumes:
            arguments |= Resumed.arguments()
        unknown = [f"turns{i}" for i, level in enumerate(self.levels) if level.turns is None]
        return arguments | dict.fromkeys(unknown, "i64")

    def call(self, f: Function, pointers: dict[str, str], **values: Index) -> None:
        """Emit a call.

        Args:
            f: the caller.
            pointers: ``a`` and ``b`` at the tile's first elements, and without epilogue ``out``;
                else ``out`` and ``extra`` as they are; ``partial`` if it resumes.
            values: the place of the first element, ``first``, ``last``, and the
                turns of each level that are not known: ``turns0`` …
        """
        given = {**pointers, **values}
        call_function(f, self.key, self.arguments, given, lambda m: _Emitter(self, m).emit())


class _Emitter:
    """Emits the function of one `Tile`."""

    def __init__(self, tile: Tile, module: Module) -> None:
        self.tile = tile
        self.finish = tile.finish
        name = module.unique(f"convolve_{tile.box.size}x{self.finish.row}")
        self.f = MathFunction(module, name, tile.arguments, inline="noinline")
        self.masks: list[Operand | None] = [None] * len(tile.widths)
        if tile.tail:
            self.masks[-1] = self.f.tail_mask(tile.tail, tile.widths[-1])

    def emit(self) -> str:
        f, tile = self.f, self.tile
        zeros = [f.constant(0, tile.dtype, w) for _ in tile.a for w in tile.widths]
        sums = self._level(0, "%a", "%b", zeros)
        if tile.resumes:
            ends = [f.argument(name, dtypes.bool) for name in ("first", "last")]
            Resumed(self.finish).emit(f, sums, self.masks, *ends)
        else:
            self.finish.emit(f, sums, self.masks)
        return f.end()

    # The sums

    def _level(self, depth: int, a: str, b: str, sums: Sequence[Operand]) -> list[Operand]:
        """Emit the loops from a level on."""
        f, tile = self.f, self.tile
        level = tile.levels[depth]
        count: Index = f.argument(f"turns{depth}") if level.turns is None else level.turns
        is_last = depth == len(tile.levels) - 1
        unroll = self._unroll(level) if is_last and level.turns is not None else 1

        def turns(number: int, i: Index, sums: list[Operand]) -> list[Operand]:
            at_a = f.pointer(a, f.mul_index(i, level.a), tile.dtype)
            at_b = f.pointer(b, f.mul_index(i, level.b), tile.dtype)
            if is_last:
                return self._steps(number, at_a, at_b, sums)
            return self._level(depth + 1, at_a, at_b, sums)

        whole = f.sub_index(count, f.mod_index(count, unroll))
        result = f.loop(0, whole, unroll, sums, lambda i, s: turns(unroll, i, s))
        if isinstance(whole, int) and isinstance(count, int) and whole < count:
            result = turns(count - whole, whole, result)
        return result

    def _unroll(self, level: Level) -> int:
        """Return how many steps are taken in a turn of the innermost loop."""
        tile, vectors = self.tile, len(self.tile.widths)
        assert level.turns is not None
        steps = max(1, min(8, UNROLLED // (len(tile.a) * vectors), level.turns))
        if steps > 1 and self._shares(level, 2):
            # Their rows of B are all in registers, so that what is shared is loaded once.
            free = self.f.target.registers - len(tile.a) * vectors - 2
            steps = max(1, min(8, free // vectors, level.turns))
        return steps

    def _shares(self, level: Level, steps: int) -> bool:
        """Whether elements of A are used in several steps."""
        places = {offset + u * level.a for offset in self.tile.a for u in range(steps)}
        return len(places) < steps * len(self.tile.a)

    def _steps(self, steps: int, a: str, b: str, sums: Sequence[Operand]) -> list[Operand]:
        """Emit the products of several steps: of each element of A all, while it is there."""
        f, tile = self.f, self.tile
        level, vectors = tile.levels[-1], len(tile.widths)
        places = [
            (offset + u * level.a, u, i) for u in range(steps) for i, offset in enumerate(tile.a)
        ]
        if level.a > 0 and self._shares(level, steps):
            places.sort()
        rows: dict[int, list[Operand]] = {}
        result, seen = list(sums), None
        for place, u, i in places:
            if u not in rows:
                start = f.pointer(b, u * level.b, tile.dtype)
                if tile.ahead:
                    there = f.pointer(start, tile.ahead * level.b, tile.dtype)
                    ask_for(f, there, sum(w or 1 for w in tile.widths), tile.dtype)
                rows[u] = [
                    f.load(start, column, tile.dtype, width, mask)
                    for column, width, mask in zip(
                        self.finish.columns, tile.widths, self.masks, strict=True
                    )
                ]
            if place != seen:
                seen, element = place, f.load(a, place, tile.dtype)
                splats: dict[int, Operand] = {}
            for j, width in enumerate(tile.widths):
                if width not in splats:
                    splats[width] = f.splat(element, width)
                at = i * vectors + j
                result[at] = f.fma(splats[width], rows[u][j], result[at])
        return result
