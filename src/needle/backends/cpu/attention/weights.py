"""What becomes of a tile of scores: masks, the running softmax, dropout, and the way back.

A tile holds keys by queries, the queries along the lanes. Keys come in groups of four: so many have
their random words from one block of the cipher, and their bools in one word of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from needle import dtypes
from needle.backends.cpu.attention.products import TALLEST, not_negative
from needle.backends.cpu.attention.spec import QUERIES, AttentionSpec
from needle.backends.cpu.llvm import Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.ops.random import philox_words

#: Keys that are computed together.
GROUP = 4
#: Places of a query's numbers in the statistics: its maximum, its sum, its factor.
TOP, TOTAL, FACTOR = 0, QUERIES, 2 * QUERIES

#: What the functions of a tile get, besides the tile.
ARGUMENTS = {
    "keys": "i64",  # how many keys
    "rows": "i64",  # how many queries
    "vectors": "i64",  # of queries
    "shift": "i64",  # key r is allowed for query c if r + shift ≤ c
    "mask": "ptr",  # at the tile's first query and key
    "mask_query": "i64",  # elements from one query to the next
    "mask_key": "i64",
    "state": "ptr",  # of a generator
    "block": "i64",  # the cipher's block of the tile's first query and key, from the state's
    "block_row": "i64",  # blocks from one query to the next
    "threshold": "i64",
}


@dataclass(frozen=True)
class TileCall:
    """The arguments of a tile's function, as text; see `ARGUMENTS`."""

    values: dict[str, Index | str]

    def text(self, f: MathFunction) -> str:
        """Return the list of typed arguments."""
        given = []
        for name, kind in ARGUMENTS.items():
            value = self.values[name]
            given.append(f"ptr {value}" if kind == "ptr" else f.operand(value).typed)  # type: ignore[arg-type]
        return ", ".join(given)


