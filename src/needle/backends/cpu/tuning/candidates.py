"""Candidates: plans that a search for a faster kernel tries, the model's choice the first of them.

The plan modules say what there is to choose; this says what of it is worth a try: neighbours of the
model's choice, each of which differs in one decision. None changes a bit of the result, so which
one is taken is a matter of time alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeAlias

from needle.backends.cpu.conv.channel_sums import ChannelSumsPlan
from needle.backends.cpu.conv.channels import ChannelPlan
from needle.backends.cpu.conv.kernel import ConvPlan, Detail, plan_conv, with_detail
from needle.backends.cpu.conv.pair_plan import PairConvPlan, rank_pairs
from needle.backends.cpu.conv.pair_sums_plan import PairSumsPlan
from needle.backends.cpu.conv.plan import DensePlan, Wish as ConvWish, plan_dense
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.conv.sums_plan import DenseSumsPlan, panel_count, plan_dense_sums
from needle.backends.cpu.gemm.kernel import describe
from needle.backends.cpu.gemm.pairs import EDGE, PairPlan
from needle.backends.cpu.gemm.plan import (
    K_BLOCK,
    L1_PANEL,
    SMALL_BLOCKS,
    STREAMED_K,
    Plan,
    Wish,
    is_dot,
    make_plan,
    must_pack_a,
    must_pack_b,
    rank_tiles,
    tasks_of,
    turns_b,
)
from needle.backends.cpu.gemm.spec import GemmSpec
from needle.backends.cpu.gemm.vnni import DEPTH
from needle.backends.cpu.target import Target

#: What a kernel computes whose plan can be chosen, and its plan.
Spec: TypeAlias = GemmSpec | ConvSpec
AnyPlan: TypeAlias = Plan | ConvPlan
#: From what a kernel computes to its plan; None leaves it to the model.
Choose: TypeAlias = "Callable[[Spec], AnyPlan | None]"

#: Most candidates of a kernel.
MOST = 16
#: Bytes of workspaces that a candidate may take more than the model's choice does: a search is for
#: time, and memory is planned by the model.
MORE_WORKSPACE = 1 << 20
#: Rows of C below which a copy of B cannot pay.
FEWEST_PACKED_ROWS = 8


def plan_of(spec: Spec, target: Target, threads: int) -> AnyPlan:
    """Return the model's choice."""
    if isinstance(spec, ConvSpec):
        return plan_conv(spec, target, threads)
    return describe(spec, target, threads=threads).plan


def candidates(
    spec: Spec, target: Target, threads: int, room: int = MORE_WORKSPACE
) -> list[AnyPlan]:
    """Return plans to choose among: the model's choice first, at most `MOST`.

    It stands alone where there is nothing to choose, and where the extents of a product are not
    known.

    Args:
        spec: what is computed.
        target: the processor.
        threads: into about how many tasks it is split.
        room: how many bytes of workspaces a candidate may take more than the model's choice.
    """
    model = plan_of(spec, target, threads)
    others: Iterable[AnyPlan]
    if isinstance(spec, ConvSpec):
        assert isinstance(model, ConvPlan)
        details: Iterable[Detail] = ()
        is_empty = 0 in (*spec.x_shape, *spec.w_shape, *spec.y_shape)
        if model.detail is not None and spec.prologue is None and not is_empty:
            details = _details(spec, model.detail, target, threads)
        others = (with_detail(spec, detail, target) for detail in details)
    else:
        assert isinstance(model, Plan)
        others = () if not _is_known(spec) else _products(spec, model, target, threads)
    most = _workspace(spec, model, target) + room
    found = dict.fromkeys((model, *others))
    fitting = [p for p in found if p is model or _workspace(spec, p, target) <= most]
    return fitting[:MOST]


def _workspace(spec: Spec, plan: AnyPlan, target: Target) -> int:
    """Return the bytes of the workspaces of all tasks."""
    if isinstance(plan, ConvPlan):
        return plan.tasks * plan.workspace
    assert isinstance(spec, GemmSpec)
    lanes = target.lanes(spec.dtype)
    return plan.tasks * plan.workspace_bytes(spec, lanes, spec.m or 0, spec.n or 0)


