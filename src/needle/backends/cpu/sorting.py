"""Sorting of unsigned keys with their places: functions that kernels call for a line.

All keep equal keys in order. A few elements are sorted by insertion; many by radix, digit by digit
from the lowest, leaving out digits that are the same in all keys; a few of the smallest among many
are kept in a list while the others pass by.
"""

from __future__ import annotations

from needle import dtypes
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module
from needle.backends.cpu.operands import Index, Operand
from needle.dtypes import DType

#: Elements up to which insertion is the faster way.
FEW = 40
_BUCKETS = 256
_PLACE = dtypes.uint32


def insertion_sort(module: Module, dtype: DType) -> str:
    """Return the name of ``void sort(ptr keys, ptr places, i64 n)``, n ≥ 1: both in place."""
    name = module.memo.get(("insertion", dtype))
    if name is not None:
        return name
    f = _function(module, f"insertion_{dtype.name}", "keys", "places")

    def insert(i: Index, _: list[Operand]) -> None:
        key = f.load("%keys", i, dtype)
        _insert(f, dtype, f.operand(i), key, f.load("%places", i, _PLACE))

    f.loop(1, f.argument("n"), 1, [], insert)
    return _done(module, ("insertion", dtype), f)


def radix_sort(module: Module, dtype: DType) -> str:
    """Return the name of ``void sort(ptr keys, ptr places, i64 n)`` for n < 2³¹.

    Both have room for 2·n elements; the sorted ones are the first n.
    """
    name = module.memo.get(("radix", dtype))
    if name is not None:
        return name
    f = _function(module, f"radix_{dtype.name}", "keys", "places")
    digits = dtype.itemsize
    n = f.argument("n")
    counts = f.at_entry(f"alloca [{digits * _BUCKETS} x i32], align 64")
    zero = f.constant(0, _PLACE, 16)
    f.loop(0, digits * _BUCKETS, 16, [], lambda i, _: f.store(zero, counts, i))

    def bucket(key: Operand, digit: int) -> Operand:
        moved = f.binary("lshr", key, f.like(8 * digit, key)) if digit else key
        low = f.binary("and", moved, f.like(_BUCKETS - 1, moved))
        return f.convert(low, dtypes.int64)

    def bump(place: Index) -> Operand:
        old = f.load(counts, place, _PLACE)
        f.store(f.add(old, f.like(1, old)), counts, place)
        return old

    def count(i: Index, _: list[Operand]) -> None:
        key = f.load("%keys", i, dtype)
        for digit in range(digits):
            bump(f.add_index(bucket(key, digit), digit * _BUCKETS))

    f.loop(0, n, 1, [], count)
    start: Operand = f.constant(0, dtypes.int64)
    first = f.load("%keys", 0, dtype)
    for digit in range(digits):
        base = digit * _BUCKETS
        same = f.load(counts, f.add_index(bucket(first, digit), base), _PLACE)
        varies = f.compare("ne", f.convert(same, dtypes.int64), n)

        def move(base: int = base, digit: int = digit, start: Operand = start) -> list[Operand]:
            def turn(i: Index, total: list[Operand]) -> list[Operand]:
                here = f.add_index(i, base)
                size = f.load(counts, here, _PLACE)
                f.store(total[0], counts, here)
                return [f.add(total[0], size)]

            f.loop(0, _BUCKETS, 1, [f.constant(0, _PLACE)], turn)
            target = f.sub(n, start)

            def place(i: Index, _: list[Operand]) -> None:
                source = f.add_index(start, i)
                key = f.load("%keys", source, dtype)
                rank = bump(f.add_index(bucket(key, digit), base))
                to = f.add_index(target, f.convert(rank, dtypes.int64))
                f.store(key, "%keys", to)
                f.store(f.load("%places", source, _PLACE), "%places", to)

            f.loop(0, n, 1, [], place)
            return [target]

        (start,) = f.branch(varies, move, lambda start=start: [start])  # type: ignore[misc]

    def home(i: Index, _: list[Operand]) -> None:
        f.store(f.load("%places", f.add_index(start, i), _PLACE), "%places", i)

    f.branch(f.compare("ne", start, f.like(0, start)), lambda: f.loop(0, n, 1, [], home))
    return _done(module, ("radix", dtype), f)


def smallest(module: Module, dtype: DType, count: int) -> str:
    """Return the name of ``void select(ptr keys, ptr places, i64 n)`` for n ≥ ``count`` ≥ 1.

    The first ``count`` elements of both become the smallest, in order; the others are lost. The
    places must be 0 to n − 1.
    """
    what = ("smallest", dtype, count)
    name = module.memo.get(what)
    if name is not None:
        return name
    f = _function(module, f"smallest{count}_{dtype.name}", "keys", "places")
    lanes = f.target.lanes(dtype)
    n = f.argument("n")

    def insert(i: Index, _: list[Operand]) -> None:
        key = f.load("%keys", i, dtype)
        _insert(f, dtype, f.operand(i), key, f.load("%places", i, _PLACE))

    f.loop(1, count, 1, [], insert)
    last = f.constant(count - 1, dtypes.int64)

    def offer(i: Index, _: list[Operand]) -> None:
        key = f.load("%keys", i, dtype)
        worst = f.load("%keys", last, dtype)

        def replace() -> None:
            _insert(f, dtype, last, key, f.convert(f.operand(i), _PLACE))

        f.branch(f.compare("ult", key, worst), replace)

    def offer_many(i: Index, _: list[Operand]) -> None:
        keys = f.load("%keys", i, dtype, lanes)
        worst = f.splat(f.load("%keys", last, dtype), lanes)
        any_better = f.any(f.compare("ult", keys, worst))
        f.branch(any_better, lambda: f.loop(i, f.add_index(i, lanes), 1, [], offer))

    whole = f.mul_index(f.floordiv_index(f.sub_index(n, count), lanes), lanes)
    end = f.add_index(whole, count)
    f.loop(count, end, lanes, [], offer_many)
    f.loop(end, n, 1, [], offer)
    return _done(module, what, f)


def _insert(f: Function, dtype: DType, last: Operand, key: Operand, place: Operand) -> None:
    """Insert a key before the larger ones among those in front of ``last``, which is overwritten.

    The first steps of the loop move the larger keys up, its last one stores the new one.
    """

    def step(state: list[Operand]) -> tuple[Operand, list[Operand]]:
        (at,) = state
        zero, one = f.like(0, at), f.like(1, at)
        has_more = f.compare("ne", at, zero)
        before = f.select(has_more, f.sub(at, one), zero)
        other = f.load("%keys", before, dtype)
        moves = f.binary("and", has_more, f.compare("ugt", other, key))
        f.store(f.select(moves, other, key), "%keys", at)
        f.store(f.select(moves, f.load("%places", before, _PLACE), place), "%places", at)
        return moves, [before]

    f.repeat([last], step)


def _function(module: Module, name: str, *pointers: str) -> Function:
    arguments = {**dict.fromkeys(pointers, "ptr noalias"), "n": "i64"}
    return Function(module, module.unique(name), arguments, inline="noinline")


def _done(module: Module, what: object, f: Function) -> str:
    module.memo[what] = name = f.end()
    return name
