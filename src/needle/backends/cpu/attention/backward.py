"""Attention backward: the gradients by queries, keys and values, tile by tile.

Weights come from the scores, computed again, and the kept logarithms of their sums. Blocks of
queries run outside, so that only these are turned; what a tile adds to its keys' gradients is added
in memory. Each element's sum has one order, over heads, queries or keys, whoever computes it.
"""

from __future__ import annotations

from functools import partial

from needle.backends.cpu.attention.blocks import Pass
from needle.backends.cpu.attention.products import emit_accumulate, emit_scores
from needle.backends.cpu.attention.spec import (
    BACKWARD,
    KEY_SLOPE,
    KEYS,
    QUERIES,
    QUERY_SLOPE,
    AttentionSpec,
)
from needle.backends.cpu.attention.weights import emit_slopes
from needle.backends.cpu.gemm.plan import uses_masks
from needle.backends.cpu.gemm.tiling import tile_columns
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction


def backward_bytes(spec: AttentionSpec) -> int:
    """Return the bytes that each task needs to itself."""
    return sum(_parts(spec)) * spec.dtype.itemsize


def _parts(spec: AttentionSpec) -> tuple[int, int, int, int]:
    """Return the elements of turned queries and cotangents, and of two tiles."""
    return spec.width * QUERIES, spec.value_width * QUERIES, KEYS * QUERIES, KEYS * QUERIES


def emit_backward(module: Module, spec: AttentionSpec) -> str:
    """Add ``void name(ptr words, i64 task)`` to the module, once; see `spec.BACKWARD`."""
    key = ("attention backward", spec)
    name = module.memo.get(key)
    if name is None:
        name = module.unique(f"attend_slopes_{spec.width}")
        name = module.memo[key] = _Backward(module, name, spec).emit()
    return name


