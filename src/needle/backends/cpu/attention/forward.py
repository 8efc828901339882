"""Attention forward: a block of queries after the other, over all blocks of keys.

A row's sum over the keys goes on from block to block relative to its largest score so far; when
that grows, what was summed before is scaled down.
"""

from __future__ import annotations

import math

from needle.backends.cpu.attention.blocks import Pass
from needle.backends.cpu.attention.products import emit_accumulate, emit_scores
from needle.backends.cpu.attention.single import emit_single
from needle.backends.cpu.attention.spec import FORWARD, KEYS, QUERIES, AttentionSpec
from needle.backends.cpu.attention.weights import FACTOR, TOP, TOTAL, emit_softmax
from needle.backends.cpu.gemm.packing import LINE, prefetch
from needle.backends.cpu.llvm import Index, Module, Operand
from needle.backends.cpu.target import Target
from needle.backends.cpu.vector_math import MathFunction


def forward_bytes(spec: AttentionSpec, target: Target) -> int:
    """Return the bytes that each task needs to itself."""
    return sum(_parts(spec, target)) * spec.dtype.itemsize


def _parts(spec: AttentionSpec, target: Target) -> tuple[int, int, int, int]:
    """Return the elements of turned queries, a tile of scores, sums and statistics."""
    padded = _padded(spec, target)
    return spec.width * QUERIES, KEYS * QUERIES, QUERIES * padded, 3 * QUERIES


