"""A convolution as a function of a module: how it is made and called."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from needle.backends.cpu.conv.channel_sums import (
    ChannelSums,
    ChannelSumsPlan,
    plan_channel_sums,
)
from needle.backends.cpu.conv.channels import (
    ChannelPlan,
    Channels,
    is_by_channel,
    plan_channels,
)
from needle.backends.cpu.conv.dense import Dense
from needle.backends.cpu.conv.dense_sums import DenseSums
from needle.backends.cpu.conv.pair_plan import PairConvPlan, plan_pairs
from needle.backends.cpu.conv.pair_sums import PairSums
from needle.backends.cpu.conv.pair_sums_plan import PairSumsPlan, plan_pair_sums
from needle.backends.cpu.conv.pairs import PairConvolution
from needle.backends.cpu.conv.plan import DensePlan, plan_dense
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.conv.sums_plan import DenseSumsPlan, plan_dense_sums
from needle.backends.cpu.conv.winograd import WinogradConvolution
from needle.backends.cpu.conv.winograd_plan import WinogradPlan, plan_winograd
from needle.backends.cpu.conv.winograd_sums import WinogradSums
from needle.backends.cpu.conv.winograd_sums_plan import WinogradSumsPlan, plan_winograd_sums
from needle.backends.cpu.llvm import Function, Index, Module
from needle.backends.cpu.target import Target
from needle.backends.cpu.vector_math import MathFunction

#: What `emit_conv`'s functions take: the operands are named by the forward form.
ARGUMENTS = {
    "image": "ptr",
    "weight": "ptr",
    "out": "ptr",
    "extra": "ptr",
    "workspace": "ptr",
    "task": "i64",
}


#: The decisions of one way to compute a convolution.
Detail: TypeAlias = (
    DensePlan
    | ChannelPlan
    | DenseSumsPlan
    | ChannelSumsPlan
    | PairConvPlan
    | PairSumsPlan
    | WinogradPlan
    | WinogradSumsPlan
)


@dataclass(frozen=True)
class ConvPlan:
    """How a convolution is computed.

    Attributes:
        spec: what.
        detail: the decisions; None if there is nothing to compute.
        tasks: into how many parts the work is split.
        workspace: bytes that each task needs to itself, on a cache line.
    """

    spec: ConvSpec
    detail: Detail | None
    tasks: int
    workspace: int


@dataclass(frozen=True)
class ConvKernel:
    """A function of a module that computes a convolution, task by task.

    ``void name(ptr first, ptr second, ptr out, ptr extra, ptr workspace, i64 task)``; the tasks
    0 … ``tasks`` − 1 write disjoint elements and may run in any order, at once, or one by one.

    Attributes:
        name: of the function.
        plan: what it computes, and how.
    """

    name: str
    plan: ConvPlan

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return self.plan.tasks

    @property
    def workspace(self) -> int:
        """Bytes that each task needs to itself."""
        return self.plan.workspace

    def call(
        self,
        f: Function,
        first: str,
        second: str,
        out: str,
        *,
        extra: str = "null",
        workspace: str = "null",
        task: Index = 0,
    ) -> None:
        """Emit a call for one task; ``workspace`` is the task's own, and on a cache line.

        Args:
            f: the caller.
            first, second: the operands, in the order of the table of `conv.spec`.
            out: the result; an epilogue gets it as it is.
            extra: passed through to epilogue and prologue.
            workspace: of the task.
            task: which task.
        """
        pointers = ", ".join(f"ptr {p}" for p in (first, second, out, extra, workspace))
        f.emit(f"call void @{self.name}({pointers}, {f.operand(task).typed})")


def plan_conv(spec: ConvSpec, target: Target, threads: int = 1) -> ConvPlan:
    """Return how a convolution is to be computed, with about ``threads`` tasks where it pays."""
    if 0 in spec.result:
        return ConvPlan(spec, None, 1, 0)
    return with_detail(spec, _choose(spec, target, threads), target)


def _choose(spec: ConvSpec, target: Target, threads: int) -> Detail:
    is_sum = spec.form == "weight_grad"
    if spec.in_pairs:
        return plan_pair_sums(spec, threads) if is_sum else plan_pairs(spec, threads)
    if spec.by_winograd:
        by_tile = plan_winograd_sums if is_sum else plan_winograd
        return by_tile(spec, target, threads)
    if is_by_channel(spec, target):
        by_channel = plan_channel_sums if is_sum else plan_channels
        return by_channel(spec, target, threads)
    return plan_dense_sums(spec, target, threads) if is_sum else plan_dense(spec, target, threads)


def with_detail(spec: ConvSpec, detail: Detail, target: Target) -> ConvPlan:
    """Return the plan of a convolution of which the decisions are taken."""
    lanes, size = target.lanes(spec.dtype), spec.dtype.itemsize
    if isinstance(detail, PairConvPlan | PairSumsPlan):
        workspace = detail.workspace
    elif isinstance(detail, ChannelSumsPlan | WinogradSumsPlan):
        workspace = detail.workspace(spec, lanes) * size
    elif isinstance(detail, ChannelPlan):
        workspace = detail.workspace(lanes) * size
    elif isinstance(detail, DenseSumsPlan):
        workspace = detail.workspace(spec, lanes)
    elif isinstance(detail, WinogradPlan):
        workspace = detail.workspace * size
    else:
        workspace = detail.workspace(lanes, size)
    return ConvPlan(spec, detail, detail.tasks, workspace)


def emit_conv(
    module: Module,
    spec: ConvSpec,
    threads: int = 1,
    name: str = "convolution",
    *,
    internal: bool = True,
    plan: ConvPlan | None = None,
) -> ConvKernel:
    """Add a function that computes a convolution to a module.

    Args:
        module: the module.
        spec: the convolution.
        threads: into about how many tasks to split the work, where it pays.
        name: a name for people; made unique.
        internal: whether only the module calls it.
        plan: how to compute it; the model's choice by default.

    Returns:
        The kernel: its function's name, tasks and workspace.
    """
    plan = plan_conv(spec, module.target, threads) if plan is None else replace(plan, spec=spec)
    f = MathFunction(module, module.unique(name), ARGUMENTS, internal=internal)
    if isinstance(plan.detail, DenseSumsPlan):
        DenseSums(f, spec, plan.detail).emit()
    elif isinstance(plan.detail, ChannelSumsPlan):
        ChannelSums(f, spec, plan.detail).emit()
    elif isinstance(plan.detail, ChannelPlan):
        Channels(f, spec, plan.detail).emit()
    elif isinstance(plan.detail, WinogradSumsPlan):
        WinogradSums(f, spec, plan.detail).emit()
    elif isinstance(plan.detail, PairSumsPlan):
        PairSums(f, spec, plan.detail).emit()
    elif isinstance(plan.detail, PairConvPlan):
        PairConvolution(f, spec, plan.detail).emit()
    elif isinstance(plan.detail, WinogradPlan):
        WinogradConvolution(f, spec, plan.detail).emit()
    elif isinstance(plan.detail, DensePlan):
        Dense(f, spec, plan.detail).emit()
    return ConvKernel(f.end(), plan)
