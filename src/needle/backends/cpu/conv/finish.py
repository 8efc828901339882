"""What becomes of the finished sums of a tile: they are stored, or given to the epilogue."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from needle.backends.cpu.conv.spec import Epilogue, Place
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.dtypes import DType

#: An epilogue of more instructions than this is emitted once, in a loop, not once per vector.
INLINE_INSTRUCTIONS = 12
#: And so is any epilogue of sums this long.
INLINE_PRODUCTS = 128
#: What says where an element stands.
PLACE = ("image", "row", "column", "channel")


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
class Finish:
    """Stores a tile's sums: a row of vectors for each place of a box.

    The function that it is emitted into has the arguments ``out``, and with an epilogue ``extra``,
    ``image``, ``row``, ``column`` and ``channel``: the place of the first element.

    Attributes:
        box: the places.
        out: elements of the result from the first place to each, if there is no epilogue.
        widths: lanes of the vectors of a row; 0 for a scalar.
        dtype: of all.
        products: that a sum has, about.
        epilogue: what is done with the sums; None stores them.
    """

    box: Box
    out: tuple[int, ...]
    widths: tuple[int, ...]
    dtype: DType
    products: int
    epilogue: Epilogue | None

    def arguments(self) -> dict[str, str]:
        """The function's arguments that it needs, and their types."""
        if self.epilogue is None:
            return {"out": "ptr"}
        return {"out": "ptr", "extra": "ptr", **dict.fromkeys(PLACE, "i64")}

    @property
    def columns(self) -> list[int]:
        """Where each vector of a row begins."""
        return [sum(w or 1 for w in self.widths[:j]) for j in range(len(self.widths))]

    @property
    def row(self) -> int:
        """Elements of a row of sums in memory."""
        return sum(w or 1 for w in self.widths)

    def vectors(self) -> list[tuple[int, int]]:
        """Return offset and width of each vector of the sums in memory."""
        return [
            (i * self.row + column, width)
            for i in range(self.box.size)
            for column, width in zip(self.columns, self.widths, strict=True)
        ]

    def emit(self, f: Function, sums: Sequence[Operand], masks: Sequence[Operand | None]) -> None:
        """Emit it, for the masks of a row's vectors."""
        epilogue = self.epilogue
        if epilogue is None:
            self.put(f, sums, masks, "%out")
            return
        state = self.begin(f)
        self.store(f, sums, masks, state, {name: f.argument(name) for name in PLACE})
        self.end(f, state)

    def put(
        self, f: Function, sums: Sequence[Operand], masks: Sequence[Operand | None], out: str
    ) -> None:
        """Emit the stores of sums that have no epilogue, given where the first goes."""
        vectors = iter(sums)
        for offset in self.out:
            for column, mask in zip(self.columns, masks, strict=True):
                f.store(next(vectors), out, offset + column, mask)

    def begin(self, f: Function) -> Any:
        """Emit what all sums of an epilogue share, and return it."""
        return self.epilogue.begin(f) if self.epilogue and self.epilogue.begin else None

    def end(self, f: Function, state: Any) -> None:
        """Emit what is done after the last sums of an epilogue."""
        if self.epilogue and self.epilogue.end:
            self.epilogue.end(f, state)

    def store(
        self,
        f: Function,
        sums: Sequence[Operand],
        masks: Sequence[Operand | None],
        state: Any,
        first: Mapping[str, Index],
    ) -> None:
        """Emit the epilogue of a box of sums, given where its first element stands."""
        epilogue = self.epilogue
        assert epilogue is not None
        # What a loop costs is hidden by long sums, and inlining costs time to compile.
        is_small = self.products < INLINE_PRODUCTS and epilogue.instructions <= INLINE_INSTRUCTIONS
        if is_small or self.box.size <= 2:
            for i, at in enumerate(itertools.product(*map(range, self.box.counts))):
                some = sums[i * len(self.widths) :]
                self._row(f, epilogue, state, self._at(f, first, at), some, masks)
        else:
            self._rows(f, epilogue, state, sums, masks, first)

    def _rows(
        self,
        f: Function,
        epilogue: Epilogue,
        state: object,
        sums: Sequence[Operand],
        masks: Sequence[Operand | None],
        first: Mapping[str, Index],
    ) -> None:
        """Emit the epilogue in loops over the sums, which are in memory for that."""
        total = self.box.size * self.row
        kept = f.at_entry(f"alloca [{total} x {sums[0].scalar_type}], align 64")
        for x, (offset, _) in zip(sums, self.vectors(), strict=True):
            f.store(x, kept, offset)
        images, rows, columns = self.box.counts

        def pixel(i: Index, j: Index, k: Index) -> None:
            number = f.add_index(f.mul_index(f.add_index(f.mul_index(i, rows), j), columns), k)
            start = f.pointer(kept, f.mul_index(number, self.row), self.dtype)
            loaded = [
                f.load(start, column, self.dtype, width)
                for column, width in zip(self.columns, self.widths, strict=True)
            ]
            self._row(f, epilogue, state, self._at(f, first, (i, j, k)), loaded, masks)

        def image(i: Index, _: list[Operand]) -> None:
            def row(j: Index, _: list[Operand]) -> None:
                f.loop(0, columns, 1, [], lambda k, _: pixel(i, j, k))

            f.loop(0, rows, 1, [], row)

        f.loop(0, images, 1, [], image)

    def _at(self, f: Function, first: Mapping[str, Index], at: Sequence[Index]) -> list[Index]:
        """Emit where a place of the box stands: image, row, column, channel."""
        steps = (*self.box.steps, 1)
        return [
            f.add_index(first[name], f.mul_index(i, step))
            for name, i, step in zip(PLACE, (*at, 0), steps, strict=True)
        ]

    def _row(
        self,
        f: Function,
        epilogue: Epilogue,
        state: object,
        at: Sequence[Index],
        sums: Sequence[Operand],
        masks: Sequence[Operand | None],
    ) -> None:
        image, row, column, first = at
        for x, start, width, mask in zip(sums, self.columns, self.widths, masks, strict=False):
            channel = f.add_index(first, start)
            epilogue.store(f, x, Place(image, row, column, channel, width, mask), state)


