"""Draw a graph as SVG: ops as boxes coloured by their kind, values as lines with their shapes.

Numbers and scalars, and values that very many ops read, are written into the boxes that read them:
their lines would hide all others. Each box tells more when pointed at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from needle.graph.ir import Graph, Node, Value
from needle.graph.layout import Layout, Point, layered
from needle.graph.text import Names, node_text, spec_text
from needle.ops.record import Kind

#: Fill and border of each kind of op.
COLOURS: dict[Kind, tuple[str, str]] = {
    Kind.ELEMENTWISE: ("#dcebfa", "#5b8fc7"),
    Kind.REDUCTION: ("#fde3cf", "#d98032"),
    Kind.NORMALIZATION: ("#fdf0c4", "#c29a1c"),
    Kind.MOVEMENT: ("#ececec", "#8d8d8d"),
    Kind.CONTRACTION: ("#dbf0d8", "#4f9a49"),
    Kind.INDEXING: ("#e7def5", "#8562bd"),
    Kind.SCAN: ("#d6f0ee", "#37938c"),
    Kind.RANDOM: ("#fbdce6", "#c9507a"),
    Kind.ATTENTION: ("#e9f2c8", "#7d9420"),
    Kind.CONTROL: ("#e3e6f7", "#5660b8"),
}
_INPUT = ("#ffffff", "#444444")
_OUTPUT = ("#444444", "#444444")

#: A value that more ops read is written into their boxes instead of drawn as lines.
MANY = 6

_CHARACTER, _LINE, _PADDING, _TITLE = 6.1, 14.0, 7.0, 18.0


@dataclass
class _Box:
    """A rectangle with lines of text, at a place relative to its frame."""

    lines: list[str]
    colours: tuple[str, str]
    hint: str
    node: Node | None = None
    is_state: bool = False
    at: Point = (0.0, 0.0)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        width = max(len(line) for line in self.lines) * _CHARACTER + 2 * _PADDING
        return max(width, 34.0), len(self.lines) * _LINE + 8.0


@dataclass
class _Frame:
    """Boxes that are laid out together: a group, or a single box without a frame."""

    title: str
    boxes: list[int]
    layout: Layout = field(default_factory=lambda: Layout([], [], 0.0, 0.0))
    edges: list[tuple[int, int]] = field(default_factory=list)
    at: Point = (0.0, 0.0)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        if not self.title:
            return self.layout.width, self.layout.height
        wide = max(self.layout.width, len(self.title) * _CHARACTER) + 2 * _PADDING
        return wide, self.layout.height + _TITLE + _PADDING


def draw(graph: Graph, groups: Sequence[tuple[str, Collection[Node]]] = ()) -> str:
    """Return ``graph`` as SVG.

    Args:
        graph: what to draw; readable up to some hundred nodes.
        groups: names and nodes of groups, which get a frame each: kernels, for instance.

    Example:
        >>> from needle.graph import trace
        >>> from needle.graph.draw import draw
        >>> svg = draw(trace(lambda x: ndl.exp(x) * 2, ndl.zeros(3)).graph)
        >>> svg[:4], "exp" in svg
        ('<svg', True)
    """
    return _Drawing(graph, groups).svg()


class _Drawing:
    def __init__(self, graph: Graph, groups: Sequence[tuple[str, Collection[Node]]]) -> None:
        self.graph = graph
        self.names = Names()
        for value in graph.inputs:
            self.names[value]  # arguments keep their names
        self.boxes: list[_Box] = []
        self.box_of: dict[Value, int] = {}
        #: Upper box, lower box, the value between them.
        self.edges: list[tuple[int, int, Value]] = []
        self._users = graph.users()
        self._add_boxes()
        self.frames = self._frames(groups)
        self._arrange()

    # Boxes

    def _is_written(self, value: Value) -> bool:
        """Whether a value is written into the boxes that read it."""
        if value.constant is not None:
            return True
        users = len(self._users.get(value, ()))
        return users > (1 if value.size == 1 else MANY)

    def _add(self, box: _Box) -> int:
        self.boxes.append(box)
        return len(self.boxes) - 1

    def _add_boxes(self) -> None:
        overwritten = {self.graph.inputs[i] for i in self.graph.donations.values()}
        for value in self.graph.inputs:
            name = self.names[value]
            lines = [name, spec_text(value)]
            hint = f"{name}: {spec_text(value)}"
            if value in overwritten:
                hint += ", overwritten in the end"
            self.box_of[value] = self._add(_Box(lines, _INPUT, hint, is_state=value in overwritten))
        for node in self.graph.nodes:
            number = self._add(self._node_box(node))
            for value in dict.fromkeys(node.inputs):
                if not self._is_written(value):
                    self.edges.append((self.box_of[value], number, value))
            for value in node.results:
                self.box_of[value] = number
        for i, value in enumerate(self.graph.outputs):
            place = self.graph.donations.get(i)
            if place is None:
                label = f"return {self.names[value]}" if value.constant is not None else "return"
            else:
                label = f"{self.names[self.graph.inputs[place]]}[...] ="
            number = self._add(_Box([label], _OUTPUT, f"{label} {self.names[value]}"))
            if value.constant is None:
                self.edges.append((self.box_of[value], number, value))

    def _node_box(self, node: Node) -> _Box:
        lines = [node.op.name]
        if any(self._is_written(v) for v in node.inputs):
            shown = [self.names[v] if self._is_written(v) else "·" for v in node.inputs]
            lines.append(f"({', '.join(shown)})")
        if any(self._is_written(v) for v in node.results):
            lines[0] = f"{', '.join(self.names[v] for v in node.results)} = {lines[0]}"
        lines += [_short(f"{key}={value}") for key, value in node.attrs.items()]
        hint = [node_text(node, self.names)]
        hint += [f"from {node.location}"] if node.location else []
        hint += [f"in {node.scope}"] if node.scope else []
        hint += ["in the backward pass"] if node.is_backward else []
        return _Box(lines, COLOURS[node.op.kind], "\n".join(hint), node)

    def _frames(self, groups: Sequence[tuple[str, Collection[Node]]]) -> list[_Frame]:
        member_of = {id(n): i for i, (_, members) in enumerate(groups) for n in members}
        framed: dict[int, _Frame] = {}
        frames = []
        for number, box in enumerate(self.boxes):
            group = None if box.node is None else member_of.get(id(box.node))
            if group is None:
                frames.append(_Frame("", [number]))
            elif group in framed:
                framed[group].boxes.append(number)
            else:
                framed[group] = _Frame(groups[group][0], [number])
                frames.append(framed[group])
        return frames

    # Places

    def _arrange(self) -> None:
        frame_of = {number: i for i, f in enumerate(self.frames) for number in f.boxes}
        self.routes: dict[int, list[Point]] = {}
        for frame in self.frames:
            place = {number: i for i, number in enumerate(frame.boxes)}
            inner = [i for i, (a, b, _) in enumerate(self.edges) if a in place and b in place]
            frame.edges = [(place[self.edges[i][0]], place[self.edges[i][1]]) for i in inner]
            frame.layout = layered([self.boxes[n].size for n in frame.boxes], frame.edges)
            for i, bends in zip(inner, frame.layout.bends, strict=True):
                self.routes[i] = bends
        outer = [i for i in range(len(self.edges)) if i not in self.routes]
        pairs = [(frame_of[self.edges[i][0]], frame_of[self.edges[i][1]]) for i in outer]
        order = _topological(len(self.frames), pairs)
        self.frames = [self.frames[i] for i in order]
        place_of = {old: new for new, old in enumerate(order)}
        frame_of = {number: place_of[i] for number, i in frame_of.items()}
        pairs = [(place_of[a], place_of[b]) for a, b in pairs]
        whole = layered([f.size for f in self.frames], pairs)
        self.width, self.height = whole.width, whole.height
        for frame, (x, y) in zip(self.frames, whole.corners, strict=True):
            frame.at = x, y
            slack = (frame.size[0] - frame.layout.width) / 2
            inner_x, inner_y = x + slack, y + (_TITLE if frame.title else 0.0)
            for number, (dx, dy) in zip(frame.boxes, frame.layout.corners, strict=True):
                self.boxes[number].at = inner_x + dx, inner_y + dy
        for i in self.routes:
            frame = self.frames[frame_of[self.edges[i][0]]]
            x, y = frame.at
            x += (frame.size[0] - frame.layout.width) / 2
            y += _TITLE if frame.title else 0.0
            self.routes[i] = [(a + x, b + y) for a, b in self.routes[i]]
        for i, bends in zip(outer, whole.bends, strict=True):
            self.routes[i] = bends

    # SVG

    def svg(self) -> str:
        margin, legend = 16.0, 30.0
        width = max(self.width, 8 * 92.0) + 2 * margin
        height = self.height + 2 * margin + legend
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="Helvetica, Arial, sans-serif" '
            'font-size="11" fill="#222">',
            '<rect width="100%" height="100%" fill="white"/>',
            _legend(margin),
            f'<g transform="translate({margin:.0f} {margin + legend:.0f})">',
            *(_frame_svg(f) for f in self.frames if f.title),
            *self._lines(),
            *(_box_svg(b) for b in self.boxes),
            "</g></svg>",
        ]
        return "\n".join(parts)

    def _lines(self) -> list[str]:
        outgoing = self._ports([(a, i) for i, (a, _, _) in enumerate(self.edges)], 0)
        incoming = self._ports([(b, i) for i, (_, b, _) in enumerate(self.edges)], 1)
        parts = []
        labelled: set[Value] = set()
        for i, (_, b, value) in enumerate(self.edges):
            points = [outgoing[i], *self.routes[i], incoming[i]]
            hint = escape(f"{self.names[value]}: {spec_text(value)}")
            parts.append(
                f'<path d="{_curve(points)}" fill="none" stroke="#999" stroke-width="1.1">'
                f"<title>{hint}</title></path>"
            )
            x, y = points[-1]
            parts.append(f'<path d="M{x:.1f} {y:.1f}l-3 -6h6z" fill="#777"/>')
            if value.node is not None and value not in labelled and self.boxes[b].lines:
                labelled.add(value)
                x, y = points[0]
                parts.append(
                    f'<text x="{x + 4:.1f}" y="{y + 11:.1f}" font-size="9" fill="#777">'
                    f"{escape(_brief(value))}</text>"
                )
        return parts

    def _ports(self, ends: list[tuple[int, int]], side: int) -> dict[int, Point]:
        """Return where each edge leaves its box, or reaches it: in the order of where they lead."""
        by_box: dict[int, list[int]] = {}
        for number, i in ends:
            by_box.setdefault(number, []).append(i)
        ports: dict[int, Point] = {}
        for number, edges in by_box.items():
            box = self.boxes[number]
            (x, y), (width, height) = box.at, box.size
            # All results of one value leave from the middle; what arrives is spread.
            edges.sort(key=lambda i: self._heads_for(i, side))
            count = len(edges)
            for place, i in enumerate(edges):
                share = 0.5 if side == 0 else (place + 1) / (count + 1)
                ports[i] = (x + width * share, y + (height if side == 0 else 0.0))
        return ports

    def _heads_for(self, i: int, side: int) -> float:
        bends = self.routes[i]
        if bends:
            return bends[0 if side == 0 else -1][0]
        other = self.boxes[self.edges[i][1] if side == 0 else self.edges[i][0]]
        return other.at[0] + other.size[0] / 2


def _topological(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return 0 … count − 1 with the start of each edge before its end, as far as that can be."""
    below: list[set[int]] = [set() for _ in range(count)]
    for a, b in edges:
        if a != b:
            below[a].add(b)
    waiting = [0] * count
    for ends in below:
        for b in ends:
            waiting[b] += 1
    left = set(range(count))
    order = []
    while left:
        # In a circle of groups, the one that waits for the fewest.
        item = min(left, key=lambda i: (waiting[i], i))
        left.remove(item)
        order.append(item)
        for b in below[item]:
            waiting[b] -= 1
    return order


