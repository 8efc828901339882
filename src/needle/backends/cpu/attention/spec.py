"""What a generated attention is specialised for, and what it is told when it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from needle import dtypes
from needle.backends.cpu.llvm import Function, Operand
from needle.dtypes import DType
from needle.ops.attention_parts import Options
from needle.ops.samples import Array
from needle.shapes import Shape

#: Queries and keys of a tile. The sums of a row are taken key block by key block, so these decide
#: about bits: they depend on nothing.
QUERIES = 64
KEYS = 64
#: Pairs of queries and keys from which a call is shared by tasks.
PARALLEL_FROM = 1 << 10


@dataclass(frozen=True)
class AttentionSpec:
    """What the code of an attention depends on.

    Attributes:
        dtype: of all floats.
        width: features of a head of queries and keys.
        value_width: features of a head of values.
        causal: whether there is a causal mask.
        mask: dtype of a mask in memory; None if there is none.
        mask_varies: whether the mask differs from query to query.
        mask_steps: whether neighbouring keys of the mask are neighbours in memory.
        drops: whether weights are dropped.
    """

    dtype: DType
    width: int
    value_width: int
    causal: bool = False
    mask: DType | None = None
    mask_varies: bool = False
    mask_steps: bool = False
    drops: bool = False

    @classmethod
    def of(
        cls,
        o: Options,
        dtype: DType,
        width: int,
        value_width: int,
        mask: DType | None,
        numbers: Mapping[str, int],
    ) -> AttentionSpec:
        """Return the specification for the attributes of an op, and the strides of its mask."""
        varies = mask is not None and numbers["mask_query"] != 0
        steps = mask is not None and numbers["mask_key"] == 1
        drops = o.dropout > 0
        return cls(dtype, width, value_width, o.causal, mask, varies, steps, drops)


#: Words of a call that are addresses.
POINTERS = ("items", "bounds", "workspace", "q", "k", "v", "mask", "offset", "state")
FORWARD_POINTERS = ("out", "lse")
BACKWARD_POINTERS = ("g", "lse", "delta", "dq", "dk", "dv")
#: Words that are numbers; strides are in elements. Those of three axes are batch, row, head.
NUMBERS = (
    "bytes",
    "length",
    "source",
    "heads",
    "group",
    "scale",
    "kept_scale",
    "threshold",
    *(f"{x}_{axis}" for x in "qkv" for axis in ("batch", "row", "head")),
    *(f"mask_{axis}" for axis in ("batch", "head", "query", "key")),
    "lse_batch",
    "lse_head",
)
FORWARD_NUMBERS = tuple(f"out_{axis}" for axis in ("batch", "row", "head"))
BACKWARD_NUMBERS = (
    *(f"{x}_{axis}" for x in ("g", "dq", "dk", "dv") for axis in ("batch", "row", "head")),
    "delta_batch",
    "delta_head",
)
FORWARD = (*POINTERS, *FORWARD_POINTERS, *NUMBERS, *FORWARD_NUMBERS)
BACKWARD = (*POINTERS, *BACKWARD_POINTERS, *NUMBERS, *BACKWARD_NUMBERS)

#: Words of an item of work: a batch element, a head of keys, query heads first … stop − 1, blocks
#: of queries and of keys likewise, and which gradients are wanted.
ITEM = ("batch", "group", "head", "head_stop", "query", "query_stop", "key", "key_stop", "wants")
#: What an item wants: dQ; dK and dV.
QUERY_SLOPE, KEY_SLOPE = 1, 2


class Words:
    """What a call was told, in a function that has it as ``%words``."""

    def __init__(self, f: Function, names: Sequence[str]) -> None:
        self._f = f
        self._places = {name: i for i, name in enumerate(names)}
        self._loaded: dict[tuple[str, str], str] = {}

    def _load(self, name: str, kind: str) -> str:
        if (name, kind) not in self._loaded:
            place = self._places[name]
            address = self._f.at_entry(f"getelementptr i64, ptr %words, i64 {place}")
            self._loaded[name, kind] = self._f.at_entry(f"load {kind}, ptr {address}")
        return self._loaded[name, kind]

    def __getitem__(self, name: str) -> Operand:
        """Return a number."""
        return Operand(self._load(name, "i64"), dtypes.int64)

    def pointer(self, name: str) -> str:
        """Return an address."""
        return self._load(name, "ptr")

    def real(self, name: str) -> Operand:
        """Return a number that was given as the bits of a float64."""
        return Operand(self._load(name, "double"), dtypes.float64)


def stride_words(name: str, shape: Shape, strides: Shape) -> dict[str, int]:
    """Return the strides of an operand, in elements, by the names of their words."""
    axes: tuple[str, ...] = ("batch", "row", "head") if len(shape) == 4 else ("batch", "head")
    if name == "mask":
        axes = ("batch", "head", "query", "key")
    elif len(shape) < 3:
        axes = ()
    found = zip(axes, shape, strides, strict=False)
    return {f"{name}_{axis}": 0 if n == 1 else s for axis, n, s in found}


def common_numbers(o: Options, length: int, source: int, heads: int, groups: int) -> dict[str, int]:
    """Return the numbers of a call that its attributes and extents give."""
    return {
        "length": length,
        "source": source,
        "heads": heads,
        "group": heads // groups,
        "scale": _bits(o.scale),
        "kept_scale": _bits(1 / (1 - o.dropout)),
        "threshold": o.threshold,
    }


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


# The work


@dataclass(frozen=True)
class Work:
    """The items of all tasks, one after the other, and where those of each begin."""

    items: Array
    bounds: Array

    @property
    def tasks(self) -> int:
        """How many tasks."""
        return len(self.bounds) - 1


@lru_cache(maxsize=512)
def forward_work(
    batch: int, heads: int, groups: int, length: int, source: int, causal: bool, threads: int
) -> Work:
    """Return the work of a forward pass: blocks of queries, shared by what they cost."""
    blocks = _blocks(length, QUERIES)
    costs = [_key_blocks(i, length, source, causal) + 1 for i in range(blocks)]
    group = heads // groups
    found = []
    for b in range(batch):
        for h in range(heads):
            found += [
                ((b, h // group, h, h + 1, i, i + 1, 0, 0, 0), cost) for i, cost in enumerate(costs)
            ]
    return _shared(found, _tasks(batch * heads * length * source, threads))


@lru_cache(maxsize=512)
def backward_work(
    batch: int,
    heads: int,
    groups: int,
    length: int,
    source: int,
    causal: bool,
    threads: int,
    wants: int,
) -> Work:
    """Return the work of a backward pass.

    An item computes all gradients of a head of keys, unless there are too few heads for the tasks:
    then blocks of queries and blocks of keys are items of their own, which computes weights twice.
    Sums have the same order either way.
    """
    tasks = _tasks(batch * heads * length * source, threads)
    queries, keys = _blocks(length, QUERIES), _blocks(source, KEYS)
    count, group = batch * groups, heads // groups
    pairs = [(b, g) for b in range(batch) for g in range(groups)]
    both = QUERY_SLOPE | KEY_SLOPE
    # Five products of tiles for an item of all, three for queries, four for keys.
    busiest = -(-count // tasks)
    if busiest * tasks * 5 <= count * (7 if wants == both else 6):
        whole = [
            ((b, g, g * group, (g + 1) * group, 0, queries, 0, keys, wants), 1) for b, g in pairs
        ]
        return _shared(whole, tasks)
    costs = [_key_blocks(i, length, source, causal) for i in range(queries)]
    found = []
    if wants & QUERY_SLOPE:
        found += [
            ((b, g, h, h + 1, i, i + 1, 0, keys, QUERY_SLOPE), 3 * costs[i] + 1)
            for b, g in pairs
            for h in range(g * group, (g + 1) * group)
            for i in range(queries)
        ]
    if wants & KEY_SLOPE:
        below = [sum(c > j for c in costs) for j in range(keys)]
        found += [
            (
                (b, g, g * group, (g + 1) * group, 0, queries, j, j + 1, KEY_SLOPE),
                4 * group * below[j] + 1,
            )
            for b, g in pairs
            for j in range(keys)
        ]
    return _shared(found, tasks)


def _tasks(pairs: int, threads: int) -> int:
    return threads if pairs >= PARALLEL_FROM else 1


def _blocks(extent: int, size: int) -> int:
    return -(-extent // size)


def _key_blocks(block: int, length: int, source: int, causal: bool) -> int:
    """Return how many blocks of keys a block of queries attends to."""
    last = min(source, (block + 1) * QUERIES, length) if causal else source
    return _blocks(last, KEYS)


def _shared(found: Sequence[tuple[tuple[int, ...], int]], tasks: int) -> Work:
    """Return items with their costs as tasks of about equal cost, neighbours merged."""
    costs = np.cumsum([cost for _, cost in found]) if found else np.zeros(0, np.int64)
    total = int(costs[-1]) if found else 0
    count = max(1, min(tasks, len(found)))
    # A task begins with the item in whose middle its share does.
    middles = costs - np.array([cost for _, cost in found], np.int64) / 2
    starts = [int(np.searchsorted(middles, total * t / count)) for t in range(count)]
    items: list[tuple[int, ...]] = []
    bounds: list[int] = []
    for i, (item, _) in enumerate(found):
        while len(bounds) < count and starts[len(bounds)] <= i:
            bounds.append(len(items))
            joins = False
        last = items[-1] if items and joins else None
        if last is not None and _continues(last, item):
            items[-1] = (*last[:5], item[5], *last[6:])
        else:
            items.append(item)
        joins = True
    bounds += [len(items)] * (count + 1 - len(bounds))
    rows = np.array(items, np.int64).reshape(-1, len(ITEM))
    return Work(rows, np.array(bounds, np.int64))


def _continues(last: tuple[int, ...], item: tuple[int, ...]) -> bool:
    """Whether an item goes on with the queries of another, all else being equal."""
    same = last[:4] == item[:4] and last[6:] == item[6:]
    return same and last[5] == item[4] and not item[8] & KEY_SLOPE
