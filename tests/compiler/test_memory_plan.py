"""The memory planner: places never overlap, and the arena is nearly as small as it can be."""

import numpy as np
import pytest
from compiler_tools import graph_of
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle.compiler.memory import ALIGNMENT, Buffer, plan_memory
from needle.compiler.schedule import Schedule, Step, schedule
from needle.errors import ArgumentError
from needle.graph import verify


@st.composite
def lives(draw):
    """Buffers of random sizes and lives, some of which may take over the storage of others."""
    buffers = []
    for i in range(draw(st.integers(0, 25))):
        first = draw(st.integers(0, 12))
        last = first + draw(st.integers(0, 6))
        size = draw(st.sampled_from([0, 1, 64, 100, 640, 4096, 5000]))
        ends = tuple(j for j, b in enumerate(buffers) if b.last == first and draw(st.booleans()))
        buffers.append(Buffer(f"b{i}", size, first, last, ends))
    return buffers


def assert_no_overlap(plan):
    spans = list(zip(plan.buffers, plan.offsets, strict=True))
    for i, (a, at) in enumerate(spans):
        assert at % ALIGNMENT == 0
        assert at + a.nbytes <= plan.nbytes
        for j, (b, bt) in enumerate(spans[:i]):
            if not a.meets(b) or at + a.nbytes <= bt or bt + b.nbytes <= at:
                continue
            # In the same place at the same time: one takes over from the other, in one step.
            assert at == bt, (a, b)
            assert (a.first == b.last and j in a.takes_over) or (
                b.first == a.last and i in b.takes_over
            ), (a, b)


@settings(max_examples=300, deadline=None)
@given(lives())
def test_buffers_that_live_together_do_not_overlap(buffers):
    plan = plan_memory(buffers)
    assert_no_overlap(plan)
    assert plan.lower_bound <= plan.nbytes <= sum(b.room for b in buffers)
    assert plan_memory(buffers) == plan


@settings(max_examples=200, deadline=None)
@given(lives())
def test_storage_is_taken_over_by_one_buffer_only(buffers):
    plan = plan_memory(buffers)
    for step in range(plan.steps):
        live = [i for i, b in enumerate(buffers) if b.first <= step <= b.last and b.nbytes]
        for offset in {plan.offsets[i] for i in live}:
            # At most the one that ends and the one that begins.
            same = [i for i in live if plan.offsets[i] == offset]
            assert len(same) <= 2 or len({buffers[i].first for i in same}) > 1
            assert len(same) <= 1 + sum(bool(buffers[i].takes_over) for i in same)


