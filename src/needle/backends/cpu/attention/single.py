"""A single query: with one row, the lanes of vectors lie along the features and the keys.

So a score is summed as a matrix times a vector is, in an order that depends on the width only. It
takes a third of the time that tiles take, and about that in which keys and values arrive.
"""

from __future__ import annotations

import math

from needle.backends.cpu.attention.spec import AttentionSpec
from needle.backends.cpu.attention.weights import FACTOR, TOP, TOTAL, larger
from needle.backends.cpu.gemm.dot import DotKernel
from needle.backends.cpu.llvm import Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction

#: Keys whose scores are summed side by side.
SIDE_BY_SIDE = 4

_ARGUMENTS = {
    "query": "ptr",
    "k": "ptr",
    "k_row": "i64",
    "scores": "ptr",
    "stats": "ptr",
    "keys": "i64",
    "mask": "ptr",
    "mask_key": "i64",
}


def emit_single(
    f: MathFunction,
    spec: AttentionSpec,
    query: str,
    k: tuple[str, Index],
    scores: str,
    stats: str,
    keys: Index,
    mask: tuple[str, Index],
) -> None:
    """Emit the call that computes the weights of a block of keys, and adds them to the statistics.

    The sum of the weights stands in a vector, whose lanes are still to be added.

    Args:
        f: where to emit.
        spec: of the attention.
        query: address of the query, multiplied with the factor of all scores.
        k: address of the keys, and elements from one to the next.
        scores: where the weights go, side by side.
        stats: address of the statistics.
        keys: how many keys; all of them are allowed by the causal mask.
        mask: address of the mask, and elements from one key to the next.
    """
    key = ("attention single", spec)
    name = f.module.memo.get(key)
    if name is None:
        name = f.module.memo[key] = _single(f.module, spec)
    given = [f"ptr {query}", f"ptr {k[0]}", f.operand(k[1]).typed, f"ptr {scores}", f"ptr {stats}"]
    given += [f.operand(keys).typed, f"ptr {mask[0]}", f.operand(mask[1]).typed]
    f.emit(f"call void @{name}({', '.join(given)})")


def _single(module: Module, spec: AttentionSpec) -> str:
    f = MathFunction(module, module.unique("single_query"), _ARGUMENTS, inline="noinline")
    dtype, keys = spec.dtype, f.argument("keys")
    lanes = f.target.lanes(dtype)
    _scores(f, spec, keys)
    nothing = f.constant(-math.inf, dtype, lanes)

    def masked(i: Index, tops: list[Operand]) -> list[Operand]:
        exists = f.tail_mask(f.sub_index(keys, i), lanes)
        x = f.load("%scores", i, dtype, lanes)
        if spec.mask is not None:
            m = _mask(f, spec, i, lanes, exists)
            x = f.add(x, m) if m.is_float else f.select(m, x, nothing)
        x = f.select(exists, x, nothing)
        f.store(x, "%scores", i)
        return [larger(f, tops[0], x)]

    (tops,) = f.loop(0, keys, lanes, [nothing], masked)
    old = f.load("%stats", TOP, dtype)
    top = larger(f, old, f.fold(tops, lambda x, y: larger(f, x, y)))
    safe = f.select(f.compare("oeq", top, f.like(-math.inf, top)), f.like(0, top), top)
    factor = f.exp(f.sub(old, safe))
    total = f.mul(f.load("%stats", TOTAL, dtype, lanes), f.splat(factor, lanes))

    def weigh(i: Index, sums: list[Operand]) -> list[Operand]:
        x = f.exp(f.sub(f.load("%scores", i, dtype, lanes), f.splat(safe, lanes)))
        f.store(x, "%scores", i)
        return [f.add(sums[0], x)]

    (total,) = f.loop(0, keys, lanes, [total], weigh)
    for x, at in ((top, TOP), (total, TOTAL), (factor, FACTOR)):
        f.store(x, "%stats", at)
    return f.end()


def _scores(f: MathFunction, spec: AttentionSpec, keys: Operand) -> None:
    """Emit the products of the query with all keys."""
    dtype, step = spec.dtype, f.argument("k_row")

    def some(count: int, first: Index) -> None:
        pointers = {
            "a": f.pointer("%k", f.mul_index(first, step), dtype),
            "b": "%query",
            "c": f.pointer("%scores", first, dtype),
        }
        DotKernel(count, dtype, spec.width, None, 1).call(f, pointers, a_row=step)

    whole = f.mul_index(f.floordiv_index(keys, SIDE_BY_SIDE), SIDE_BY_SIDE)
    f.loop(0, whole, SIDE_BY_SIDE, [], lambda i, _: some(SIDE_BY_SIDE, i))
    f.loop(whole, keys, 1, [], lambda i, _: some(1, i))


def _mask(f: MathFunction, spec: AttentionSpec, key: Index, lanes: int, exists: Operand) -> Operand:
    """Return the mask of a vector of keys."""
    assert spec.mask is not None
    if spec.mask_steps:
        return f.load("%mask", key, spec.mask, lanes, exists)
    step = f.argument("mask_key")
    steps = f.mul(f.iota(step.dtype, lanes), f.splat(step, lanes))
    start = f.pointer("%mask", f.mul_index(key, step), spec.mask)
    return f.gather(start, steps, spec.mask, exists)
