"""Reverse-mode automatic differentiation.

While gradients are recorded, each op leaves a `GradNode` (gradnode.py): edges to the nodes of its
inputs, and what its vjp rules need. `backward` walks the nodes from the newest to the oldest, a
topological order because an op's inputs always exist before it, and hands each node's cotangent to
its rules.

Rules are written with ops. So recording the backward pass itself (``create_graph=True``) gives
gradients of gradients, and tracing it gives a compiled backward pass, with no second mechanism.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from needle import dtypes
from needle.arrays import as_lies, in_order, is_own, memory_order
from needle.config import modes
from needle.errors import AnomalyError, ArgumentError, GradientError, ShapeError
from needle.extents import extents_in
from needle.gradnode import Edge, GradNode, edge_of
from needle.ops.engine import as_tensor
from needle.ops.movement import broadcast_to
from needle.tensor import Hook, Tensor, wrap

_node_id = operator.attrgetter("id")


def backward(
    output: Tensor,
    cotangent: Tensor | None = None,
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> None:
    """Add the gradients of ``output`` to the `grad` of the leaves; see `Tensor.backward`."""
    run_backward([output], [cotangent], None, retain_graph or create_graph, create_graph)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> Any:
    """Return the gradients of outputs with respect to inputs, and touch no tensor's `grad`.

    Args:
        outputs: a tensor or several; their gradients are added.
        inputs: a tensor or several: leaves, or tensors computed on the way.
        grad_outputs: cotangent of each output; ones where missing.
        retain_graph: keep the graph for another pass; as ``create_graph`` if not given.
        create_graph: record the backward pass, so that the gradients can be differentiated again.
        allow_unused: return None for an input that the outputs do not depend on, instead of
            raising.

    Returns:
        A tensor for a single input, else a tuple.

    Raises:
        GradientError: an input requires no gradient or is unused; the graph was freed.

    Example:
        >>> x = ndl.Tensor(2.0)
        >>> slope = ndl.grad(x ** 3, x, create_graph=True)
        >>> slope.item(), ndl.grad(slope, x).item()
        (12.0, 12.0)
    """
    single = isinstance(inputs, Tensor)
    targets = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    roots = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    cotangents: list[Tensor | None]
    if grad_outputs is None:
        cotangents = [None] * len(roots)
    else:
        cotangents = [grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs)
    if len(cotangents) != len(roots):
        raise ArgumentError(
            f"grad: {len(roots)} outputs but {len(cotangents)} grad_outputs; give one for each"
        )
    for i, target in enumerate(targets):
        if not target._requires_grad:
            raise GradientError(f"grad: inputs[{i}] does not require a gradient")
    keep = create_graph if retain_graph is None else retain_graph
    found = run_backward(roots, cotangents, targets, keep, create_graph)
    if not allow_unused:
        for i, gradient in enumerate(found):
            if gradient is None:
                raise GradientError(
                    f"grad: the outputs do not depend on inputs[{i}] (shape "
                    f"{list(targets[i].shape)}); pass allow_unused=True to get None for it"
                )
    return found[0] if single else tuple(found)


def run_backward(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    targets: Sequence[Tensor] | None,
    retain_graph: bool,
    create_graph: bool,
) -> list[Tensor | None]:
    """Run the backward pass.

    Args:
        outputs: where it starts.
        cotangents: cotangent of each output, or None for ones.
        targets: tensors whose gradients are returned; None to add to `grad` of the leaves instead.
        retain_graph: keep the values for another pass.
        create_graph: record the pass.

    Returns:
        A gradient (or None) for each target.
    """
    grads: dict[GradNode, list[Tensor | None]] = {}
    roots: list[GradNode] = []
    seeds: list[tuple[Edge, Tensor]] = []
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if not output._requires_grad:
            raise GradientError(
                "backward: this tensor requires no gradient: it was computed from tensors that "
                "do not "
                "require any, under no_grad, or by an op without a derivative"
            )
        edge = edge_of(output, "backward")
        seeds.append((edge, _seed(output, cotangent)))
        if edge.__class__ is tuple:
            roots.append(edge[0])

    nodes = _reachable(roots, _oldest(targets))
    needed = None if targets is None else _needed(nodes, targets)
    sink = _Sink(targets, create_graph, seeds, nodes, needed)

    state = modes.state
    previous, anomaly, autocast = state.grad, state.anomaly, state.autocast
    # Rules may take detours through infinity; only what comes out of them is checked.
    # And they compute in the dtypes of the forward pass, whatever autocast says now.
    state.grad, state.anomaly, state.autocast = create_graph, False, None
    trace = state.trace
    around = None if trace is None else trace.begin_backward()
    try:
        for edge, seed in seeds:
            _deliver(edge, seed, grads, sink)
        while nodes:
            node = nodes.pop()  # the newest; the list must not keep it alive either
            edges = node.edges
            wanted = edges if needed is None else needed.pop(node)
            waiting = grads.pop(node, None)
            if waiting is None:
                sink.skip(edges, wanted)
                continue
            if node._hooks is not None:
                _run_hooks(node._hooks, waiting)
            sink.capture(node, waiting)
            if needed is not None and not any(wanted):
                continue
            if trace is not None:
                trace.origin = node.id
            results = node.vjp(waiting, wanted, create_graph)
            if anomaly:
                _check_finite(node, waiting, results)
            if not retain_graph:
                node.free()
            for edge, is_wanted, cotangent in zip(edges, wanted, results, strict=True):
                if is_wanted is not None and is_wanted is not False:
                    _deliver(edge, cotangent, grads, sink)
            del node, waiting, edges, wanted, results
    finally:
        state.grad, state.anomaly, state.autocast = previous, anomaly, autocast
        if trace is not None:
            trace.origin = around
    return sink.results()


def _seed(output: Tensor, cotangent: Any) -> Tensor:
    if cotangent is None:
        if extents_in(output.shape):
            return broadcast_to(as_tensor(1, output.dtype), output.shape)
        return wrap(np.ones(output.shape, output.dtype))
    if not isinstance(cotangent, Tensor):
        cotangent = Tensor(cotangent, dtype=output.dtype, requires_grad=False)
    if cotangent.shape != output.shape:
        raise ShapeError(
            f"backward: the gradient has shape {list(cotangent.shape)}, "
            f"the tensor has {list(output.shape)}; they must be equal"
        )
    return cotangent if cotangent.dtype == output.dtype else cotangent.astype(output.dtype)


def _oldest(targets: Sequence[Tensor] | None) -> int:
    """Return the id of the oldest node that matters: behind it lies no target. −1: all may."""
    ids = [-1 if t._node is None else t._node.id for t in targets or ()]
    return min(ids, default=-1)


def _reachable(roots: list[GradNode], oldest: int) -> list[GradNode]:
    """Return the nodes behind ``roots`` back to the id ``oldest``, oldest first.

    Iterative: graphs may be deep.

    Raises:
        GradientError: a part of the graph was freed.
    """
    seen = set(roots)
    stack = list(seen)
    while stack:
        node = stack.pop()
        if node.id <= oldest:
            continue
        if not node.edges:
            raise GradientError(
                f"{node.name}: the graph was freed by an earlier backward pass; "
                "pass retain_graph=True to the earlier one"
            )
        for edge in node.edges:
            if edge.__class__ is tuple and edge[0] not in seen:
                seen.add(edge[0])
                stack.append(edge[0])
    return sorted(seen, key=_node_id)


def _needed(nodes: list[GradNode], targets: Sequence[Tensor]) -> dict[GradNode, list[bool]]:
    """Return for each node which of its inputs lead to a target."""
    leaves = {id(t) for t in targets if t._node is None}
    leads = {t._node for t in targets if t._node is not None}
    needed: dict[GradNode, list[bool]] = {}
    for node in nodes:  # oldest first: the inputs' nodes are decided already
        flags = [
            (edge[0] in leads) if isinstance(edge, tuple) else id(edge) in leaves
            for edge in node.edges
        ]
        needed[node] = flags
        if True in flags:
            leads.add(node)
    return needed


def _deliver(
    edge: Edge, cotangent: Tensor | None, grads: dict[GradNode, list[Tensor | None]], sink: _Sink
) -> None:
    if isinstance(edge, tuple):
        if cotangent is None:
            return
        node, index = edge
        waiting = grads.get(node)
        if waiting is None:
            waiting = grads[node] = [None] * node.count
        old = waiting[index]
        waiting[index] = cotangent if old is None else old + cotangent
    elif edge is not None:
        sink.add(edge, cotangent)


def _run_hooks(hooks: dict[int, list[Hook]], waiting: list[Tensor | None]) -> None:
    for index, callables in hooks.items():
        gradient = waiting[index]
        if gradient is not None:
            waiting[index] = _call_hooks(callables, gradient)


def _call_hooks(hooks: list[Hook], gradient: Tensor) -> Tensor:
    for hook in tuple(hooks):
        # A copy: the array may be another tensor's cotangent too, and a hook may write to it.
        copy = gradient.clone()
        replaced = hook(copy)
        if replaced is None:
            continue
        if replaced.shape != gradient.shape:
            raise ShapeError(
                f"a hook returned a gradient of shape {list(replaced.shape)} "
                f"for a tensor of shape {list(gradient.shape)}"
            )
        gradient = replaced
    return gradient


class _Sink:
    """Where gradients end: in `grad` of the leaves, or in the list of targets.

    A leaf's gradient is delivered when its last contribution has come, so that hooks see the
    complete one.
    """

    def __init__(
        self,
        targets: Sequence[Tensor] | None,
        create_graph: bool,
        seeds: list[tuple[Edge, Tensor]],
        nodes: list[GradNode],
        needed: dict[GradNode, list[bool]] | None,
    ) -> None:
        self.targets = targets
        self.create_graph = create_graph
        self.partial: dict[int, Tensor | None] = {}
        # Leaves whose partial sum is in storage of its own.
        self.sums: set[int] = set()
        # Arrays that somebody has: the caller's cotangents, and what leaves were given.
        self.delivered = {id(seed._data) for _, seed in seeds}
        self.found: dict[Any, Tensor] = {}
        self.leaves: set[int] | None = None
        self.places: set[tuple[GradNode, int]] = set()
        if targets is not None:
            self.leaves = {id(t) for t in targets if t._node is None}
            self.places = {(t._node, t._index) for t in targets if t._node is not None}
        # How many contributions each leaf will get.
        self.pending: dict[int, int] = {}
        starts = [edge for edge, _ in seeds]
        self._expect(starts, starts)
        for node in nodes:
            self._expect(node.edges, node.edges if needed is None else needed[node])

    def _expect(self, edges: Sequence[Edge], wanted: Sequence[Any]) -> None:
        pending = self.pending
        for edge, is_wanted in zip(edges, wanted, strict=True):
            if is_wanted is False or edge is None or edge.__class__ is tuple:
                continue
            pending[id(edge)] = pending.get(id(edge), 0) + 1

    def skip(self, edges: Sequence[Edge], wanted: Sequence[Any]) -> None:
        """Note that a node contributes nothing: no cotangent reached it."""
        for edge, is_wanted in zip(edges, wanted, strict=True):
            if is_wanted is not False and isinstance(edge, Tensor):
                self.add(edge, None)

    def add(self, leaf: Tensor, cotangent: Tensor | None) -> None:
        """Take one contribution to the gradient of ``leaf``."""
        key = id(leaf)
        total = self.partial.get(key)
        if cotangent is not None:
            total = cotangent if total is None else self._plus(key, total, cotangent)
        self.pending[key] -= 1
        if self.pending[key]:
            self.partial[key] = total
            return
        self.partial.pop(key, None)
        if total is None or (self.leaves is not None and key not in self.leaves):
            return
        if leaf._hooks:
            total = _call_hooks(leaf._hooks, total)
        if self.leaves is not None:
            self.found[key] = total
        else:
            self._accumulate(leaf, total)

    def _plus(self, key: int, total: Tensor, cotangent: Tensor) -> Tensor:
        """Add to a partial sum: in place from the second addition on, when it is our own."""
        if key in self.sums and modes.state.trace is None:
            modes.state.quiet(np.add, total._data, cotangent._data, out=total._data)
            return total
        if not self.create_graph:
            self.sums.add(key)
        return total + cotangent

    def _accumulate(self, leaf: Tensor, gradient: Tensor) -> None:
        old = leaf.grad
        if self.create_graph:
            leaf.grad = gradient if old is None else old + gradient
        elif old is None:
            leaf.grad = self._own(gradient, leaf)
        elif modes.state.trace is not None:
            modes.state.trace.write(old, old + gradient)
        elif old._data.flags.writeable and old._node is None:
            modes.state.quiet(np.add, old._data, gradient._data, out=old._data)
            if old._version is not None:
                old._version[0] += 1
        else:
            leaf.grad = wrap((old + gradient)._data)

    def _own(self, gradient: Tensor, leaf: Tensor) -> Tensor:
        """Return ``gradient`` in storage that nothing else shares: users may write to a `grad`.

        It lies in memory as what it is the gradient of.
        """
        if modes.state.trace is not None:
            return modes.state.trace.own(gradient)
        data = gradient._data
        if not is_own(data) or id(data) in self.delivered or gradient._node is not None:
            data = in_order(data, memory_order(leaf._data))
        else:
            data = as_lies(data, leaf._data)
        self.delivered.add(id(data))
        return wrap(data)

    def capture(self, node: GradNode, waiting: list[Tensor | None]) -> None:
        """Take the cotangents of ``node`` that targets ask for."""
        if self.places:
            for index, gradient in enumerate(waiting):
                if gradient is not None and (node, index) in self.places:
                    self.found[(node, index)] = gradient

    def results(self) -> list[Tensor | None]:
        """Return the gradient of each target."""
        if self.targets is None:
            return []
        keys = [id(t) if t._node is None else (t._node, t._index) for t in self.targets]
        found = [self.found.get(key) for key in keys]
        if self.create_graph:
            return found
        both = zip(found, self.targets, strict=True)
        return [None if g is None else self._own(g, target) for g, target in both]


def _check_finite(
    node: GradNode, cotangents: list[Tensor | None], results: list[Tensor | None]
) -> None:
    """Raise if NaN or infinity appears in ``results`` though the ``cotangents`` are finite."""
    for gradient in results:
        if gradient is None or not dtypes.is_float(gradient.dtype):
            continue
        bad = first_non_finite(gradient._data)
        if bad is None:
            continue
        if any(c is not None and first_non_finite(c._data) is not None for c in cotangents):
            return
        place = f", called at {node.location}" if node.location else ""
        raise AnomalyError(
            f"{node.name}: {bad} appeared in the gradient, in the backward pass of the call"
            f"{place or ' (not recorded while anomalies were looked for)'}"
        )


def first_non_finite(array: Any) -> float | None:
    """Return the first NaN or infinity in ``array``, or None."""
    finite = modes.state.quiet(np.isfinite, array)
    if finite.all():
        return None
    return float(np.asarray(array)[~finite].flat[0])
