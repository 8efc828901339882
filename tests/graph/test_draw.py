"""Pictures of graphs: everything is there, and nothing lies on top of anything else."""

import re
import xml.etree.ElementTree as ET

import numpy as np
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle.graph import trace
from needle.graph.draw import COLOURS, MANY, draw, scopes_of
from needle.graph.layout import GAP_X, apart, layered
from needle.ops.record import Kind

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]


def overlapping(corners, sizes):
    boxes = list(zip(corners, sizes, strict=True))
    return [
        (i, j)
        for i, ((x, y), (w, h)) in enumerate(boxes)
        for j, ((a, b), (v, u)) in enumerate(boxes[:i])
        if x < a + v - 1e-6 and a < x + w - 1e-6 and y < b + u - 1e-6 and b < y + h - 1e-6
    ]


@st.composite
def layouts(draw_):
    count = draw_(st.integers(1, 25))
    extents = st.floats(5, 200)
    sizes = [(draw_(extents), draw_(extents)) for _ in range(count)]
    ends = st.integers(0, count - 1)
    edges = draw_(st.lists(st.tuples(ends, ends).filter(lambda e: e[0] != e[1]), max_size=40))
    return sizes, edges


@settings(max_examples=150, deadline=None)
@given(layouts())
def test_boxes_do_not_overlap_and_lines_run_down(case):
    sizes, edges = case
    layout = layered(sizes, edges)
    assert not overlapping(layout.corners, sizes)
    for (x, y), (w, h) in zip(layout.corners, sizes, strict=True):
        assert -1e-6 <= x <= x + w <= layout.width + 1e-6
        assert -1e-6 <= y <= y + h <= layout.height + 1e-6
    for (a, b), bends in zip(edges, layout.bends, strict=True):
        if a > b:
            continue  # against the order: drawn, but not always downwards
        heights = [layout.corners[a][1], *(y for _, y in bends), layout.corners[b][1]]
        assert heights == sorted(heights)
        assert layout.corners[a][1] + sizes[a][1] < layout.corners[b][1]


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(0.1, 10)), min_size=2, max_size=6),
    st.floats(0, 30),
)
def test_places_are_the_nearest_that_are_apart(items, gap):
    wanted, weights = zip(*items, strict=True)
    gaps = [gap] * (len(wanted) - 1)
    placed = np.array(apart(wanted, weights, gaps))
    assert (np.diff(placed) >= gap - 1e-9).all()

    def cost(x):
        return float((np.array(weights) * (x - np.array(wanted)) ** 2).sum())

    # The problem is convex: no small step that keeps the gaps makes it better.
    rng = np.random.default_rng(0)
    for _ in range(200):
        other = placed + rng.standard_normal(len(placed)) * 10 ** rng.uniform(-4, 1)
        if (np.diff(other) >= gap).all():
            assert cost(other) >= cost(placed) - 1e-6


def test_a_straight_chain_is_drawn_straight():
    layout = layered([(40, 20), (80, 20), (30, 20)], [(0, 1), (1, 2), (0, 2)])
    middles = [x + w / 2 for (x, _), w in zip(layout.corners, (40, 80, 30), strict=True)]
    assert abs(middles[0] - middles[2]) < (80 + GAP_X)
    assert len(layout.bends[2]) == 2
    assert layered([], []).width == 0


def test_all_that_a_graph_has_is_drawn():
    w = ndl.Tensor(np.ones((4, 5), np.float32))

    def function(x):
        total = ndl.sum(ndl.softmax(ndl.relu(ndl.matmul(x, w)) * 2.5), 0)
        w.detach().__imul__(0.5)
        return total, ndl.asarray(1.0)

    svg = trace(function, ndl.ones((3, 4))).graph.draw()
    found = texts(svg)
    assert {"x", "float32[3, 4]", "matmul", "relu", "softmax", "sum", "return"} <= set(found)
    assert "(·, 2.5)" in found
    assert "axes=(0,)" in found
    assert "f32[3, 5]" in found
    assert "overwritten in the end" in svg
    assert "test_draw.py" in svg
    assert set(COLOURS) == set(Kind)


def test_what_many_read_is_written_into_the_boxes():
    def function(x, s):
        return sum(ndl.exp(x + i) * x for i in range(MANY + 1)) * s + s

    svg = trace(function, np.ones((2, 3)), np.ones(())).graph.draw()
    found = texts(svg)
    assert "(x, 1.0)" in found
    assert "(·, s)" in found


def test_names_with_special_characters_are_escaped():
    graph = trace(lambda x: ndl.where(x < 1, x, 0.0), np.ones(3)).graph
    graph.inputs[0].name = "a < b & c"
    assert "return" in texts(graph.draw())
    assert graph._repr_svg_() == graph.draw()


def test_groups_have_frames_around_their_boxes():
    graph = trace(lambda x: ndl.exp(ndl.sin(x) * 2) + ndl.cos(x), np.ones(3)).graph
    first, rest = graph.nodes[:2], graph.nodes[2:]
    svg = draw(graph, [("kernel <0>", first), ("kernel 1", rest)])
    assert {"kernel <0>", "kernel 1"} <= set(texts(svg))
    rects = [
        tuple(float(r.get(k)) for k in ("x", "y", "width", "height"))
        for r in ET.fromstring(svg).iter(f"{SVG}rect")
        if r.get("stroke-dasharray") == "5 3"
    ]
    assert len(rects) == 2
    assert not overlapping([r[:2] for r in rects], [r[2:] for r in rects])
    # Groups that need each other are drawn, too.
    odd = draw(graph, [("a", graph.nodes[::2]), ("b", graph.nodes[1::2])])
    assert {"a", "b"} <= set(texts(odd))


def test_hundred_nodes_stay_apart():
    def function(x):
        parts = [ndl.exp(x * i) / (ndl.sum(x + i, 0) + 1) for i in range(1, 25)]
        return ndl.concat(parts).sum()

    graph = trace(function, np.ones((4, 4))).graph
    assert len(graph.nodes) >= 100
    svg = graph.draw()
    boxes = [
        tuple(float(v) for v in m)
        for m in re.findall(
            r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)" height="([\d.]+)" rx', svg
        )
    ]
    assert len(boxes) == len(graph.nodes) + 2
    assert not overlapping([b[:2] for b in boxes], [b[2:] for b in boxes])


def test_scopes_are_groups():
    from needle import nn

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    graph = trace(lambda x: model(x), np.ones((2, 3), np.float32)).graph
    for name, nodes in scopes_of(graph).items():
        assert all(node.scope and name.startswith(node.scope) for node in nodes)
