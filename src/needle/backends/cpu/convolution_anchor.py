"""Convolutions in a program: dense images and weights, the group's other pieces as epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from needle.backends.cpu.conv import ConvPlan, ConvSpec, Epilogue, Place, emit_conv, plan_conv
from needle.backends.cpu.conv.pair_products import convert_sums
from needle.backends.cpu.conv.winograd_weight import WeightKernel
from needle.backends.cpu.emit import Position
from needle.backends.cpu.epilogue import axes_of, fuse
from needle.backends.cpu.kernel import KernelFunction
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.operands import Operand
from needle.backends.cpu.target import Target
from needle.compiler.access import View, view_of
from needle.compiler.fusion import Group
from needle.compiler.index import Var
from needle.dtypes import DType
from needle.graph.ir import Node, Value
from needle.ops.convolution_form import Convolution
from needle.ops.winograd import KERNEL

if TYPE_CHECKING:
    from needle.backends.cpu.tuning.candidates import Choose


@dataclass
class ConvolutionPlan:
    """A convolution, or one of its gradients, as a kernel of a program; see `AnchorPlan`."""

    group: Group
    plan: ConvPlan
    operands: tuple[View, View]
    threads: int
    tasks: int
    workspace: int

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        """Emit the kernel: a call of the convolution's function with the epilogue fused in."""
        f = kernel.f
        spec = self.plan.spec
        spec = replace(spec, epilogue=_epilogue(kernel, self.group, spec.in_pairs))
        name = f"{f.name}_convolution"
        convolution = emit_conv(f.module, spec, self.threads, name=name, plan=self.plan)
        first, second = (
            f.pointer(kernel.pointer_of(v.base), v.offset, v.base.dtype) for v in self.operands
        )
        task = f.argument("task")
        convolution.call(f, first, second, "null", extra="%args", workspace=workspace, task=task)


def plan_convolution(
    group: Group,
    lower: Convolution,
    is_stored: Callable[[Value], bool],
    target: Target,
    threads: int,
    choose: Choose | None = None,
) -> ConvolutionPlan:
    """Return the plan of a convolution or of one of its gradients."""
    node = group.anchor
    assert node is not None
    spec = _spec(node, lower)
    views = [view_of(v, is_stored) for v in node.inputs]
    if lower.form == "weight_grad":  # its record has the cotangent first
        views.reverse()
    first, second = views
    assert first is not None
    assert second is not None
    chosen = choose(spec) if choose else None
    assert chosen is None or isinstance(chosen, ConvPlan)
    plan = chosen or plan_conv(spec, target, threads)
    return ConvolutionPlan(group, plan, (first, second), threads, plan.tasks, plan.workspace)


@dataclass
class WeightTransformPlan:
    """The transformation of a weight as a kernel of a program; see `AnchorPlan`."""

    group: Group
    transform: WeightKernel
    weight: View
    tasks: int
    workspace: int

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        """Emit the kernel."""
        f, base = kernel.f, self.weight.base
        transform = replace(self.transform, epilogue=_epilogue(kernel, self.group, False))
        weight = f.pointer(kernel.pointer_of(base), self.weight.offset, base.dtype)
        transform.call(f, weight, "%args", workspace)


def plan_weight_transform(
    group: Group, is_stored: Callable[[Value], bool], target: Target, threads: int
) -> WeightTransformPlan:
    """Return the plan of the transformation of a weight for Winograd's algorithm."""
    node = group.anchor
    assert node is not None
    weight = view_of(node.inputs[0], is_stored)
    assert weight is not None
    is_turned = node.attrs["is_turned"]
    transform = WeightKernel.of(node.inputs[0].shape, is_turned, target, threads)
    return WeightTransformPlan(group, transform, weight, transform.tasks, transform.workspace)


def _spec(node: Node, lower: Convolution) -> ConvSpec:
    """Return the convolution of which ``node`` computes the result or a gradient."""
    first, second, result = (v.shape for v in (*node.inputs, node.result))
    image, weight = {
        "forward": (first, second),
        "input_grad": (result, second),
        "weight_grad": (second, result),
    }[lower.form]
    images, height, width, channels = image
    kh, kw, out = (*weight[:2], weight[-1])
    if lower.in_pairs and lower.form == "forward":
        (kh, kw), out = node.attrs["kernel"], node.attrs["out_channels"]
    if lower.by_winograd:
        kh, kw = KERNEL, KERNEL
        out = first[3] if lower.form == "weight_grad" else node.attrs["out_channels"]
    moves = ("stride", "pads", "dilation", "groups")
    sliding: dict[str, Any] = {name: node.attrs[name] for name in moves if name in node.attrs}
    return ConvSpec(
        lower.form,
        images,
        height,
        width,
        channels,
        out,
        (kh, kw),
        dtype=node.result.dtype,
        by_winograd=lower.by_winograd,
        **sliding,
    )


def _epilogue(kernel: KernelFunction, group: Group, in_pairs: bool) -> Epilogue:
    """Return what computes and stores the group's pieces from a vector of sums."""
    axes = axes_of(group.pieces[0])

    def stand(f: Function, places: dict[Var, Position], at: Place, level: int) -> None:
        numbers = (at.image, at.row, at.column, at.channel)
        for var, number in zip(axes, numbers, strict=True):
            if var is not None:
                places[var] = Position(number, level)

    def convert(f: Function, sums: Operand, dtype: DType) -> Operand:
        return convert_sums(f, sums) if in_pairs else f.convert(sums, dtype)

    return Epilogue(**fuse(kernel, group, stand, convert)._asdict())