def _grids(tasks: int, parts: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    """Yield ways to split axes of so many parts each into so many tasks; into one task last."""
    first, second, third = (range(1, min(tasks, n) + 1) for n in parts)
    for grid in itertools.product(first, second, third):
        if math.prod(grid) == tasks:
            yield grid
    yield 1, 1, 1


# Products


def _is_known(spec: GemmSpec) -> bool:
    """Whether there is something to compute, of which all is known, from memory alone."""
    if spec.a.load or spec.b.load:
        return False
    strides = [s for m in (spec.a, spec.b) for s in (m.row, m.column)]
    known = (spec.m, spec.n, spec.k, *spec.batch)
    return None not in (*known, *strides) and 0 not in known and not spec.b.is_packed


def _products(spec: GemmSpec, model: Plan, target: Target, threads: int) -> Iterator[Plan]:
    m, n, k = spec.m or 0, spec.n or 0, spec.k or 0
    batch = math.prod(e or 0 for e in spec.batch)
    lanes = target.lanes(spec.dtype)
    width = EDGE if isinstance(model, PairPlan) else model.vectors * lanes
    parts = (batch, -(-m // model.rows), -(-n // width))
    grids = [replace(model, grid=grid) for grid in _grids(model.tasks, parts)]
    if isinstance(model, PairPlan):
        yield from _pair_products(spec, model, k)
    elif not is_dot(spec) and not turns_b(spec):
        wishes = [Wish(blocking=b) for b in _blockings(spec, m, n, k)]
        if not must_pack_a(spec):
            wishes.append(Wish(pack_a=not model.pack_a))
        tiles = [
            Wish(tile=t) for t in rank_tiles(m, n, k, lanes, target, tasks_of(spec, threads))[1:]
        ]
        # In turns: both lists may be long.
        for wish in _in_turns(tiles, wishes):
            plan = make_plan(spec, target, threads, wish)
            yield plan if threads > 1 else replace(plan, grid=model.grid)
        if model.pack_b is not False:
            for tiles_together in (model.column_tiles // 2, 2 * model.column_tiles):
                if 1 <= tiles_together <= parts[2]:
                    yield replace(model, column_tiles=tiles_together)
    yield from grids


def _in_turns(*lists: Iterable[Wish]) -> Iterator[Wish]:
    """Yield the first of each list, then the second of each."""
    for row in itertools.zip_longest(*lists):
        yield from (item for item in row if item is not None)


def _blockings(spec: GemmSpec, m: int, n: int, k: int) -> Iterator[tuple[int | None, bool]]:
    """Yield lengths of blocks of k, with and without a copy of B."""
    may_read = not must_pack_b(spec)
    may_pack = not may_read or m >= FEWEST_PACKED_ROWS
    if may_read:
        yield None, False
    if may_pack:
        yield None, True
    if k * n * spec.dtype.itemsize <= L1_PANEL:
        return
    lengths = [*SMALL_BLOCKS[1:], STREAMED_K] if may_read else []
    yield from ((length, False) for length in lengths if length < k)
    for blocks in (2, -(-k // K_BLOCK)):
        length = -(-k // blocks)
        if may_pack and length >= 2 * STREAMED_K and blocks > 1:
            yield length + -length % STREAMED_K, True


def _pair_products(spec: GemmSpec, model: PairPlan, k: int) -> Iterator[PairPlan]:
    for columns in (model.column_tiles // 2, 2 * model.column_tiles):
        if 1 <= columns <= -(-(spec.n or 0) // EDGE):
            yield replace(model, column_tiles=columns)
    if model.pack_a is False:
        yield replace(model, pack_a=True)
    blocks = -(-k // model.depth)
    for count in (2 * blocks, 4 * blocks):
        depth = -(-k // count)
        depth += -depth % DEPTH
        if depth < min(k, model.depth):
            yield replace(model, k_block=depth, depth=depth)


# Convolutions


def _details(spec: ConvSpec, model: Detail, target: Target, threads: int) -> Iterator[Detail]:
    if isinstance(model, DensePlan):
        yield from _dense(spec, model, target, threads)
    elif isinstance(model, DenseSumsPlan):
        yield from _dense_sums(spec, model, target, threads)
    elif isinstance(model, ChannelPlan):
        yield from _channels(model)
    elif isinstance(model, ChannelSumsPlan):
        yield from _channel_sums(spec, model)
    elif isinstance(model, PairConvPlan):
        yield from _pairs(spec, model, threads)
    elif isinstance(model, PairSumsPlan):
        yield from _pair_sums(model)


def _dense(spec: ConvSpec, model: DensePlan, target: Target, threads: int) -> Iterator[DensePlan]:
    wishes = [ConvWish(tile=i) for i in range(1, 6)]
    wishes += [ConvWish(block=0.5), ConvWish(block=2.0), ConvWish(block=4.0)]
    wishes += [ConvWish(packs=not model.packs), ConvWish(by_place=not model.by_place)]
    for wish in wishes:
        yield plan_dense(spec, target, threads, wish)
    if model.packs and model.skips:
        yield replace(model, skips=False)
    lanes = target.lanes(spec.dtype)
    parts = model.work.groups if model.split_groups else -(-model.work.outs // lanes)
    for blocks, channels, _ in _grids(model.tasks, (model.blocks, parts, 1)):
        yield replace(model, grid=(blocks, channels))


def _dense_sums(
    spec: ConvSpec, model: DenseSumsPlan, target: Target, threads: int
) -> Iterator[DenseSumsPlan]:
    wishes = [ConvWish(tile=i) for i in range(1, 6)]
    wishes += [ConvWish(parts=2), ConvWish(parts=4), ConvWish(block=0.5), ConvWish(block=2.0)]
    wishes += [ConvWish(packs=not model.packs), ConvWish(copies=not model.copies)]
    for wish in wishes:
        yield plan_dense_sums(spec, target, threads, wish)
    if model.skips:
        yield replace(model, skips=False)
    outs = spec.out_channels // spec.groups
    columns = panel_count(outs, target.lanes(spec.dtype), model.shape.vectors)
    rows = spec.kernel[0] if model.shape.images == 1 else 1
    parts = (spec.groups if model.split_groups else columns, -(-spec.depth // model.channels), rows)
    for first, second, third in _grids(model.tasks, parts):
        yield replace(model, grid=(first, second, third))


def _channels(model: ChannelPlan) -> Iterator[ChannelPlan]:
    for strip in (model.strip - 2, model.strip - 4, model.strip + 2):
        yield replace(model, strip=max(strip, 2))
    for bands in (model.bands // 2, 2 * model.bands, 4 * model.bands):
        if model.grid[0] <= model.work.source[0] * bands:
            yield replace(model, rows=max(-(-model.work.down.extent // max(bands, 1)), 1))


def _channel_sums(spec: ConvSpec, model: ChannelSumsPlan) -> Iterator[ChannelSumsPlan]:
    for strip in (model.strip - 2, model.strip - 4, model.strip + 2):
        yield replace(model, strip=max(strip, 2))
    most = -(-spec.kernel[0] // model.grid[1])
    for rows in range(1, most + 1):
        yield replace(model, kernel_rows=rows)
    for bands in (model.bands // 2, 2 * model.bands):
        if model.copies and 1 <= bands <= model.blocks.bands:
            yield replace(model, bands=bands)


def _pairs(spec: ConvSpec, model: PairConvPlan, threads: int) -> Iterator[PairConvPlan]:
    found = rank_pairs(spec, threads)[1:6]
    yield from found[:2]
    yield replace(model, by_place=not model.by_place)
    if not model.is_line:
        for chunk in (model.chunk // 2, 2 * model.chunk):
            chunk = chunk // model.edge * model.edge
            if chunk and chunk <= 2 * model.places(model.images, model.rows):
                yield replace(model, chunk=chunk)
    if model.across == 2 and model.work.groups == 1:
        # A tile twice as high, of one strip of channels.
        tall = replace(model, down=4, across=1)
        yield replace(tall, chunk=-(-tall.chunk // tall.edge) * tall.edge)
    yield from found[2:]


def _pair_sums(model: PairSumsPlan) -> Iterator[PairSumsPlan]:
    outside = model.strips[1]
    for down, across in ((2, 2), (4, 1), (2, 1), (1, 2)):
        if across <= outside and model.grid[1] <= -(-outside // across):
            yield replace(model, down=down, across=across)
    for items, panels, _ in _grids(model.tasks, (model.items, model.panels, 1)):
        yield replace(model, grid=(items, panels))
