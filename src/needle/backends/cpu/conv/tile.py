"""The inner product of generated convolutions: a tile of sums in registers over nested loops.

A tile is some elements of A, at known distances from the first, times a few vectors of B. In a
convolution the elements are pixels of one channel, and the vectors output channels; the loops run
over taps and channels. In its gradient by the weight the elements are taps and channels, and the
loops run over pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from needle import dtypes
from needle.backends.cpu.conv.spec import Epilogue, Place
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType

#: An epilogue of more instructions than this is emitted once, in a loop, not once per vector.
INLINE_INSTRUCTIONS = 12
#: And so is any epilogue of sums this long.
INLINE_PRODUCTS = 128
#: Multiply-adds in one turn of the innermost loop, about.
UNROLLED = 48


class Level(NamedTuple):
    """One of the nested loops over products.

    Attributes:
        turns: how many; None: given when the tile is called (of the outermost level only).
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


class Box(NamedTuple):
    """A box of places: along three axes how many, and how far apart in the result."""

    counts: tuple[int, int, int]
    steps: tuple[int, int, int] = (1, 1, 1)

    @property
    def size(self) -> int:
        """How many places."""
        return self.counts[0] * self.counts[1] * self.counts[2]

    def offsets(self, strides: Sequence[int]) -> tuple[int, ...]:
        """Return the places as offsets, for elements from one to the next along each axis."""
        places = itertools.product(*map(range, self.counts))
        return tuple(sum(i * s for i, s in zip(at, strides, strict=True)) for at in places)


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

    @property
    def key(self) -> Hashable:
        """What the function is memoised by."""
        epilogue = self.epilogue.key if self.epilogue else None
        return ("convolution tile", replace(self, epilogue=None), epilogue)

    @property
    def arguments(self) -> dict[str, str]:
        """The function's arguments and their types."""
        arguments = {"a": "ptr noalias readonly", "b": "ptr noalias readonly", "out": "ptr"}
        if self.epilogue:
            arguments |= {"extra": "ptr"}
            arguments |= dict.fromkeys(("image", "row", "column", "channel"), "i64")
        if self.resumes:
            arguments |= {"partial": "ptr noalias", "first": "i1", "last": "i1"}
        if self.levels and self.levels[0].turns is None:
            arguments["turns"] = "i64"
        return arguments

    def call(self, f: Function, pointers: dict[str, str], **values: Index) -> None:
        """Emit a call.

        Args:
            f: the caller.
            pointers: ``a`` and ``b`` at the tile's first elements, and without epilogue ``out``;
                else ``out`` and ``extra`` as they are; ``partial`` if it resumes.
            values: the place of the first element, ``first``, ``last``, ``turns``.
        """
        name = f.module.memo.get(self.key)
        if name is None:
            name = f.module.memo[self.key] = _Emitter(self, f.module).emit()
        given = []
        for argument, kind in self.arguments.items():
            if argument in pointers:
                given.append(f"ptr {pointers[argument]}")
            elif kind == "i1":
                value = values[argument]
                given.append(f"i1 {int(value) if isinstance(value, int) else value.text}")
            else:
                given.append(f.operand(values[argument]).typed)
        f.emit(f"call void @{name}({', '.join(given)})")