@dataclass(frozen=True)
class Resumed:
    """Adds a block's sums to those of earlier blocks, until the last is finished.

    The function has the arguments ``partial``, where sums so far are kept, and ``first`` and
    ``last``: whether there are none, and whether no more follow.
    """

    finish: Finish

    @staticmethod
    def arguments() -> dict[str, str]:
        """The function's arguments that it needs, and their types."""
        return {"partial": "ptr noalias", "first": "i1", "last": "i1"}

    def emit(
        self,
        f: Function,
        sums: Sequence[Operand],
        masks: Sequence[Operand | None],
        first: Operand,
        last: Operand,
    ) -> None:
        """Emit it."""
        dtype, vectors = self.finish.dtype, self.finish.vectors()

        def added() -> list[Operand]:
            return [
                f.add(f.load("%partial", offset, dtype, width), x)
                for x, (offset, width) in zip(sums, vectors, strict=True)
            ]

        def keep() -> None:
            for x, (offset, _) in zip(total, vectors, strict=True):
                f.store(x, "%partial", offset)

        total = f.branch(first, lambda: sums, added)
        f.branch(last, lambda: self.finish.emit(f, total, masks), keep)


def call_function(
    f: Function,
    key: Hashable,
    arguments: Mapping[str, str],
    given: Mapping[str, str | Index],
    emit: Callable[[Module], str],
) -> None:
    """Emit a call of a function that is emitted for its first caller.

    Args:
        f: the caller.
        key: what the function is memoised by.
        arguments: its arguments and their types.
        given: pointers, numbers and bools by name; there may be more than it takes.
        emit: adds it to a module and returns its name.
    """
    name = f.module.memo.get(key)
    if name is None:
        name = f.module.memo[key] = emit(f.module)
    values = []
    for argument, kind in arguments.items():
        value = given[argument]
        if isinstance(value, str):
            values.append(f"ptr {value}")
        elif kind == "i1":
            values.append(f"i1 {int(value) if isinstance(value, int) else value.text}")
        else:
            values.append(f.operand(value).typed)
    f.emit(f"call void @{name}({', '.join(values)})")
