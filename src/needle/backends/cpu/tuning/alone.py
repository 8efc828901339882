"""Kernels alone: on arrays of their own, without epilogues, to be run and timed.

All plans of a kernel are functions of one module, so that what they share is compiled once.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence

import numpy as np

from needle import dtypes
from needle.arrays import aligned
from needle.backends.cpu import jit
from needle.backends.cpu.conv.kernel import ConvPlan, emit_conv
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.gemm.kernel import emit_gemm
from needle.backends.cpu.gemm.plan import Plan
from needle.backends.cpu.gemm.spec import GemmSpec, Matrix
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import Target
from needle.backends.cpu.tuning.candidates import AnyPlan, Spec
from needle.dtypes import DType
from needle.ops.paired_convolution import paired_shape
from needle.ops.samples import Array
from needle.shapes import Shape

#: The words of a launch: addresses of the operands, of the result and of the workspace.
WORDS = ("first", "second", "out", "workspace")
#: Bytes that each thread reads and writes to have caches near the core forget what they hold: twice
#: the L2 cache of processors that have large ones.
SWEPT_BYTES = 4 << 20
#: Words of 8 bytes of a cache line.
LINE_WORDS = 8
#: Emits a kernel's call for one task: operands, result, the task's workspace, the task.
Call = Callable[[Function, str, str, str, str, Index], None]


class Alone:
    """Kernels that compute the same by different plans.

    Args:
        spec: what they compute; an epilogue is left out.
        plans: how.
        target: this machine's processor, or a narrower one.
        threads: for which they were planned.

    Attributes:
        out: the result.
    """

    def __init__(self, spec: Spec, plans: Sequence[AnyPlan], target: Target, threads: int) -> None:
        module = Module(target)
        made = [_emit(module, spec, plan, threads) for plan in plans]
        write = _emit_write(module, threads)
        names = [name for name, _ in made]
        self._library = jit.load_object(jit.compile_objects(module), [*names, write])
        self._runs = [self._library.function(name, ctypes.c_void_p) for name in names]
        self._write = self._library.function(write, ctypes.c_void_p)
        self._swept = aligned((SWEPT_BYTES * threads,), dtypes.uint8, np.zeros)
        self._workspace = aligned((max(nbytes for _, nbytes in made) + 64,), dtypes.uint8)
        self._operands, self.out = _arrays(spec)
        starts = [x[i:].ctypes.data for x, i in (*self._operands, (self._workspace, 0))]
        starts.insert(2, self.out.ctypes.data)
        self._words = np.array(starts, np.int64)

    def run(self, number: int) -> float:
        """Run a kernel; return how many seconds it took."""
        words = ctypes.c_void_p(self._words.ctypes.data)
        run = self._runs[number]
        start = time.perf_counter()
        run(words)
        return time.perf_counter() - start

    def sweep(self) -> None:
        """Have the caches near all cores hold something else."""
        self._written(self._swept)

    def hand_over(self) -> None:
        """Have each core write its part of operands and result, as other kernels do that make them,
        or read them: parts then come from the caches of other cores."""
        for operand, _ in self._operands:
            self._written(operand)
        self._written(self.out)

    def _written(self, x: Array) -> None:
        """Have all threads read and write parts of an array, in words of 8 bytes."""
        words = np.array([x.ctypes.data, x.nbytes // 8, 0], np.int64)
        self._write(ctypes.c_void_p(words.ctypes.data))


def _emit(module: Module, spec: Spec, plan: AnyPlan, threads: int) -> tuple[str, int]:
    """Add a kernel and what launches it; return the name, and the bytes of all workspaces."""
    if isinstance(spec, ConvSpec):
        assert isinstance(plan, ConvPlan)
        convolution = emit_conv(module, spec, threads, plan=plan)

        def convolve(f: Function, x: str, y: str, out: str, workspace: str, task: Index) -> None:
            convolution.call(f, x, y, out, workspace=workspace, task=task)

        nbytes = convolution.workspace
        return emit_launch(module, convolve, convolution.tasks, nbytes), convolution.tasks * nbytes
    assert isinstance(plan, Plan)
    product = emit_gemm(module, spec, threads=threads, plan=plan)

    def multiply(f: Function, a: str, b: str, c: str, workspace: str, task: Index) -> None:
        product.call(f, a, b, c, workspace=workspace, task=task)

    nbytes = product.workspace
    return emit_launch(module, multiply, product.tasks, nbytes), product.tasks * nbytes


def emit_launch(module: Module, call: Call, tasks: int, nbytes: int) -> str:
    """Add ``void name(ptr words)``, which runs all tasks of a kernel.

    Args:
        module: the kernel's.
        call: emits the kernel's call for a task.
        tasks: how many there are.
        nbytes: of a task's workspace.

    Returns:
        Its name.
    """
    f = Function(module, module.unique("launch_task"), {"words": "ptr", "task": "i64"})
    addresses = [f.pointer("%words", i, dtypes.int64) for i in range(len(WORDS))]
    first, second, out, workspace = (f.value(f"load ptr, ptr {a}") for a in addresses)
    task = f.argument("task")
    own = f.pointer(workspace, f.mul_index(task, nbytes), dtypes.uint8)
    call(f, first, second, out, own, task)
    body = f.end()
    name = module.unique("launch")
    f = Function(module, name, {"words": "ptr"}, internal=False)
    _run_tasks(f, body, "%words", tasks)
    return f.end()


def _emit_write(module: Module, threads: int) -> str:
    """Add a function that has all threads read and write a part of an array, which stays as it is.

    It takes an address of words: where the array begins, how many words of 8 bytes it has, and a 0
    that the compiler does not know of.
    """
    f = Function(module, module.unique("write_task"), {"words": "ptr", "task": "i64"})
    base = f.value("load ptr, ptr %words")
    count, zero = (f.load("%words", i, dtypes.int64) for i in (1, 2))
    task = f.argument("task")
    first, last = (
        f.floordiv_index(f.mul_index(count, f.add_index(task, i)), threads) for i in (0, 1)
    )

    def line(i: Index, _: list[Operand]) -> None:
        f.store(f.binary("or", f.load(base, i, dtypes.int64), zero), base, i)

    f.loop(first, last, LINE_WORDS, [], line)
    body = f.end()
    f = Function(module, module.unique("write"), {"words": "ptr"}, internal=False)
    _run_tasks(f, body, "%words", threads)
    return f.end()


def _run_tasks(f: Function, body: str, data: str, tasks: int) -> None:
    if tasks == 1:
        f.emit(f"call void @{body}(ptr {data}, i64 0)")
        return
    f.module.declare("needle_parallel", "void", ["ptr", "ptr", "i64"])
    f.emit(f"call void @needle_parallel(ptr @{body}, ptr {data}, i64 {tasks})")


# Arrays


def _arrays(spec: Spec) -> tuple[list[tuple[Array, int]], Array]:
    """Return the operands, each with the number of its first element, and the result."""
    if isinstance(spec, ConvSpec):
        weight: Shape = spec.w_shape
        if spec.in_pairs and spec.form == "forward":
            outs = spec.out_channels // spec.groups
            weight = (*paired_shape(spec.kernel, spec.depth, outs, spec.groups), 2)
        shapes = {
            "forward": (spec.x_shape, weight),
            "input_grad": (spec.y_shape, weight),
            "weight_grad": (spec.x_shape, spec.y_shape),
        }[spec.form]
        made = [(_normal(int(np.prod(shape)), spec.dtype), 0) for shape in shapes]
        return made, aligned((int(np.prod(spec.result)),), spec.dtype)
    m, n, k = spec.m or 0, spec.n or 0, spec.k or 0
    operands = []
    for operand, extents in ((spec.a, (m, k)), (spec.b, (k, n))):
        low, high = _span(spec, operand, extents)
        operands.append((_normal(high - low + 1, operand.dtype), -low))
    low, high = _span(spec, spec.c, (m, n))
    return operands, aligned((high - low + 1,), spec.c.dtype)


def _span(spec: GemmSpec, operand: Matrix, extents: tuple[int, int]) -> tuple[int, int]:
    """Return the least and the greatest offset of an element."""
    strides = (*operand.batch, operand.row, operand.column)
    ends = [
        ((n or 1) - 1) * (s or 0) for n, s in zip((*spec.batch, *extents), strides, strict=True)
    ]
    return sum(min(e, 0) for e in ends), sum(max(e, 0) for e in ends)


def _normal(count: int, dtype: DType) -> Array:
    """Return so many numbers, normal ones that repeat: their sums are neither 0 nor subnormal."""
    some = np.random.default_rng(0).standard_normal(min(count, 1 << 16)).astype(dtype)
    values = aligned((count,), dtype)
    for start in range(0, count, len(some)):
        values[start : start + len(some)] = some[: count - start]
    return values