def _padded(spec: AttentionSpec, target: Target) -> int:
    lanes = target.lanes(spec.dtype)
    return -(-spec.value_width // lanes) * lanes


def emit_forward(module: Module, spec: AttentionSpec) -> str:
    """Add ``void name(ptr words, i64 task)`` to the module, once; see `spec.FORWARD`."""
    key = ("attention forward", spec)
    name = module.memo.get(key)
    if name is None:
        name = module.unique(f"attend_{spec.width}")
        name = module.memo[key] = _Forward(module, name, spec).emit()
    return name


class _Forward(Pass):
    """Emits the function of a forward pass."""

    def __init__(self, module: Module, name: str, spec: AttentionSpec) -> None:
        f = MathFunction(module, name, {"words": "ptr", "task": "i64"}, inline="noinline")
        super().__init__(f, spec, FORWARD)
        panel, tile, sums, _ = _parts(spec, f.target)
        self.padded = _padded(spec, f.target)
        self.panel = self.workspace(0)
        self.tile = self.workspace(panel)
        self.sums = self.workspace(panel + tile)
        self.stats = self.workspace(panel + tile + sums)

    def emit(self) -> str:
        """Emit the function, and return its name."""
        f = self.f

        def item(at: dict[str, Operand]) -> None:
            q = self.head("q", at["batch"], at["head"])
            k, v = (self.head(x, at["batch"], at["group"]) for x in "kv")
            self.each_query_block(
                at["query"],
                at["query_stop"],
                lambda first, rows, vectors: self._block(at, (q, k, v), first, rows, vectors),
            )

        self.each_item(item)
        return f.end()

    def _block(
        self,
        item: dict[str, Operand],
        heads: tuple[str, str, str],
        first: Index,
        rows: Operand,
        vectors: Operand,
    ) -> None:
        f = self.f
        self._clear(vectors)
        last = self.last_key(first, rows)

        def several() -> None:
            self._several(item, heads, first, rows, vectors, last)

        if self.spec.drops:
            several()
        else:
            # Not of one row in a last block: how a row is computed depends on the length alone.
            is_single = f.compare("eq", self.w["length"], f.operand(1))
            f.branch(is_single, lambda: self._one(item, heads, last), several)
        self._finish(item, first, rows, vectors)

    def _several(
        self,
        item: dict[str, Operand],
        heads: tuple[str, str, str],
        first: Index,
        rows: Operand,
        vectors: Operand,
        last: Index,
    ) -> None:
        """Emit the sums of a block of queries, by tiles."""
        f, w, dtype = self.f, self.w, self.spec.dtype
        q, k, v = heads
        self.turn("q", q, first, rows, self.spec.width, self.panel)
        self.scale(self.panel, self.spec.width, vectors)
        is_few = f.compare("eq", vectors, f.operand(1))

        def keys(key: Index, count: Operand) -> None:
            f.branch(is_few, lambda: self._ask_ahead((k, v), key, last))
            kept = (self.row("k", k, key), w["k_row"])
            shift = self.shift(first, key)
            emit_scores(
                f, dtype, self.spec.width, kept, self.panel, self.tile, count, vectors, shift
            )
            call = self.tile_call(item, item["head"], (first, rows, vectors), (key, count))
            self.by_diagonal(
                key,
                count,
                first,
                lambda is_diagonal: emit_softmax(
                    f, self.spec, is_diagonal, self.tile, self.stats, call
                ),
            )
            self._add(v, key, rows, count, shift, by_query=True)

        self.each_key_block(0, f.floordiv_index(f.add_index(last, KEYS - 1), KEYS), last, keys)

    def _one(self, item: dict[str, Operand], heads: tuple[str, str, str], last: Index) -> None:
        """Emit the sums of a single query."""
        f, w, spec, lanes = self.f, self.w, self.spec, self.lanes
        q, k, v = heads
        factor = f.splat(f.convert(w.real("scale"), spec.dtype), lanes)
        for column in range(0, spec.width, lanes):
            left = spec.width - column
            there = f.tail_mask(left, lanes) if left < lanes else None
            x = f.load(q, column, spec.dtype, lanes, there)
            f.store(f.mul(x, factor), self.panel, column)
        zero = f.operand(0)

        def keys(key: Index, count: Operand) -> None:
            self._ask_ahead((k, v), key, last)
            kept = (self.row("k", k, key), w["k_row"])
            mask: tuple[str, Index] = ("null", zero)
            if spec.mask is not None:
                head = self.head("mask", item["batch"], item["head"], spec.mask)
                place = f.mul_index(key, w["mask_key"])
                mask = (f.pointer(head, place, spec.mask), w["mask_key"])
            emit_single(f, spec, self.panel, kept, self.tile, self.stats, count, mask)
            self._add(v, key, f.operand(1), count, -KEYS, by_query=False)

        self.each_key_block(0, f.floordiv_index(f.add_index(last, KEYS - 1), KEYS), last, keys)
        total = f.load(self.stats, TOTAL, spec.dtype, lanes)
        f.store(f.fold(total, f.add), self.stats, TOTAL)

    def _add(
        self, v: str, key: Index, rows: Operand, count: Operand, shift: Index, *, by_query: bool
    ) -> None:
        """Emit the sums of values by the weights of a tile, added to those of the keys before."""
        f, dtype = self.f, self.spec.dtype
        emit_accumulate(
            f,
            dtype,
            self.tile,
            (self.row("v", v, key), self.w["v_row"]),
            (self.sums, self.padded),
            rows,
            self.spec.value_width,
            count,
            shift,
            by_query=by_query,
            factors=f.pointer(self.stats, FACTOR, dtype),
        )

    def _ask_ahead(self, heads: tuple[str, str], key: Index, last: Index) -> None:
        """Emit hints that the next block of keys and values is soon read.

        For few queries attention takes as long as these take to arrive.
        """
        f, size = self.f, self.spec.dtype.itemsize
        start = f.add_index(key, KEYS)
        stop = f.min_index(f.add_index(start, KEYS), last)
        widths = (self.spec.width, self.spec.value_width)

        def row(i: Index, _: list[Operand]) -> None:
            for name, head, width in zip("kv", heads, widths, strict=True):
                there = self.row(name, head, i)
                for column in range(0, width, LINE // size):
                    prefetch(f, f.pointer(there, column, self.spec.dtype), 2)

        f.loop(start, stop, 1, [], row)

    def _clear(self, vectors: Operand) -> None:
        """Emit the state before the first key: no sum, and no largest score."""
        f, dtype, lanes = self.f, self.spec.dtype, self.lanes
        zero, nothing = (f.constant(x, dtype, lanes) for x in (0.0, -math.inf))
        used = f.mul_index(vectors, lanes)
        f.loop(
            0, f.mul_index(used, self.padded), lanes, [], lambda i, _: f.store(zero, self.sums, i)
        )

        def vector(i: Index, _: list[Operand]) -> None:
            f.store(nothing, self.stats, f.add_index(i, TOP))
            f.store(zero, self.stats, f.add_index(i, TOTAL))

        f.loop(0, used, lanes, [], vector)

    def _finish(
        self, item: dict[str, Operand], first: Index, rows: Operand, vectors: Operand
    ) -> None:
        """Emit the division of the sums by those of the weights, and the logarithms of these."""
        f, w, dtype, lanes = self.f, self.w, self.spec.dtype, self.lanes
        kept = f.splat(f.convert(w.real("kept_scale"), dtype), lanes)
        is_wanted = f.compare("ne", w["lse"], f.operand(0))
        head = self.head("lse", item["batch"], item["head"])
        lse = f.pointer(head, first, dtype)

        def vector(i: Index, _: list[Operand]) -> None:
            query = f.mul_index(i, lanes)
            top, total = (
                f.load(self.stats, f.add_index(query, at), dtype, lanes) for at in (TOP, TOTAL)
            )
            zero = f.like(0, total)
            is_empty = f.compare("oeq", total, zero)
            divisor = f.select(is_empty, f.like(1, total), total)
            f.store(f.div(kept, divisor), self.stats, f.add_index(query, FACTOR))

            def write() -> None:
                log = f.select(is_empty, zero, f.add(top, f.log(divisor)))
                f.store(log, lse, query, f.tail_mask(f.sub_index(rows, query), lanes))

            f.branch(is_wanted, write)

        f.loop(0, vectors, 1, [], vector)
        out = self.row("out", self.head("out", item["batch"], item["head"]), first)

        def row(i: Index, _: list[Operand]) -> None:
            factor = f.splat(f.load(self.stats, f.add_index(i, FACTOR), dtype), lanes)
            sums = f.pointer(self.sums, f.mul_index(i, self.padded), dtype)
            there = f.pointer(out, f.mul_index(i, w["out_row"]), dtype)
            width = self.spec.value_width
            for column in range(0, width, lanes):
                x = f.mul(f.load(sums, column, dtype, lanes), factor)
                left = width - column
                f.store(x, there, column, f.tail_mask(left, lanes) if left < lanes else None)

        # A program may want the logarithms alone.
        is_out_wanted = f.compare("ne", w["out"], f.operand(0))
        f.branch(is_out_wanted, lambda: f.loop(0, rows, 1, [], row))