class _Backward(Pass):
    """Emits the function of a backward pass."""

    def __init__(self, module: Module, name: str, spec: AttentionSpec) -> None:
        f = MathFunction(module, name, {"words": "ptr", "task": "i64"}, inline="noinline")
        super().__init__(f, spec, BACKWARD)
        turned, cotangents, tile, _ = _parts(spec)
        self.queries = self.workspace(0)
        self.cotangents = self.workspace(turned)
        self.scores = self.workspace(turned + cotangents)
        self.slopes = self.workspace(turned + cotangents + tile)

    def emit(self) -> str:
        """Emit the function, and return its name."""
        self.each_item(self._item)
        return self.f.end()

    def _wants(self, item: dict[str, Operand], bit: int, name: str) -> Operand:
        """Return whether an item has to compute a gradient that the caller has a place for."""
        f = self.f
        asked = f.binary("and", item["wants"], f.operand(bit))
        there = f.compare("ne", self.w[name], f.operand(0))
        return f.binary("and", f.compare("ne", asked, f.operand(0)), there)

    def _item(self, item: dict[str, Operand]) -> None:
        f, spec = self.f, self.spec
        wants = {
            name: self._wants(item, bit, name)
            for name, bit in (("dq", QUERY_SLOPE), ("dk", KEY_SLOPE), ("dv", KEY_SLOPE))
        }
        first = f.mul_index(item["key"], KEYS)
        stop = f.min_index(f.mul_index(item["key_stop"], KEYS), self.w["source"])
        count = f.sub_index(stop, first)
        group = {x: self.head(x, item["batch"], item["group"]) for x in ("k", "v", "dk", "dv")}
        for name, width in (("dk", spec.width), ("dv", spec.value_width)):
            start = self.row(name, group[name], first)
            f.branch(wants[name], partial(self._clear, name, start, count, width))

        def head(h: Index, _: list[Operand]) -> None:
            own = {x: self.head(x, item["batch"], h) for x in ("q", "g", "dq", "lse", "delta")}

            def block(first: Index, rows: Operand, vectors: Operand) -> None:
                self._block(item, h, {**group, **own}, wants, first, rows, vectors)

            self.each_query_block(item["query"], item["query_stop"], block)

        f.loop(item["head"], item["head_stop"], 1, [], head)

    def _clear(self, name: str, start: str, rows: Index, width: int) -> None:
        """Emit zeros for rows of a gradient."""
        key = ("attention zeros", self.spec.dtype, width)
        module = self.f.module
        function = module.memo.get(key)
        if function is None:
            function = module.memo[key] = _zeros(module, self.spec, width)
        step = self.w[f"{name}_row"]
        self.f.emit(
            f"call void @{function}(ptr {start}, {step.typed}, {self.f.operand(rows).typed})"
        )

    def _block(
        self,
        item: dict[str, Operand],
        head: Index,
        heads: dict[str, str],
        wants: dict[str, Operand],
        first: Index,
        rows: Operand,
        vectors: Operand,
    ) -> None:
        f, w, spec, dtype = self.f, self.w, self.spec, self.spec.dtype
        at = {x: self.row(x, heads[x], first) for x in ("q", "g", "dq")}
        lse, delta = (f.pointer(heads[x], first, dtype) for x in ("lse", "delta"))
        scale, kept = (f.convert(w.real(x), dtype) for x in ("scale", "kept_scale"))
        last = self.last_key(first, rows)
        f.branch(wants["dq"], lambda: self._clear("dq", at["dq"], rows, spec.width))

        def keys(key: Index, count: Operand) -> None:
            there = {x: self.row(x, heads[x], key) for x in ("k", "v", "dk", "dv")}
            shift = self.shift(first, key)
            for x, depth, panel, tile in (
                ("k", spec.width, self.queries, self.scores),
                ("v", spec.value_width, self.cotangents, self.slopes),
            ):
                rows_of = (there[x], w[f"{x}_row"])
                emit_scores(f, dtype, depth, rows_of, panel, tile, count, vectors, shift)
            call = self.tile_call(item, head, (first, rows, vectors), (key, count))
            tiles, stats = (self.scores, self.slopes), (lse, delta)
            self.by_diagonal(
                key,
                count,
                first,
                lambda is_diagonal: emit_slopes(
                    f, spec, is_diagonal, tiles, stats, (scale, kept), call
                ),
            )
            for name, tile, other, width in (
                ("dv", self.scores, "g", spec.value_width),
                ("dk", self.slopes, "q", spec.width),
            ):
                add = partial(
                    emit_accumulate,
                    f,
                    dtype,
                    tile,
                    (at[other], w[f"{other}_row"]),
                    (there[name], w[f"{name}_row"]),
                    count,
                    width,
                    rows,
                    shift,
                    by_query=False,
                )
                f.branch(wants[name], add)
            f.branch(
                wants["dq"],
                lambda: emit_accumulate(
                    f,
                    dtype,
                    self.slopes,
                    (there["k"], w["k_row"]),
                    (at["dq"], w["dq_row"]),
                    rows,
                    spec.width,
                    count,
                    shift,
                    by_query=True,
                ),
            )

        def seen() -> None:
            self.turn("q", heads["q"], first, rows, spec.width, self.queries)
            self.scale(self.queries, spec.width, vectors)
            self.turn("g", heads["g"], first, rows, spec.value_width, self.cotangents)
            self.each_key_block(item["key"], item["key_stop"], last, keys)

        start = f.operand(f.mul_index(item["key"], KEYS))
        f.branch(f.compare("slt", start, f.operand(last)), seen)


def _zeros(module: Module, spec: AttentionSpec, width: int) -> str:
    arguments = {"start": "ptr", "step": "i64", "rows": "i64"}
    f = Function(module, module.unique(f"zeros_{width}"), arguments, inline="noinline")
    lanes = f.target.lanes(spec.dtype)
    tiling = tile_columns(f, width, lanes, 4, uses_masks(f.target, spec.dtype))

    def row(i: Index, _: list[Operand]) -> None:
        start = f.pointer("%start", f.mul_index(i, f.argument("step")), spec.dtype)

        def tile(_: Index, first: Index, widths: tuple[int, ...], tail: Index) -> None:
            column = first
            for j, lanes in enumerate(widths):
                is_last = j == len(widths) - 1
                mask = f.tail_mask(tail, lanes) if tail != 0 and is_last else None
                f.store(f.constant(0.0, spec.dtype, lanes), start, column, mask)
                column = f.add_index(column, lanes or 1)

        tiling.each(0, tiling.count, tile)

    f.loop(0, f.argument("rows"), 1, [], row)
    return f.end()
