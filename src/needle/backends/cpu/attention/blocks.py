"""What forward and backward passes share: heads in memory, turned queries, the loop over tiles."""

from __future__ import annotations

from collections.abc import Callable

from needle import dtypes
from needle.backends.cpu.attention.products import not_negative
from needle.backends.cpu.attention.spec import ITEM, KEYS, QUERIES, AttentionSpec, Words
from needle.backends.cpu.attention.weights import TileCall
from needle.backends.cpu.gemm.packing import turn
from needle.backends.cpu.gemm.tiling import max_index
from needle.backends.cpu.llvm import Index, Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType


class Pass:
    """Emits a pass over the items of a task, as a function that has ``%words`` and ``%task``.

    Args:
        f: the function.
        spec: of the attention.
        names: of the words.
    """

    def __init__(self, f: MathFunction, spec: AttentionSpec, names: tuple[str, ...]) -> None:
        self.f = f
        self.spec = spec
        self.w = Words(f, names)
        self.lanes = f.target.lanes(spec.dtype)
        self.offset = self._offset() if spec.causal else f.operand(0)

    def _offset(self) -> Operand:
        """Return the offset of the causal mask, not beyond where it makes a difference."""
        f, w = self.f, self.w
        pointer = w.pointer("offset")

        def given() -> list[Operand]:
            low = max_index(f, f.load(pointer, 0, dtypes.int64), f.sub_index(0, w["length"]))
            return [f.operand(f.min_index(low, w["source"]))]

        is_given = f.compare("ne", w["offset"], f.operand(0))
        return f.branch(is_given, given, lambda: [f.operand(0)])[0]

    def workspace(self, elements: int) -> str:
        """Return the address of a place in the task's memory."""
        f, w = self.f, self.w
        own = f.mul_index(f.argument("task"), w["bytes"])
        base = f.pointer(w.pointer("workspace"), own, dtypes.uint8)
        return f.pointer(base, elements, self.spec.dtype)

    def each_item(self, body: Callable[[dict[str, Operand]], None]) -> None:
        """Emit ``body(item)`` for each item of the task."""
        f = self.f
        bounds = self.w.pointer("bounds")
        task = f.argument("task")
        start, stop = (f.load(bounds, f.add_index(task, i), dtypes.int64) for i in range(2))

        def item(i: Index, _: list[Operand]) -> None:
            first = f.mul_index(i, len(ITEM))
            pointer = f.pointer(self.w.pointer("items"), first, dtypes.int64)
            body({name: f.load(pointer, j, dtypes.int64) for j, name in enumerate(ITEM)})

        f.loop(start, stop, 1, [], item)

    def head(self, name: str, batch: Index, head: Index, dtype: DType | None = None) -> str:
        """Return the address of a head of an operand."""
        f, w = self.f, self.w
        place = f.add_index(
            f.mul_index(batch, w[f"{name}_batch"]), f.mul_index(head, w[f"{name}_head"])
        )
        return f.pointer(w.pointer(name), place, dtype or self.spec.dtype)

    def row(self, name: str, head: str, number: Index) -> str:
        """Return the address of a row of a head."""
        return self.f.pointer(
            head, self.f.mul_index(number, self.w[f"{name}_row"]), self.spec.dtype
        )

    def each_query_block(
        self, start: Index, stop: Index, body: Callable[[Index, Operand, Operand], None]
    ) -> None:
        """Emit ``body(first query, how many, vectors of them)`` for blocks of queries."""
        f = self.f

        def block(i: Index, _: list[Operand]) -> None:
            first = f.mul_index(i, QUERIES)
            rows = f.operand(f.min_index(f.sub_index(self.w["length"], first), QUERIES))
            vectors = f.floordiv_index(f.add_index(rows, self.lanes - 1), self.lanes)
            body(first, rows, f.operand(vectors))

        f.loop(start, stop, 1, [], block)

    def last_key(self, first: Index, rows: Index) -> Index:
        """Return how many keys a block of queries attends to, at most."""
        f = self.f
        if not self.spec.causal:
            return self.w["source"]
        seen = f.add_index(f.add_index(first, rows), self.offset)
        return f.min_index(not_negative(f, seen), self.w["source"])

    def each_key_block(
        self, start: Index, stop: Index, last: Index, body: Callable[[Index, Operand], None]
    ) -> None:
        """Emit ``body(first key, how many)`` for blocks of keys, up to key ``last``."""
        f = self.f
        most = f.floordiv_index(f.add_index(last, KEYS - 1), KEYS)

        def block(j: Index, _: list[Operand]) -> None:
            first = f.mul_index(j, KEYS)
            body(first, f.operand(f.min_index(f.sub_index(last, first), KEYS)))

        f.loop(start, f.min_index(stop, most), 1, [], block)

    def turn(
        self, name: str, head: str, first: Index, rows: Operand, width: int, panel: str
    ) -> None:
        """Emit the turning of a block of rows: feature by feature, the rows along the lanes."""
        f, w = self.f, self.w

        def vector(i: Index, _: list[Operand]) -> None:
            source = self.row(name, head, f.add_index(first, i))
            count = f.min_index(f.sub_index(rows, i), self.lanes)
            target = f.pointer(panel, i, self.spec.dtype)
            given = (source, self.spec.dtype, w[f"{name}_row"])
            turn(f, given, (target, QUERIES), width, count)

        f.loop(0, rows, self.lanes, [], vector)

    def scale(self, panel: str, width: int, vectors: Operand) -> None:
        """Emit the product of turned queries with the factor of all scores."""
        f, dtype = self.f, self.spec.dtype
        factor = f.splat(f.convert(self.w.real("scale"), dtype), self.lanes)

        def row(d: Index, _: list[Operand]) -> None:
            start = f.pointer(panel, f.mul_index(d, QUERIES), dtype)

            def vector(i: Index, _: list[Operand]) -> None:
                place = f.mul_index(i, self.lanes)
                f.store(f.mul(f.load(start, place, dtype, self.lanes), factor), start, place)

            f.loop(0, vectors, 1, [], vector)

        f.loop(0, width, 1, [], row)

    def shift(self, first: Index, key: Index) -> Index:
        """Return how far the first key of a tile stands behind what its first query may see."""
        f = self.f
        if not self.spec.causal:
            return -KEYS
        return f.sub_index(f.sub_index(key, first), self.offset)

    def tile_call(
        self,
        item: dict[str, Operand],
        head: Index,
        queries: tuple[Index, Index, Index],
        keys: tuple[Index, Index],
    ) -> TileCall:
        """Return the arguments of a tile's functions.

        Args:
            item: of work.
            head: number of the head.
            queries: first, how many, and vectors of them.
            keys: first, and how many.
        """
        f, w = self.f, self.w
        batch, (first, rows, vectors), (key, count) = item["batch"], queries, keys
        values: dict[str, Index | str] = {"keys": count, "rows": rows, "vectors": vectors}
        values["shift"] = self.shift(first, key)
        values |= {"mask": "null", "mask_query": 0, "mask_key": 0}
        if self.spec.mask is not None:
            place = f.add_index(
                f.mul_index(first, w["mask_query"]), f.mul_index(key, w["mask_key"])
            )
            start = self.head("mask", batch, head, self.spec.mask)
            values["mask"] = f.pointer(start, place, self.spec.mask)
            values |= {"mask_query": w["mask_query"], "mask_key": w["mask_key"]}
        values |= {"state": "null", "block": 0, "block_row": 0, "threshold": 0}
        if self.spec.drops:
            step = f.floordiv_index(f.add_index(w["source"], 3), 4)
            row = f.add_index(f.mul_index(batch, w["heads"]), head)
            row = f.add_index(f.mul_index(row, w["length"]), first)
            values["state"] = w.pointer("state")
            values["block"] = f.add_index(f.mul_index(row, step), f.floordiv_index(key, 4))
            values |= {"block_row": step, "threshold": w["threshold"]}
        return TileCall(values)

    def by_diagonal(
        self, key: Index, count: Index, first: Index, emit: Callable[[bool], None]
    ) -> None:
        """Emit a tile's function with or without the causal mask, as the tile needs it."""
        f = self.f
        if not self.spec.causal:
            emit(False)
            return
        last = f.operand(f.sub_index(f.add_index(key, count), 1))
        seen = f.operand(f.add_index(first, self.offset))
        f.branch(f.compare("sgt", last, seen), lambda: emit(True), lambda: emit(False))
