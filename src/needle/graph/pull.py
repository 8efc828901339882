"""The backward pass of a part: from cotangents of its results to those of all that it reads.

Unlike `needle.autograd`, it stops where the part begins: at what stands for its arguments, and at
what it has captured from outside.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Sequence

from needle.errors import GradientError
from needle.gradnode import Edge, GradNode
from needle.graph.tracing import Trace
from needle.tensor import Hook, Tensor


def key_of(edge: Edge) -> Hashable:
    """Return what is equal for equal edges only."""
    return edge if isinstance(edge, tuple) else id(edge)


def boundary(edges: Iterable[Edge], since: int) -> dict[Hashable, Edge]:
    """Return the edges that lead out of a part, by key: to leaves, and to nodes made before it.

    Args:
        edges: where the cotangents of its results go.
        since: the nodes of the part have higher ids.
    """
    found: dict[Hashable, Edge] = {}
    seen: set[GradNode] = set()
    stack = list(edges)
    stack.reverse()
    while stack:
        edge = stack.pop()
        if edge is None:
            continue
        if not isinstance(edge, tuple) or edge[0].id < since:
            found.setdefault(key_of(edge), edge)
        elif edge[0] not in seen:
            seen.add(edge[0])
            stack.extend(reversed(edge[0].edges))
    return found


def pull_back(
    seeds: Sequence[tuple[Edge, Tensor]], since: int, trace: Trace, create_graph: bool
) -> dict[Hashable, Tensor]:
    """Return the cotangents of the edges that lead out of a part, by key.

    Args:
        seeds: edges of results, with their cotangents.
        since: the nodes of the part have higher ids.
        trace: the trace of the part, which is the current one.
        create_graph: whether what is computed shall be differentiable again.
    """
    found: dict[Hashable, Tensor] = {}
    waiting: dict[GradNode, list[Tensor | None]] = {}
    queue: list[tuple[int, GradNode]] = []

    def deliver(edge: Edge, cotangent: Tensor | None) -> None:
        if edge is None or cotangent is None:
            return
        if not isinstance(edge, tuple) or edge[0].id < since:
            key = key_of(edge)
            old = found.get(key)
            found[key] = cotangent if old is None else old + cotangent
            return
        node, index = edge
        if node not in waiting:
            waiting[node] = [None] * node.count
            heapq.heappush(queue, (-node.id, node))
        old = waiting[node][index]
        waiting[node][index] = cotangent if old is None else old + cotangent

    around = trace.begin_backward()
    try:
        for edge, cotangent in seeds:
            deliver(edge, cotangent)
        while queue:
            _, node = heapq.heappop(queue)
            cotangents = waiting.pop(node)
            if not node.edges:
                raise GradientError(
                    f"{node.name}: the graph was freed by a backward pass inside of {trace.name}; "
                    "pass retain_graph=True to it"
                )
            for index, hooks in (node._hooks or {}).items():
                _run_hooks(hooks, cotangents, index)
            trace.origin = node.id
            results = node.vjp(cotangents, node.edges, create_graph)
            for edge, result in zip(node.edges, results, strict=True):
                deliver(edge, result)
    finally:
        trace.origin = around
    return found


def _run_hooks(hooks: Sequence[Hook], cotangents: list[Tensor | None], index: int) -> None:
    for hook in hooks:
        cotangent = cotangents[index]
        if cotangent is not None:
            replaced = hook(cotangent.clone())
            cotangents[index] = cotangent if replaced is None else replaced
