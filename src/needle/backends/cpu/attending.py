"""Attention in a program: a call of the generated function, which layers with equal heads share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from needle import dtypes
from needle.backends.cpu.attention import (
    BACKWARD,
    FORWARD,
    KEY_SLOPE,
    QUERY_SLOPE,
    AttentionSpec,
    Work,
    backward_bytes,
    backward_work,
    common_numbers,
    emit_backward,
    emit_forward,
    forward_bytes,
    forward_work,
    stride_words,
)
from needle.backends.cpu.kernel import KernelFunction
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.loops import BY_ROWS
from needle.backends.cpu.operands import Index, Operand
from needle.backends.cpu.target import Target
from needle.compiler.access import View, view_of
from needle.compiler.fusion import Group
from needle.compiler.index import strides_of
from needle.compiler.rows import VariesError, rows_in
from needle.graph.ir import Value
from needle.ops.attention_parts import Options

#: The names of the inputs and of the results, as `spec.FORWARD` and `spec.BACKWARD` have them.
_FORWARD_INPUTS, _RESULTS = ("q", "k", "v"), ("out", "lse")
_BACKWARD_INPUTS, _SLOPES = ("g", "q", "k", "v", "lse", "delta"), ("dq", "dk", "dv")


@dataclass
class AttentionPlan:
    """Attention, or its gradients, as a kernel of a program; see `AnchorPlan`.

    Attributes:
        inputs: where they lie, by their names.
        results: by theirs.
        numbers: of the call.
        spec: what is called.
        is_forward: whether it is no gradient.
        work: of the tasks, for the results that the program wants.
        steps: if the number of examples varies, bytes from one to the next in what has examples; a
            task then goes through some of them, one after the other.
        batch: the mark for their number.
    """

    inputs: dict[str, View]
    results: dict[str, Value]
    numbers: dict[str, int]
    spec: AttentionSpec
    is_forward: bool
    work: Callable[[int], Work]
    tasks: int
    workspace: int
    steps: dict[str, int] = field(default_factory=dict)
    batch: int = 0

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        """Emit the kernel."""
        f = kernel.f
        written = {n: v for n, v in self.results.items() if kernel.is_written(v)}
        work = self.work(
            sum(bit for bit, names in _WANTS.items() if any(n in written for n in names))
        )
        pointers = {
            name: f.pointer(kernel.pointer_of(view.base), view.offset, view.base.dtype)
            for name, view in self.inputs.items()
        }
        pointers |= {name: kernel.pointer_of(v) for name, v in written.items()}
        pointers["workspace"] = workspace
        for name, array in (("items", work.items), ("bounds", work.bounds)):
            pointers[name] = _constant(f, name, [int(x) for x in array.reshape(-1)])
        names = FORWARD if self.is_forward else BACKWARD
        words = f.at_entry(f"alloca [{len(names)} x i64], align 8")
        for i, name in enumerate(names):
            at = f.pointer(words, i, dtypes.int64)
            if name in pointers:
                f.emit(f"store ptr {pointers[name]}, ptr {at}")
            else:
                f.store(f.operand(self.numbers.get(name, 0)), at, 0)
        # The workspace is this task's own: no bytes from one task to the next.
        emit = emit_forward if self.is_forward else emit_backward
        function = emit(f.module, self.spec)
        if not self.batch:
            f.emit(f"call void @{function}(ptr {words}, i64 %task)")
            return

        def example(i: Index, _: list[Operand]) -> None:
            for name, step in self.steps.items():
                if name in pointers:
                    here = f.pointer(pointers[name], f.mul_index(i, step), dtypes.uint8)
                    at = f.pointer(words, names.index(name), dtypes.int64)
                    f.emit(f"store ptr {here}, ptr {at}")
            f.emit(f"call void @{function}(ptr {words}, i64 0)")

        f.loop(*kernel.share_of(self.batch, 1), 1, [], example)


#: Which results each part of the work is for.
_WANTS = {QUERY_SLOPE: ("dq",), KEY_SLOPE: ("dk", "dv")}


def _constant(f: Function, stem: str, numbers: list[int]) -> str:
    """Return the address of numbers in the module."""
    listed = ", ".join(f"i64 {n}" for n in numbers)
    kind = f"[{len(numbers)} x i64]"
    return f"@{f.module.constant(stem, f'{kind} [{listed}]')}"


def plan_attention(
    group: Group, is_stored: Callable[[Value], bool], target: Target, threads: int
) -> AttentionPlan:
    """Return the plan of attention or of its gradients."""
    node = group.anchor
    assert node is not None
    o = Options(**node.attrs)
    is_forward = len(node.results) == len(_RESULTS)
    names = _FORWARD_INPUTS if is_forward else _BACKWARD_INPUTS
    given = dict(zip(names, node.inputs, strict=False)) | o.name(node.inputs[len(names) :])
    views: dict[str, View] = {}
    for name, value in given.items():
        view = view_of(value, is_stored)
        assert view is not None
        views[name] = view
    results = dict(zip(_RESULTS if is_forward else _SLOPES, node.results, strict=True))
    q, k, v = (given[x].shape for x in "qkv")
    (batch, length, heads, width), (source, groups) = q, k[1:3]
    if any(map(rows_in, (length, heads, width, source, groups))):
        raise VariesError("the extent of attention's positions or heads varies")
    varies = rows_in(batch) != 0
    if varies and o.dropout > 0:
        raise VariesError("attention drops weights by their places among all examples")
    numbers = common_numbers(o, length, source, heads, groups)
    shapes = {name: (value.shape, views[name].strides) for name, value in given.items()}
    shapes |= {name: (r.shape, strides_of(r.shape)) for name, r in results.items()}
    steps: dict[str, int] = {}
    if varies:
        threads = 1  # examples are what tasks share
        values = given | results
        for name, (shape, strides) in shapes.items():
            if shape and rows_in(shape[0]):
                steps[name] = strides[0] * values[name].dtype.itemsize
                shapes[name] = (1, *shape[1:]), strides
            if any(map(rows_in, (*shapes[name][0], *strides))):
                raise VariesError("attention's examples do not come first")
    for name, (shape, strides) in shapes.items():
        numbers |= stride_words(name, shape, strides)
    mask = given["mask"].dtype if o.masked else None
    spec = AttentionSpec.of(o, node.inputs[0].dtype, width, v[3], mask, numbers)
    sizes = (1 if varies else batch, heads, groups, length, source, o.causal, threads)

    def work(wants: int) -> Work:
        return forward_work(*sizes) if is_forward else backward_work(*sizes, wants)

    nbytes = forward_bytes(spec, target) if is_forward else backward_bytes(spec)
    tasks = BY_ROWS if varies else work(QUERY_SLOPE | KEY_SLOPE).tasks
    mark = batch if varies else 0
    return AttentionPlan(
        views, results, numbers, spec, is_forward, work, tasks, nbytes, steps, mark
    )