def test_close_to_the_least_possible():
    """Over random programs: on average within 2 % of what lives at once, at most 20 % above."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(60):
        buffers = []
        for i in range(120):
            first = int(rng.integers(0, 100))
            life = int(rng.geometric(0.15))
            buffers.append(Buffer(f"b{i}", int(2 ** rng.uniform(6, 20)), first, first + life))
        plan = plan_memory(buffers)
        assert_no_overlap(plan)
        ratios.append(plan.nbytes / plan.lower_bound)
    assert np.mean(ratios) < 1.02, np.mean(ratios)
    assert max(ratios) < 1.2, max(ratios)


def test_a_chain_in_place_takes_one_buffer():
    chain = [Buffer(f"b{i}", 1000, i, i + 1, (i - 1,) if i else ()) for i in range(10)]
    assert plan_memory(chain).nbytes == 1024
    apart = [Buffer(f"b{i}", 1000, i, i + 1) for i in range(10)]
    assert plan_memory(apart).nbytes == 2048


def test_what_is_still_read_is_not_taken_over():
    x = Buffer("x", 64, 0, 2)
    y = Buffer("y", 64, 1, 2, (0,))
    assert plan_memory([x, y]).nbytes == 128


def test_one_buffer_is_taken_over_once():
    x = Buffer("x", 64, 0, 1)
    y, z = (Buffer(name, 64, 1, 2, (0,)) for name in "yz")
    plan = plan_memory([x, y, z])
    assert plan.nbytes == plan.lower_bound == 128


def test_reports():
    plan = plan_memory([Buffer("x & y", 6400, 0, 3), Buffer("z", 64, 2, 5)])
    assert "x & y" in str(plan)
    assert "6,464 bytes for 2 buffers" in str(plan)
    assert plan.fullest_step == 2
    picture = plan.timeline(width=6, height=10)
    assert picture.splitlines()[-1] == "aaaa"
    svg = plan.draw()
    assert "x &amp; y: 6,400 bytes" in svg
    assert svg.count("<rect") == 3
    assert plan_memory([]).timeline() == "(empty)"
    assert "0 bytes for 0 buffers" in str(plan_memory([]))


def test_bad_buffers_are_refused():
    with pytest.raises(ArgumentError, match="lives from step 3 to 2"):
        plan_memory([Buffer("x", 64, 3, 2)])
    with pytest.raises(ArgumentError, match="does not exist"):
        plan_memory([Buffer("x", 64, 0, 1, (4,))])


# Schedules


@st.composite
def programs(draw):
    """Random steps over inputs a … d, with values that take over inputs."""
    names: list[str] = ["a", "b", "c", "d"]
    steps, sizes = [], {}
    for i in range(draw(st.integers(1, 14))):
        reads = draw(st.lists(st.sampled_from(names), max_size=3))
        write = f"v{i}"
        sizes[write] = draw(st.sampled_from([0, 64, 128, 1024]))
        in_place = tuple(v for v in reads if draw(st.booleans()))
        steps.append(Step(tuple(reads), (write,), {write: in_place}))
        names.append(write)
    values = [v for v in names if v.startswith("v")]
    kept = draw(st.lists(st.sampled_from(values), unique=True, max_size=4))
    donors = draw(st.permutations("abcd"))
    donations = dict(zip(kept, donors, strict=False))
    return steps, sizes, kept, donations


@settings(max_examples=500, deadline=None)
@given(programs())
def test_schedules_keep_what_depends_in_order(program):
    steps, sizes, kept, donations = program
    made = Schedule(steps, sizes, kept, donations)
    order = made.order()
    assert sorted(order) == list(range(len(steps)))
    known = set("abcd")
    overwritten = set()
    for i in order:
        assert set(steps[i].reads) <= known
        assert not set(steps[i].reads) & overwritten, "an input is read after it was overwritten"
        for v in steps[i].writes:
            known.add(v)
            if v in donations and v not in made.copied:
                old = donations[v]
                assert old not in steps[i].reads or old in steps[i].overwrites[v]
                overwritten.add(old)
    assert made.peak(order) <= made.peak(made._in_order())
    assert order == Schedule(steps, sizes, kept, donations).order()
    buffers = made.buffers(order)
    plan = plan_memory(list(buffers.values()), len(order))
    assert_no_overlap(plan)


def test_readers_come_before_the_step_that_overwrites():
    steps = [
        Step(("w", "g"), ("new",), {"new": ("w",)}),
        Step(("w", "x"), ("y",)),
    ]
    made = Schedule(steps, {"y": 64}, ["new", "y"], {"new": "w"})
    assert made.order() == [1, 0]
    assert not made.copied


def test_a_value_that_is_read_afterwards_is_copied_in_the_end():
    steps = [Step(("w",), ("new",), {"new": ("w",)}), Step(("w", "new"), ("y",))]
    assert Schedule(steps, {}, ["new", "y"], {"new": "w"}).copied == {"new"}
    # Not element by element: the step itself still needs the old values.
    alone = [Step(("w",), ("new",))]
    assert Schedule(alone, {}, ["new"], {"new": "w"}).copied == {"new"}


def test_wide_programs_run_branch_by_branch():
    """Ten branches that grow and shrink: one after the other, not all at their widest."""
    small, large = 64, 6400
    steps = [Step(("x",), (f"wide{i}",)) for i in range(10)]
    steps += [Step((f"wide{i}",), (f"narrow{i}",)) for i in range(10)]
    steps.append(Step(tuple(f"narrow{i}" for i in range(10)), ("out",)))
    sizes = {f"wide{i}": large for i in range(10)} | {f"narrow{i}": small for i in range(10)}
    made = Schedule(steps, sizes, ["out"])
    assert made.peak(list(range(21))) > 10 * large
    assert made.peak(made.order()) < large + 11 * small


def test_what_is_made_of_inputs_alone_waits_until_it_is_needed():
    """Weights as kernels want them: not all of them at the start, beside the activations."""
    layers = range(8)
    steps = [Step((f"w{i}",), (f"u{i}",)) for i in layers]
    steps += [Step((f"h{i - 1}" if i else "x", f"u{i}"), (f"h{i}",)) for i in layers]
    sizes = {f"u{i}": 10 for i in layers} | {f"h{i}": 100 for i in layers}
    made = Schedule(steps, sizes, ["h7"])
    order = made.order()
    assert order == [i + part for i in layers for part in (0, len(layers))]
    assert made.peak(range(len(steps))) == 2 * 100 + 7 * 10
    assert made.peak(order) == 2 * 100 + 10


def test_graphs_are_scheduled():
    def function(x):
        wide = [ndl.exp(ndl.broadcast_to(x * i, (100, 10))) for i in range(8)]
        return sum(ndl.sum(w, 0) for w in wide)

    x = np.ones(10, np.float32)
    graph = graph_of(function, x)
    result = verify(schedule(graph))
    assert {id(n) for n in result.nodes} == {id(n) for n in graph.nodes}
    alive = most = 0
    left = {v: len(users) for v, users in result.users().items()}
    for node in result.nodes:
        alive += node.op.name == "exp"
        most = max(most, alive)
        for v in node.inputs:
            left[v] -= v in left
            alive -= bool(v.node is not None and v.node.op.name == "exp" and not left[v])
    assert most == 1