class _Emitter:
    """Emits the function of one `Tile`."""

    def __init__(self, tile: Tile, module: Module) -> None:
        self.tile = tile
        lanes = sum(w or 1 for w in tile.widths)
        name = module.unique(f"convolve_{tile.box.size}x{lanes}")
        self.f = MathFunction(module, name, tile.arguments, inline="noinline")
        self.row = lanes  #: elements of a row of sums in memory
        self.columns = [sum(w or 1 for w in tile.widths[:j]) for j in range(len(tile.widths))]
        self.masks: list[Operand | None] = [None] * len(tile.widths)
        if tile.tail:
            self.masks[-1] = self.f.tail_mask(tile.tail, tile.widths[-1])

    def emit(self) -> str:
        f, tile = self.f, self.tile
        zeros = [f.constant(0, tile.dtype, w) for _ in tile.a for w in tile.widths]
        sums = self._level(0, "%a", "%b", zeros)
        if not tile.resumes:
            self._finish(sums)
            return f.end()
        first, last = f.argument("first", dtypes.bool), f.argument("last", dtypes.bool)
        sums = f.branch(first, lambda: sums, lambda: self._added(sums))
        f.branch(last, lambda: self._finish(sums), lambda: self._keep(sums))
        return f.end()

    # The sums

    def _level(self, depth: int, a: str, b: str, sums: Sequence[Operand]) -> list[Operand]:
        """Emit the loops from a level on."""
        f, tile = self.f, self.tile
        if depth == len(tile.levels):
            return self._step(a, b, sums)
        level = tile.levels[depth]
        count: Index = f.argument("turns") if level.turns is None else level.turns
        unroll = 1
        if depth == len(tile.levels) - 1 and level.turns is not None:
            unroll = max(1, min(8, UNROLLED // max(1, len(sums)), level.turns))

        def turns(number: int, i: Index, sums: list[Operand]) -> list[Operand]:
            at_a = f.pointer(a, f.mul_index(i, level.a), tile.dtype)
            at_b = f.pointer(b, f.mul_index(i, level.b), tile.dtype)
            for u in range(number):
                here_a = f.pointer(at_a, u * level.a, tile.dtype)
                here_b = f.pointer(at_b, u * level.b, tile.dtype)
                sums = self._level(depth + 1, here_a, here_b, sums)
            return sums

        whole = f.sub_index(count, f.mod_index(count, unroll))
        result = f.loop(0, whole, unroll, sums, lambda i, s: turns(unroll, i, s))
        if isinstance(whole, int) and isinstance(count, int) and whole < count:
            result = turns(count - whole, whole, result)
        return result

    def _step(self, a: str, b: str, sums: Sequence[Operand]) -> list[Operand]:
        """Emit the products of the tile's elements with one row of B."""
        f, tile = self.f, self.tile
        row = [
            f.load(b, column, tile.dtype, width, mask)
            for column, width, mask in zip(self.columns, tile.widths, self.masks, strict=True)
        ]
        result = []
        for i, offset in enumerate(tile.a):
            element = f.load(a, offset, tile.dtype)
            splats: dict[int, Operand] = {}
            for j, width in enumerate(tile.widths):
                if width not in splats:
                    splats[width] = f.splat(element, width)
                result.append(f.fma(splats[width], row[j], sums[i * len(row) + j]))
        return result

    # What becomes of them

    def _vectors(self) -> list[tuple[int, int]]:
        """Return offset and width of each vector of the sums in memory."""
        return [
            (i * self.row + column, width)
            for i in range(len(self.tile.a))
            for column, width in zip(self.columns, self.tile.widths, strict=True)
        ]

    def _added(self, sums: Sequence[Operand]) -> list[Operand]:
        f, dtype = self.f, self.tile.dtype
        return [
            f.add(f.load("%partial", offset, dtype, width), x)
            for x, (offset, width) in zip(sums, self._vectors(), strict=True)
        ]

    def _keep(self, sums: Sequence[Operand]) -> None:
        for x, (offset, _) in zip(sums, self._vectors(), strict=True):
            self.f.store(x, "%partial", offset)

    def _finish(self, sums: Sequence[Operand]) -> None:
        f, tile = self.f, self.tile
        epilogue = tile.epilogue
        if epilogue is None:
            vectors = iter(sums)
            for offset in tile.out:
                for column, mask in zip(self.columns, self.masks, strict=True):
                    f.store(next(vectors), "%out", offset + column, mask)
            return
        state = epilogue.begin(f) if epilogue.begin else None
        # What a loop costs is hidden by long sums, and inlining costs time to compile.
        products = 1
        for level in tile.levels:
            products *= INLINE_PRODUCTS if level.turns is None else level.turns
        is_small = products < INLINE_PRODUCTS and epilogue.instructions <= INLINE_INSTRUCTIONS
        if is_small or len(tile.a) <= 2:
            for i, at in enumerate(itertools.product(*map(range, tile.box.counts))):
                self._finish_row(epilogue, state, at, sums[i * len(tile.widths) :])
        else:
            self._finish_rows(epilogue, state, sums)
        if epilogue.end:
            epilogue.end(f, state)

    def _finish_rows(self, epilogue: Epilogue, state: object, sums: Sequence[Operand]) -> None:
        """Emit the epilogue in loops over the sums, which are in memory for that."""
        f, tile = self.f, self.tile
        total = len(tile.a) * self.row
        kept = f.at_entry(f"alloca [{total} x {sums[0].scalar_type}], align 64")
        for x, (offset, _) in zip(sums, self._vectors(), strict=True):
            f.store(x, kept, offset)
        _, rows, columns = tile.box.counts

        def pixel(i: Index, j: Index, k: Index) -> None:
            number = f.add_index(f.mul_index(f.add_index(f.mul_index(i, rows), j), columns), k)
            start = f.pointer(kept, f.mul_index(number, self.row), tile.dtype)
            loaded = [
                f.load(start, column, tile.dtype, width)
                for column, width in zip(self.columns, tile.widths, strict=True)
            ]
            self._finish_row(epilogue, state, (i, j, k), loaded)

        def image(i: Index, _: list[Operand]) -> None:
            def row(j: Index, _: list[Operand]) -> None:
                f.loop(0, columns, 1, [], lambda k, _: pixel(i, j, k))

            f.loop(0, rows, 1, [], row)

        f.loop(0, tile.box.counts[0], 1, [], image)

    def _finish_row(
        self,
        epilogue: Epilogue,
        state: object,
        at: Sequence[Index],
        sums: Sequence[Operand],
    ) -> None:
        f, tile = self.f, self.tile
        names = ("image", "row", "column")
        image, row, column = (
            f.add_index(f.argument(name), f.mul_index(i, step))
            for name, i, step in zip(names, at, tile.box.steps, strict=True)
        )
        for j, width in enumerate(tile.widths):
            channel = f.add_index(f.argument("channel"), self.columns[j])
            place = Place(image, row, column, channel, width, self.masks[j])
            epilogue.store(f, sums[j], place, state)