class TileFunction:
    """Emits a function over the scores of a tile: what forward and backward passes share.

    Args:
        f: the function; it has `ARGUMENTS`.
        spec: of the attention.
        is_diagonal: whether the causal mask forbids some of the tile.
    """

    def __init__(self, f: MathFunction, spec: AttentionSpec, is_diagonal: bool) -> None:
        self.f = f
        self.spec = spec
        self.is_diagonal = is_diagonal
        self.lanes = f.target.lanes(spec.dtype)
        self.changes = is_diagonal or spec.mask is not None
        self._cipher = self._keys() if spec.drops else []

    def each_vector(self, body: Callable[[Index], None]) -> None:
        """Emit ``body(first query)`` for each vector of queries."""
        vectors = self.f.argument("vectors")
        self.f.loop(0, vectors, 1, [], lambda v, _: body(self.f.mul_index(v, self.lanes)))

    def rows(
        self,
        stop: Operand,
        carried: Sequence[Operand],
        body: Callable[[Index, Operand | None, list[Operand]], list[Operand]],
    ) -> list[Operand]:
        """Emit ``body(first key, how many exist, carried)`` for each group of keys; None: all."""
        f = self.f
        whole = f.mul_index(f.floordiv_index(stop, GROUP), GROUP)
        after = f.loop(0, whole, GROUP, carried, lambda i, c: body(i, None, c))
        left = f.operand(f.sub_index(stop, whole))
        some = f.compare("ne", left, f.operand(0))
        return f.branch(some, lambda: body(whole, left, after), lambda: after)

    def last_key(self, query: Index) -> Operand:
        """Return how many keys are of use to a vector of queries.

        Behind those that the causal mask allows, as many as tiles of sums may take in.
        """
        f, keys = self.f, self.f.argument("keys")
        if not self.is_diagonal:
            return keys
        allowed = f.sub_index(f.add_index(query, self.lanes + TALLEST), f.argument("shift"))
        return not_negative(f, f.min_index(allowed, keys))

    def load(self, tile: str, key: Index, query: Index) -> Operand:
        """Load a vector of a tile."""
        f = self.f
        place = f.add_index(f.mul_index(key, QUERIES), query)
        return f.load(tile, place, self.spec.dtype, self.lanes)

    def store(self, x: Operand, tile: str, key: Index, query: Index) -> None:
        """Store a vector of a tile."""
        f = self.f
        f.store(x, tile, f.add_index(f.mul_index(key, QUERIES), query))

    # Masks

    def scores(self, tile: str, key: Index, query: Index, left: Operand | None) -> list[Operand]:
        """Load the scores of a group of keys: −∞ where the key is forbidden, or does not exist."""
        f = self.f
        found = [self.load(tile, f.add_index(key, t), query) for t in range(GROUP)]
        if self.spec.mask is not None:
            masks = self._mask(key, query, left)
            found = [self._masked(x, m) for x, m in zip(found, masks, strict=True)]
        nothing = f.constant(-math.inf, self.spec.dtype, self.lanes)
        if self.is_diagonal:
            pairs = zip(self.allowed(key, query), found, strict=True)
            found = [f.select(allowed, x, nothing) for allowed, x in pairs]
        if left is not None:
            for t in range(1, GROUP):
                exists = f.compare("slt", f.operand(t), left)
                found[t] = f.select(exists, found[t], nothing)
        return found

    def allowed(self, key: Index, query: Index) -> list[Operand]:
        """Return for which queries the causal mask allows each of a group of keys."""
        f = self.f
        places = f.iota(dtypes.int32, self.lanes)
        first = f.sub_index(f.add_index(key, f.argument("shift")), query)
        least = [f.convert(f.operand(f.add_index(first, t)), dtypes.int32) for t in range(GROUP)]
        return [f.compare("sge", places, f.splat(x, self.lanes)) for x in least]

    def _masked(self, x: Operand, mask: Operand) -> Operand:
        if mask.dtype != dtypes.bool:
            return self.f.add(x, mask)
        return self.f.select(mask, x, self.f.like(-math.inf, x))

    def _mask(self, key: Index, query: Index, left: Operand | None) -> list[Operand]:
        """Return the mask of a group of keys. Of keys that do not exist, that of the last."""
        f, spec = self.f, self.spec
        assert spec.mask is not None
        last = f.sub_index(f.argument("keys"), 1)
        places = [f.add_index(key, t) for t in range(GROUP)]
        if left is not None:
            places = [f.min_index(p, last) for p in places]
        steps = [f.mul_index(p, f.argument("mask_key")) for p in places]
        if not spec.mask_varies:
            found = [f.load("%mask", s, spec.mask) for s in steps]
            return [x if x.dtype == dtypes.bool else f.splat(x, self.lanes) for x in found]
        # Queries in the lanes that do not exist read the mask of the last that does.
        lanes = f.add(f.iota(dtypes.int64, self.lanes), f.splat(f.operand(query), self.lanes))
        final = f.splat(f.operand(f.sub_index(f.argument("rows"), 1)), self.lanes)
        lanes = f.select(f.compare("slt", lanes, final), lanes, final)
        offsets = f.mul(lanes, f.splat(f.argument("mask_query"), self.lanes))
        if left is None and spec.mask == dtypes.bool and spec.mask_steps:
            return self._bools(f.pointer("%mask", steps[0], spec.mask), offsets)
        return [f.gather(f.pointer("%mask", s, spec.mask), offsets, spec.mask) for s in steps]

    def _bools(self, base: str, offsets: Operand) -> list[Operand]:
        """Return the bools of four neighbouring keys: the bytes of a word."""
        f = self.f
        # As bytes: the offsets are not those of words.
        addresses = f.value(f"getelementptr i8, ptr {base}, {offsets.typed}")
        name, kind = f"llvm.masked.gather.v{self.lanes}i32.v{self.lanes}p0", f"<{self.lanes} x i32>"
        mask = f.constant(True, dtypes.bool, self.lanes)
        pointers = f"<{self.lanes} x ptr>"
        f.module.declare(name, kind, [pointers, "i32", mask.type, kind])
        text = f.value(
            f"call {kind} @{name}({pointers} {addresses}, i32 1, {mask.typed}, {kind} "
            "zeroinitializer)"
        )
        words = Operand(text, dtypes.uint32, self.lanes)
        zero = f.like(0, words)
        return [f.compare("ne", f.bit_and(words, 0xFF << 8 * t), zero) for t in range(GROUP)]

    # Dropout

    def _keys(self) -> list[Operand]:
        """Return the start of the stream, its number, and the keys of the cipher's rounds."""
        f = self.f
        words = [f.load("%state", i, dtypes.uint32) for i in range(6)]

        def joined(low: Operand, high: Operand) -> Operand:
            wide = f.convert(high, dtypes.uint64)
            upper = f.binary("shl", wide, f.like(32, wide))
            return f.binary("or", f.convert(low, dtypes.uint64), upper)

        found = [joined(words[2], words[3]), joined(words[4], words[5])]
        for r in range(10):
            for word, step in zip(words[:2], (0x9E3779B9, 0xBB67AE85), strict=True):
                key = f.add(word, f.like(r * step & 0xFFFFFFFF, word))
                found.append(f.convert(key, dtypes.uint64))
        return [f.splat(x, self.lanes) for x in found]

    def kept(self, key: Index, query: Index) -> list[Operand]:
        """Return which weights of a group of keys are kept."""
        f, lanes = self.f, self.lanes
        row = f.argument("block_row")
        first = f.add_index(f.argument("block"), f.mul_index(query, row))
        first = f.add_index(first, f.floordiv_index(key, GROUP))
        steps = f.mul(f.iota(dtypes.int64, lanes), f.splat(row, lanes))
        blocks = f.add(f.splat(f.operand(first), lanes), steps)
        words = philox_words(f, blocks, *self._cipher)
        threshold = f.convert(f.argument("threshold"), dtypes.uint32)
        return [f.compare("uge", w, f.splat(threshold, lanes)) for w in words]


