"""G g Gᵀ: the transformation of weights for convolution by Winograd's algorithm.

See `needle.ops.winograd_convolution`. Output channels of the transformed weight lie along the
lanes; where the weight is turned round, these are its input channels, which are turned in registers
first, tap by tap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from needle.backends.cpu.conv.finish import Box, Finish
from needle.backends.cpu.conv.parts import share
from needle.backends.cpu.conv.spec import Epilogue
from needle.backends.cpu.gemm import packing
from needle.backends.cpu.gemm.plan import uses_masks
from needle.backends.cpu.gemm.tiling import max_index
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.target import Target
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType, float32
from needle.ops.winograd import ELEMENTS, KERNEL
from needle.ops.winograd_convolution import panel_width

#: What the function takes.
ARGUMENTS = {"weight": "ptr", "extra": "ptr", "workspace": "ptr", "task": "i64"}
#: Elements of the result of a task, at least: about what it costs to begin one.
TASK_ELEMENTS = 1 << 15


@dataclass(frozen=True)
class WeightKernel:
    """A weight [3, 3, C, O] transformed, or turned round and transformed.

    Attributes:
        channels: that are summed: C, or O of a weight that is turned.
        outs: channels of the result: O, or C.
        is_turned: whether the kernel is turned round and its channels change their parts.
        lanes: of a vector.
        threads: into about how many tasks large weights are split.
        dtype: of all.
        epilogue: what stores the numbers: their place is panel, number of the tile, channel, and
            output channel of the panel.
    """

    channels: int
    outs: int
    is_turned: bool
    lanes: int
    threads: int
    epilogue: Epilogue | None = None
    dtype: DType = float32

    @classmethod
    def of(
        cls, shape: tuple[int, ...], is_turned: bool, target: Target, threads: int
    ) -> WeightKernel:
        """Return the transformation of a weight of a shape."""
        channels, outs = shape[2:]
        if is_turned:
            channels, outs = outs, channels
        return cls(channels, outs, is_turned, target.lanes(float32), threads)

    @property
    def vectors(self) -> int:
        """Vectors of output channels, those that fill the last panel with them."""
        width = panel_width(self.outs)
        return -(-self.outs // width) * width // self.lanes

    @property
    def tasks(self) -> int:
        """How many tasks: each has some of the vectors."""
        elements = ELEMENTS * self.channels * self.vectors * self.lanes
        return max(1, min(self.threads, self.vectors, elements // TASK_ELEMENTS))

    @property
    def workspace(self) -> int:
        """Bytes that each task needs to itself: the taps of a vector, turned."""
        elements = KERNEL**2 * self.channels * self.lanes if self.is_turned else 0
        return elements * self.dtype.itemsize

    def call(self, f: Function, weight: str, extra: str, workspace: str) -> None:
        """Emit a task: a call of a function that is emitted for it.

        Args:
            f: the caller, whose argument ``task`` says which task.
            weight: what is transformed.
            extra: passed through to the epilogue.
            workspace: of the task.
        """
        name = self._emit(f.module, f"{f.name}_transform")
        pointers = ", ".join(f"ptr {p}" for p in (weight, extra, workspace))
        f.emit(f"call void @{name}({pointers}, {f.argument('task').typed})")

    def _emit(self, module: Module, name: str) -> str:
        f = MathFunction(module, module.unique(name), ARGUMENTS)
        task: Index = f.argument("task") if self.tasks > 1 else 0
        first, last = share(f, self.vectors, task, self.tasks)
        whole, tail = divmod(self.outs, self.lanes)
        finish = Finish(Box((1, ELEMENTS, 1)), (), (self.lanes,), self.dtype, 1, self.epilogue)
        state = finish.begin(f)

        def vectors(low: Index, high: Index, existing: int) -> None:
            def one(v: Index, _: list[Operand]) -> None:
                self._vector(f, (v, existing), finish, state)

            f.loop(low, high, 1, [], one)

        vectors(first, f.min_index(last, whole), self.lanes)
        if tail:
            vectors(max_index(f, first, whole), f.min_index(last, whole + 1), tail)
            whole += 1
        if whole < self.vectors:  # what fills the last panel
            vectors(max_index(f, first, whole), last, 0)
        finish.end(f, state)
        return f.end()

    def _vector(
        self,
        f: Function,
        vector: tuple[Index, int],
        finish: Finish,
        state: object,
    ) -> None:
        """Emit a vector of output channels, of which so many exist, for all channels."""
        number, existing = vector
        column = f.mul_index(number, self.lanes)
        if existing and self.is_turned:
            self._turn(f, column, existing)
        width = panel_width(self.outs)
        mask = f.tail_mask(existing, self.lanes) if existing < self.lanes else None

        def channel(c: Index, _: list[Operand]) -> None:
            taps = [f.constant(0, self.dtype, self.lanes)] * KERNEL**2
            if existing and self.is_turned:
                start = f.pointer("%workspace", f.mul_index(c, self.lanes), self.dtype)
                step = self.channels * self.lanes
                taps = [f.load(start, t * step, self.dtype, self.lanes) for t in range(KERNEL**2)]
                taps = [f.select(mask, x, f.like(0, x)) if mask else x for x in reversed(taps)]
            elif existing:
                at = f.add_index(f.mul_index(c, self.outs), column)
                start = f.pointer("%weight", at, self.dtype)
                step = self.channels * self.outs
                taps = [self._load(f, start, t * step, existing) for t in range(KERNEL**2)]
            columns = [_filtered(f, taps[j::KERNEL]) for j in range(KERNEL)]
            numbers = [x for row in zip(*columns, strict=True) for x in _filtered(f, row)]
            place: dict[str, Index] = {
                "image": f.floordiv_index(column, width),
                "row": 0,
                "column": c,
                "channel": f.mod_index(column, width),
            }
            finish.store(f, numbers, [None], state, place)

        f.loop(0, self.channels, 1, [], channel)

    def _load(self, f: Function, start: str, at: int, existing: int) -> Operand:
        """Emit the load of a vector of which so many lanes exist; the others are 0."""
        if existing == self.lanes:
            return f.load(start, at, self.dtype, self.lanes)
        if uses_masks(f.target, self.dtype):
            mask = f.tail_mask(existing, self.lanes)
            return f.load(start, at, self.dtype, self.lanes, mask)
        x = f.constant(0, self.dtype, self.lanes)
        for lane in range(existing):
            x = f.insert(x, f.load(start, at + lane, self.dtype), lane)
        return x

    def _turn(self, f: Function, column: Index, existing: int) -> None:
        """Emit the turning of all taps of some output channels, which are far apart."""
        start = f.pointer("%weight", f.mul_index(column, self.channels), self.dtype)

        def tap(t: Index, _: list[Operand]) -> None:
            source = f.pointer(start, f.mul_index(t, self.channels * self.outs), self.dtype)
            to = f.pointer("%workspace", f.mul_index(t, self.channels * self.lanes), self.dtype)
            packing.turn(
                f, (source, self.dtype, self.channels), (to, self.lanes), self.channels, existing
            )

        f.loop(0, KERNEL**2, 1, [], tap)


def _filtered(f: Function, taps: Sequence[Operand]) -> list[Operand]:
    """Emit G times three taps."""
    half = f.like(0.5, taps[0])
    outer = f.mul(f.add(taps[0], taps[2]), half)
    middle = f.mul(taps[1], half)
    return [taps[0], f.add(outer, middle), f.sub(outer, middle), taps[2]]
