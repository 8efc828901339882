"""Layered layout: boxes in rows, edges that run downwards, few of them crossing.

The four steps of Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical
system structures" (1981): each box gets a layer below those it hangs on; edges over several layers
get a point in each of them; the order in the layers is improved by medians of neighbours; and
places are such that edges are as straight as the order allows, in the sense of least squares.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

#: Between neighbours in a layer, and between layers.
GAP_X, GAP_Y = 18.0, 34.0
#: How often orders and places are improved, downwards and upwards.
_SWEEPS = 12
#: Edges over several layers are pulled straight so many times as strongly as those of boxes.
_STRAIGHT = 8.0

Point = tuple[float, float]


@dataclass
class Layout:
    """Where boxes and edges are.

    Attributes:
        corners: upper left corner of each box.
        bends: for each edge the points between its ends, one for each layer that it crosses.
        width: of the whole.
        height: of the whole.
    """

    corners: list[Point]
    bends: list[list[Point]]
    width: float
    height: float


def layered(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> Layout:
    """Return a layout of boxes of given width and height.

    Args:
        sizes: width and height of each box.
        edges: pairs of boxes, from and to. Edges from a later box to an earlier one are drawn, but
            ignored when boxes get their layers.
    """
    if not sizes:
        return Layout([], [[] for _ in edges], 0.0, 0.0)
    grid = _Grid(sizes, edges)
    grid.reorder()
    grid.place()
    return grid.layout()


class _Grid:
    """Boxes, and the points of long edges, in layers."""

    def __init__(self, sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]):
        self.sizes = list(sizes)
        self.edges = edges
        self.layer = _layers(len(sizes), edges)
        self.count = len(sizes)
        #: For each edge its boxes and points, from above to below.
        self.chains: list[list[int]] = []
        self.above: list[list[int]] = [[] for _ in sizes]
        self.below: list[list[int]] = [[] for _ in sizes]
        for a, b in edges:
            self.chains.append(self._chain(a, b))
        self.rows: list[list[int]] = [[] for _ in range(max(self.layer) + 1)]
        for item in self._depth_first():
            self.rows[self.layer[item]].append(item)
        self.x = [0.0] * len(self.layer)

    def _chain(self, a: int, b: int) -> list[int]:
        """Add the points of an edge; return the way from the upper to the lower box."""
        if self.layer[a] > self.layer[b]:
            a, b = b, a
        chain = [a]
        for layer in range(self.layer[a] + 1, self.layer[b]):
            chain.append(len(self.layer))
            self.layer.append(layer)
            self.above.append([])
            self.below.append([])
        chain.append(b)
        for upper, lower in itertools.pairwise(chain):
            if self.layer[upper] < self.layer[lower]:
                self.below[upper].append(lower)
                self.above[lower].append(upper)
        return chain

    def _depth_first(self) -> list[int]:
        """Return all items in an order in which those that hang together follow each other."""
        seen, order = set(), []
        for root in sorted(range(len(self.layer)), key=lambda i: self.layer[i]):
            stack = [root]
            while stack:
                item = stack.pop()
                if item not in seen:
                    seen.add(item)
                    order.append(item)
                    stack += reversed(self.below[item])
        return order

    # Order

    def reorder(self) -> None:
        """Improve the order in the layers."""
        best, least = [list(r) for r in self.rows], self.crossings()
        for sweep in range(2 * _SWEEPS):
            down = sweep % 2 == 0
            neighbours = self.above if down else self.below
            for row in self.rows if down else reversed(self.rows):
                self._sort(row, neighbours)
            crossings = self.crossings()
            if crossings < least:
                best, least = [list(r) for r in self.rows], crossings
        self.rows = best

    def _sort(self, row: list[int], neighbours: list[list[int]]) -> None:
        place = {item: i for r in self.rows for i, item in enumerate(r)}
        own = {item: float(i) for i, item in enumerate(row)}

        def wanted(item: int) -> float:
            places = sorted(place[n] for n in neighbours[item])
            if not places:
                return own[item]
            middle = len(places) // 2
            if len(places) % 2:
                return float(places[middle])
            return (places[middle - 1] + places[middle]) / 2

        row.sort(key=lambda item: (wanted(item), own[item]))

    def crossings(self) -> int:
        """Return how many pairs of edges cross."""
        total = 0
        for upper, lower in itertools.pairwise(self.rows):
            place = {item: i for i, item in enumerate(lower)}
            ends = [place[b] for a in upper for b in sorted(self.below[a], key=place.__getitem__)]
            total += sum(
                ends[i] > ends[j] for i in range(len(ends)) for j in range(i + 1, len(ends))
            )
        return total

    # Places

    def _width(self, item: int) -> float:
        return self.sizes[item][0] if item < self.count else 2.0

    def place(self) -> None:
        """Give each item the middle of its place, left to right in the order of its layer."""
        for row in self.rows:
            x = 0.0
            for item in row:
                self.x[item] = x + self._width(item) / 2
                x += self._width(item) + GAP_X
        for sweep in range(2 * _SWEEPS + 1):
            down = sweep % 2 == 0
            for row in self.rows if down else reversed(self.rows):
                self._straighten(row, down, sweep == 2 * _SWEEPS)

    def _straighten(self, row: list[int], down: bool, both: bool) -> None:
        """Move the items of a layer towards their neighbours, as far as there is room."""
        wanted, weights = [], []
        for item in row:
            near = self.above[item] if down else self.below[item]
            if both or not near:
                near = self.above[item] + self.below[item]
            x = sum(self.x[n] for n in near) / len(near) if near else self.x[item]
            is_point = item >= self.count
            wanted.append(x)
            weights.append(_STRAIGHT if is_point else 1.0 if near else 0.01)
        gaps = [(self._width(a) + self._width(b)) / 2 + GAP_X for a, b in itertools.pairwise(row)]
        for item, x in zip(row, apart(wanted, weights, gaps), strict=True):
            self.x[item] = x

    def layout(self) -> Layout:
        """Return the result, moved to begin at 0."""
        left = min(self.x[i] - self._width(i) / 2 for i in range(len(self.x)))
        right = max(self.x[i] + self._width(i) / 2 for i in range(len(self.x)))
        tops, y = [], 0.0
        heights = []
        for row in self.rows:
            heights.append(max((self.sizes[i][1] for i in row if i < self.count), default=0.0))
            tops.append(y)
            y += heights[-1] + GAP_Y
        corners = [
            (self.x[i] - left - self.sizes[i][0] / 2, tops[self.layer[i]])
            for i in range(self.count)
        ]
        bends = []
        for chain, (a, _) in zip(self.chains, self.edges, strict=True):
            points = []
            for i in chain[1:-1]:
                top, height = tops[self.layer[i]], heights[self.layer[i]]
                # In and out at the edges of the layer, so that no box is crossed.
                points += [(self.x[i] - left, top), (self.x[i] - left, top + height)]
            bends.append(points if chain[0] == a else points[::-1])
        return Layout(corners, bends, right - left, y - GAP_Y)


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return a layer for each box, below all that it hangs on and as near to them as can be."""
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        if a < b:
            above[b].append(a)
            below[a].append(b)
    layer = [0] * count
    for i in range(count):
        layer[i] = max((layer[a] + 1 for a in above[i]), default=0)
    # Downwards again, to what needs it: what hangs on nothing, what takes all that it hangs on
    # along, and what then shortens more lines than it stretches.
    is_free = [not a for a in above]
    for i in range(count):
        is_free[i] = all(is_free[a] for a in above[i])
    for i in reversed(range(count)):
        stretched = sum(len(below[a]) > 1 for a in above[i])
        if below[i] and (is_free[i] or stretched < len(below[i])):
            layer[i] = min(layer[b] for b in below[i]) - 1
    return layer


def apart(wanted: Sequence[float], weights: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Return rising numbers, ``gaps`` apart at least, as near to the wanted ones as can be.

    Nearest in the sense of weighted least squares: without the gaps that is isotonic regression,
    solved by pooling neighbours that stand in the wrong order.
    """
    shifts = [0.0]
    for gap in gaps:
        shifts.append(shifts[-1] + gap)
    #: Of each pool the mean, the weight and the number of members.
    pools: list[tuple[float, float, int]] = []
    for x, weight, shift in zip(wanted, weights, shifts, strict=False):
        mean, total, size = x - shift, weight, 1
        while pools and pools[-1][0] > mean:
            other, heavy, members = pools.pop()
            mean = (mean * total + other * heavy) / (total + heavy)
            total, size = total + heavy, size + members
        pools.append((mean, total, size))
    placed = [mean for mean, _, size in pools for _ in range(size)]
    return [x + shift for x, shift in zip(placed, shifts, strict=False)]