def larger(f: MathFunction, x: Operand, y: Operand) -> Operand:
    """Return the larger score, in one instruction.

    NaN may get lost here; it comes back in the exponentials.
    """
    return f.select(f.compare("ogt", x, y), x, y)


def emit_softmax(f: MathFunction, spec: AttentionSpec, is_diagonal: bool, scores: str, stats: str,
                 call: TileCall) -> None:  # fmt: skip
    """Emit the call that turns the scores of a tile into weights, and adds them to the statistics.

    Weights are relative to the largest score so far of their query. The factor is what must
    multiply what was summed before.
    """
    key = ("attention softmax", spec, is_diagonal)
    name = f.module.memo.get(key)
    if name is None:
        name = f.module.memo[key] = _softmax(f.module, spec, is_diagonal)
    f.emit(f"call void @{name}(ptr {scores}, ptr {stats}, {call.text(f)})")


def _softmax(module: Module, spec: AttentionSpec, is_diagonal: bool) -> str:
    arguments = {"scores": "ptr noalias", "stats": "ptr noalias", **ARGUMENTS}
    f = MathFunction(module, module.unique("softmax_tile"), arguments, inline="noinline")
    tile = TileFunction(f, spec, is_diagonal)
    dtype, lanes = spec.dtype, tile.lanes

    def vector(query: Index) -> None:
        old, total = (f.load("%stats", f.add_index(query, at), dtype, lanes) for at in (TOP, TOTAL))

        def largest(key: Index, left: Operand | None, top: list[Operand]) -> list[Operand]:
            found = tile.scores("%scores", key, query, left)
            if tile.changes or left is not None:
                for t, x in enumerate(found):
                    tile.store(x, "%scores", f.add_index(key, t), query)
            pairs = [larger(f, found[i], found[i + 1]) for i in range(0, GROUP, 2)]
            return [larger(f, top[0], larger(f, *pairs))]

        stop = tile.last_key(query)
        (top,) = tile.rows(stop, [old], largest)
        nothing = f.like(-math.inf, top)
        safe = f.select(f.compare("oeq", top, nothing), f.like(0, top), top)
        factor = f.exp(f.sub(old, safe))

        def weigh(key: Index, sums: list[Operand]) -> list[Operand]:
            found = [tile.load("%scores", f.add_index(key, t), query) for t in range(GROUP)]
            found = [f.exp(f.sub(x, safe)) for x in found]
            (total,) = sums
            for x in found:
                total = f.add(total, x)
            if spec.drops:
                zero = f.like(0, total)
                kept = tile.kept(key, query)
                found = [f.select(k, x, zero) for k, x in zip(kept, found, strict=True)]
            for t, x in enumerate(found):
                tile.store(x, "%scores", f.add_index(key, t), query)
            return [total]

        (total,) = f.loop(0, stop, GROUP, [f.mul(total, factor)], weigh)
        for x, at in ((top, TOP), (total, TOTAL), (factor, FACTOR)):
            f.store(x, "%stats", f.add_index(query, at))

    tile.each_vector(vector)
    return f.end()


