"""What each kernel of a program does: its ops, loops, arithmetic and traffic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from needle.backends.cpu.kernel import Location
from needle.backends.cpu.program import KernelCall, Program
from needle.compiler.access import Access, is_literal
from needle.compiler.fusion import Group
from needle.compiler.rows import actual
from needle.graph.ir import Graph, Node, Value
from needle.ops.ordered import Scatter
from needle.ops.record import flops_of


@dataclass(frozen=True)
class Kernel:
    """A kernel of a compiled program.

    Attributes:
        name: of the kernel, for people.
        function: of the generated code, which kernels share that differ only in what they read.
        nodes: the ops that it computes, in an order in which they can run.
        loops: extents of the loops over independent elements; those of extent 1 are left out.
        inner: extents of the loops inside of these, over what reductions combine.
        tasks: into how many parts it is split for threads; 0 if each call decides.
        flops: arithmetic operations, as the ops' records count them.
        bytes_read: bytes of what it reads from memory, each element once.
        bytes_written: bytes of what it writes to memory.
    """

    name: str
    function: str
    nodes: tuple[Node, ...]
    loops: tuple[int, ...]
    inner: tuple[int, ...]
    tasks: int
    flops: int
    bytes_read: int
    bytes_written: int

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def ops(self) -> tuple[str, ...]:
        """Names of the ops, each once, in order; what is in a loop or branch, after it."""
        return tuple(dict.fromkeys(node.op.name for node in _with_bodies(self.nodes)))

    @property
    def lines(self) -> tuple[str, ...]:
        """The user's lines that it comes from, ``file:line``, each once."""
        nodes = _with_bodies(self.nodes)
        return tuple(dict.fromkeys(node.location for node in nodes if node.location))

    @property
    def scopes(self) -> tuple[str, ...]:
        """Paths of the modules that it comes from, each once."""
        return tuple(dict.fromkeys(node.scope for node in _with_bodies(self.nodes) if node.scope))

    def shares(self) -> dict[str, float]:
        """Return which share of its work each module path has, by arithmetic; they add up to 1.

        An op without arithmetic counts as one operation for each element.
        """
        work: dict[str, float] = {}
        for node in _with_bodies(self.nodes):
            if _bodies(node):
                continue  # what is in them counts
            path = f"{node.scope or '(no module)'}{' (backward)' if node.is_backward else ''}"
            size = sum(v.size for v in node.results)
            work[path] = work.get(path, 0.0) + max(flops(node), size, 1)
        work = work or {"(no module)": 1.0}
        total = sum(work.values())
        return {path: amount / total for path, amount in work.items()}


def kernels_of(program: Program, *others: Program, rows: int = 0) -> list[Kernel]:
    """Return the kernels of a program, in the order in which they run.

    Args:
        program: the program.
        others: the same with another mark, for one with rows.
        rows: how many, for a program that has any number.
    """
    found = _kernels(program, program.groups, program.kernels)
    for other in others:
        marks = program.mark, other.mark
        found = [
            _at_rows(k, twin, marks, rows) for k, twin in zip(found, kernels_of(other), strict=True)
        ]
    return found


def preparing_kernels(program: Program) -> list[Kernel]:
    """Return the kernels that run only when state has changed, in the order in which they do."""
    return _kernels(program, program.preparing.groups, program.early_kernels)


def _kernels(
    program: Program, groups: Sequence[Group], calls: Sequence[KernelCall]
) -> list[Kernel]:
    return [_kernel(program, group, call) for group, call in zip(groups, calls, strict=True)]


def _at_rows(kernel: Kernel, twin: Kernel, marks: tuple[int, int], rows: int) -> Kernel:
    """Return a kernel with its numbers for so many rows, from those for two marks."""

    def at(x: int, y: int) -> int:
        times = (y - x) // (marks[1] - marks[0])
        return x + times * (rows - marks[0])

    return replace(
        kernel,
        loops=actual(kernel.loops, rows),
        inner=actual(kernel.inner, rows),
        flops=at(kernel.flops, twin.flops),
        bytes_read=at(kernel.bytes_read, twin.bytes_read),
        bytes_written=at(kernel.bytes_written, twin.bytes_written),
    )


def _bodies(node: Node) -> list[Graph]:
    """Return the graphs of a loop or of branches."""
    found: list[Graph] = []
    for attr in node.attrs.values():
        parts = attr if isinstance(attr, tuple) else (attr,)
        found += [part for part in parts if isinstance(part, Graph)]
    return found


def _with_bodies(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield the nodes, and those in the loops and branches among them."""
    for node in nodes:
        yield node
        for body in _bodies(node):
            yield from _with_bodies(body.nodes)


def flops(node: Node) -> int:
    """Return the arithmetic operations of a node, as its record counts them."""
    specs = tuple(v.spec for v in node.results)
    result = specs[0] if len(specs) == 1 else specs
    return flops_of(node.op, tuple(v.spec for v in node.inputs), result, node.attrs)  # type: ignore[arg-type]


def _kernel(program: Program, group: Group, call: KernelCall) -> Kernel:
    nodes = tuple(_nodes(program, group))
    locations = program.layout.locations
    written = {v for v in group.defines() if v in locations}
    return Kernel(
        call.name,
        call.function,
        nodes,
        tuple(v.extent for v in group.kept),
        tuple(v.extent for v in group.inner),
        call.tasks,
        sum(flops(node) for node in nodes),
        *_bytes_moved(group, locations, written),
    )


def _nodes(program: Program, group: Group) -> Iterator[Node]:
    """Yield what a kernel computes: its pieces, and what is computed on the way to them."""
    own = set(group.defines())
    seen: set[Node] = set()
    for value in group.defines():
        stack = [(value, False)]
        while stack:
            v, is_ready = stack.pop()
            node = v.node
            if node is None or node in seen:
                continue
            if is_ready:
                seen.add(node)
                yield node
                continue
            stack.append((v, True))
            stack.extend(
                (i, False) for i in reversed(node.inputs) if i in own or not program.is_stored(i)
            )


def _bytes_moved(
    group: Group, locations: Mapping[Value, Location], written: Iterable[Value]
) -> tuple[int, int]:
    """Return the bytes of the elements that a kernel reads and does not compute itself, and of
    those that it writes."""
    result = sum(v.nbytes for v in written)
    node = group.anchor
    if node is None or not isinstance(node.op.lower, Scatter) or node.op.lower.base is None:
        return _bytes_read(group, set(group.defines())), result
    # What is scattered into the place of its base touches nothing else of it.
    base, values = (node.inputs[i] for i in (node.op.lower.base, node.op.lower.values))
    place = locations.get(base)
    if place is None or place != locations.get(node.result):
        return _bytes_read(group, set(group.defines())), result
    touched = min(values.nbytes, base.nbytes)
    return _bytes_read(group, {*group.defines(), base}), result - base.nbytes + touched


def _bytes_read(group: Group, own: set[Value]) -> int:
    """Return the bytes of the elements that a kernel reads, but for those of ``own``."""
    read: dict[Value, int] = {}
    for access in dict.fromkeys(a for piece in group.pieces for a in piece.reads):
        if access.value not in own and not is_literal(access.value):
            read[access.value] = read.get(access.value, 0) + _extent(access)
    return sum(min(n * v.dtype.itemsize, v.nbytes) for v, n in read.items())


def _extent(access: Access) -> int:
    """Return how many elements an access reaches, at most."""
    if not access.at:
        return access.value.size
    variables = frozenset().union(*(index.variables for index in access.at))
    return math.prod(v.extent for v in variables)
