"""Anchors: kernels that are no loop nests, planned before memory is laid out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from needle.backends.cpu.attending import plan_attention
from needle.backends.cpu.control import Surroundings, plan_control
from needle.backends.cpu.convolution_anchor import plan_convolution, plan_weight_transform
from needle.backends.cpu.emit import no_code
from needle.backends.cpu.kernel import KernelFunction
from needle.backends.cpu.product import plan_product
from needle.backends.cpu.scan import plan_scan
from needle.backends.cpu.scatter import plan_scatter
from needle.backends.cpu.sort import plan_sort
from needle.backends.cpu.target import Target
from needle.compiler.fusion import Group
from needle.compiler.rows import VariesError, rows_in
from needle.graph.ir import Value
from needle.ops.convolution_form import Convolution, WeightTransform
from needle.ops.ordered import Scan, Scatter, Sort
from needle.ops.record import Kind

if TYPE_CHECKING:
    from needle.backends.cpu.tuning.candidates import Choose


class AnchorPlan(Protocol):
    """How a kernel will be computed.

    Attributes:
        tasks: how many tasks share the work.
        workspace: bytes that each of them needs to itself.
    """

    tasks: int
    workspace: int

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        """Emit the kernel; ``workspace`` points to this task's bytes."""


def plan_anchor(
    group: Group,
    is_stored: Callable[[Value], bool],
    target: Target,
    threads: int,
    surroundings: Surroundings,
    choose: Choose | None = None,
) -> AnchorPlan:
    """Return the plan of a group that has an anchor.

    Args:
        group: the group.
        is_stored: whether a value lies in memory.
        target: the processor.
        threads: into about how many tasks large kernels are split.
        surroundings: the program, for kernels that have programs inside.
        choose: chooses among plans of products and convolutions; by default a model does.

    Raises:
        CompileError: the compiler cannot build the op.
    """
    node = group.anchor
    assert node is not None
    lower = node.op.lower
    if isinstance(lower, Convolution):
        if any(rows_in(n) for v in (*node.inputs, *node.results) for n in v.shape):
            raise VariesError(f"{node.op.name} at {node.location} takes a known number of images")
        return plan_convolution(group, lower, is_stored, target, threads, choose)
    if isinstance(lower, WeightTransform):
        return plan_weight_transform(group, is_stored, target, threads)
    if node.op.kind is Kind.CONTRACTION and len(node.inputs) == 2:
        return plan_product(group, is_stored, target, threads, choose)
    if isinstance(lower, Scan):
        return plan_scan(group, lower, target, threads)
    if isinstance(lower, Scatter):
        return plan_scatter(group, lower, target, threads)
    if isinstance(lower, Sort):
        return plan_sort(group, lower, target, threads)
    if node.op.kind is Kind.ATTENTION:
        return plan_attention(group, is_stored, target, threads)
    if node.op.kind is Kind.CONTROL:
        return plan_control(group, surroundings)
    raise no_code(node)