def emit_slopes(f: MathFunction, spec: AttentionSpec, is_diagonal: bool, tiles: tuple[str, str],
                rows: tuple[str, str], factors: tuple[Operand, Operand],
                call: TileCall) -> None:  # fmt: skip
    """Emit the call that turns scores and cotangents of weights into weights and dS · scale.

    Args:
        f: where to emit.
        spec: of the attention.
        is_diagonal: whether the causal mask forbids some of the tile.
        tiles: the addresses of scores and of the cotangents of dropped weights.
        rows: the addresses of lse and delta at the tile's first query.
        factors: scale, and what weights that are kept are multiplied by.
        call: the tile.
    """
    key = ("attention slopes", spec, is_diagonal)
    name = f.module.memo.get(key)
    if name is None:
        name = f.module.memo[key] = _slopes(f.module, spec, is_diagonal)
    given = [f"ptr {p}" for p in (*tiles, *rows)] + [x.typed for x in factors]
    f.emit(f"call void @{name}({', '.join(given)}, {call.text(f)})")


def _slopes(module: Module, spec: AttentionSpec, is_diagonal: bool) -> str:
    kind = "float" if spec.dtype == dtypes.float32 else "double"
    arguments = dict.fromkeys(("scores", "slopes", "lse", "delta"), "ptr noalias")
    arguments |= {"scale": kind, "kept_scale": kind, **ARGUMENTS}
    f = MathFunction(module, module.unique("slopes_tile"), arguments, inline="noinline")
    tile = TileFunction(f, spec, is_diagonal)
    dtype, lanes = spec.dtype, tile.lanes
    scale, kept_scale = (f.splat(f.argument(x, dtype), lanes) for x in ("scale", "kept_scale"))

    def vector(query: Index) -> None:
        there = f.tail_mask(f.sub_index(f.argument("rows"), query), lanes)
        lse, delta = (f.load(p, query, dtype, lanes, there) for p in ("%lse", "%delta"))

        def group(key: Index, left: Operand | None, _: list[Operand]) -> list[Operand]:
            weights = [f.exp(f.sub(x, lse)) for x in tile.scores("%scores", key, query, left)]
            kept = tile.kept(key, query) if spec.drops else [None] * GROUP
            allowed = tile.allowed(key, query) if is_diagonal else []
            for t, (p, keep) in enumerate(zip(weights, kept, strict=True)):
                at = f.add_index(key, t)
                d = tile.load("%slopes", at, query)
                if is_diagonal:  # what was not computed, and has the weight 0
                    d = f.select(allowed[t], d, f.like(0, d))
                dropped = p
                if keep is not None:
                    zero = f.like(0, p)
                    d = f.select(keep, f.mul(d, kept_scale), zero)
                    dropped = f.select(keep, f.mul(p, kept_scale), zero)
                slope = f.mul(f.mul(p, f.sub(d, delta)), scale)
                tile.store(slope, "%slopes", at, query)
                tile.store(dropped, "%scores", at, query)
            return []

        tile.rows(tile.last_key(query), [], group)

    tile.each_vector(vector)
    return f.end()