def _brief(value: Value) -> str:
    """Return shape and dtype in few letters: ``f32[3, 4]``."""
    dtype = value.dtype
    kind = {"float": "f", "int": "i", "uint": "u"}.get(dtype.name.rstrip("0123456789"))
    brief = dtype.name if kind is None else f"{kind}{8 * dtype.itemsize}"
    return f"{brief}{list(value.shape)}" if value.shape else brief


def _short(text: str) -> str:
    return text if len(text) <= 26 else text[:25] + "…"


def _curve(points: Sequence[Point]) -> str:
    """Return a path through points that leaves and reaches each of them vertically."""
    (x, y) = points[0]
    path = [f"M{x:.1f} {y:.1f}"]
    for to_x, to_y in points[1:]:
        if abs(to_x - x) < 0.5:
            path.append(f"L{to_x:.1f} {to_y:.1f}")
        else:
            middle = (y + to_y) / 2
            path.append(f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}")
        x, y = to_x, to_y
    return "".join(path)


def _box_svg(box: _Box) -> str:
    (x, y), (width, height) = box.at, box.size
    fill, border = box.colours
    radius = 3 if box.node is not None else height / 2
    dash = ' stroke-dasharray="4 2"' if box.is_state else ""
    parts = [
        f'<g><title>{escape(box.hint)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="{radius:.1f}" fill="{fill}" stroke="{border}"{dash}/>'
    ]
    for i, line in enumerate(box.lines):
        style = ' font-weight="bold"' if i == 0 else ' fill="#555" font-size="10"'
        if box.colours is _OUTPUT:
            style = ' fill="white"'
        parts.append(
            f'<text x="{x + width / 2:.1f}" y="{y + 4 + (i + 0.75) * _LINE:.1f}" '
            f'text-anchor="middle"{style}>{escape(line)}</text>'
        )
    return "".join(parts) + "</g>"


def _frame_svg(frame: _Frame) -> str:
    (x, y), (width, height) = frame.at, frame.size
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6" '
        'fill="#fafaf7" stroke="#b9b9a8" stroke-dasharray="5 3"/>'
        f'<text x="{x + _PADDING:.1f}" y="{y + 13:.1f}" fill="#77776a">{escape(frame.title)}</text>'
    )


def _legend(margin: float) -> str:
    parts = []
    for i, (kind, (fill, border)) in enumerate(COLOURS.items()):
        x = margin + i * 92
        parts.append(
            f'<rect x="{x:.0f}" y="{margin:.0f}" width="10" height="10" fill="{fill}" '
            f'stroke="{border}"/><text x="{x + 14:.0f}" y="{margin + 9:.0f}" font-size="10" '
            f'fill="#555">{kind.value}</text>'
        )
    return "".join(parts)


def scopes_of(graph: Graph) -> Mapping[str, list[Node]]:
    """Return the nodes of each module's path, forward and backward apart: groups for `draw`."""
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.scope:
            name = f"{node.scope}, backward" if node.is_backward else node.scope
            found.setdefault(name, []).append(node)
    return found
