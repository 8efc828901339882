"""A small typed builder of LLVM IR text: modules, functions, operands, arithmetic, loops.

Text, because parsing it takes LLVM a few milliseconds, where building the same through an API takes
Python far longer; and because it can be read. Every operand knows its needle dtype and how many
lanes it has, so that one lowering serves scalars and vectors, signed and unsigned integers, and
bools: those are one bit in registers and one byte in memory.

Integers that index are either Python ints, folded here, or operands of dtype int64: the same
generator then serves extents known when compiling and extents passed as arguments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence

from needle import dtypes
from needle.backends.cpu.blocks import lines_of, settle_phis
from needle.backends.cpu.conversion import convert
from needle.backends.cpu.module import Module
from needle.backends.cpu.operands import (
    SUFFIX,
    Index,
    Operand,
    Segment,
    literal,
    mangled,
    memory_type,
    scalar_type,
    vector_type,
)
from needle.dtypes import DType

POINTER = "ptr"


class Function:
    """Emits one function, instruction by instruction.

    Args:
        module: the module it becomes part of, when `end` is called.
        name: unique in the module.
        arguments: names and LLVM types: ``{"a": "ptr", "n": "i64"}``, perhaps with attributes, as
            in ``"ptr noalias"``.
        internal: whether only this module calls it.
        inline: "noinline", "alwaysinline" or "".
    """

    def __init__(
        self,
        module: Module,
        name: str,
        arguments: dict[str, str],
        *,
        internal: bool = True,
        inline: str = "",
    ) -> None:
        self.module = module
        self.target = module.target
        self.name = name
        self._is_internal = internal
        listed = ", ".join(f"{kind} %{argument}" for argument, kind in arguments.items())
        self._signature = f"({listed}) {inline} #0"
        #: A line, or the lines of a `Segment`.
        self._lines: Segment = []
        self._body = self._lines
        self._lines.append("entry:")
        self._entry = self.segment()
        self._block = "entry"
        self._is_split = False  #: whether a block was split by code emitted into it later
        self._count = 0
        #: Values that lowerings refuse, with the conditions; whoever calls a lowering takes them.
        self.refusals: list[tuple[Operand, Operand]] = []

    # Lines

    def _fresh(self, stem: str = "v") -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def emit(self, line: str) -> None:
        """Add an instruction without a result."""
        self._lines.append(f"  {line}")

    def value(self, instruction: str) -> str:
        """Add an instruction and return the name of its result."""
        name = f"%{self._fresh()}"
        self._lines.append(f"  {name} = {instruction}")
        return name

    def at_entry(self, instruction: str) -> str:
        """Add an instruction at the function's start (an alloca), return its result's name."""
        name = f"%{self._fresh('e')}"
        self._entry.append(f"  {name} = {instruction}")
        return name

    def refuse(self, condition: Operand, x: Operand) -> None:
        """Note that ``x`` is an error where the condition holds."""
        self.refusals.append((condition, x))

    def at_entry_line(self, line: str) -> None:
        """Add an instruction without a result at the function's start."""
        self._entry.append(f"  {line}")

    def segment(self) -> Segment:
        """Return a place here that `into` can fill later: how invariants get out of a loop."""
        place: Segment = []
        self._lines.append(place)
        return place

    @contextlib.contextmanager
    def into(self, segment: Segment) -> Generator[None]:
        """Emit into an earlier place."""
        current, self._lines = self._lines, segment
        block = self._block
        try:
            yield
        finally:
            self._lines = current
            self._is_split = self._is_split or self._block != block
            self._block = block

    def _label(self, name: str) -> None:
        self._lines.append(f"{name}:")
        self._block = name

    def end(self) -> str:
        """Return, add the function to the module, and return its name, or that of an equal one."""
        self.emit("ret void")
        lines = list(lines_of(self._body))
        lines = settle_phis(lines) if self._is_split else lines
        text = "\n".join([f"{self._signature} {{", *lines, "}"])
        self.name = self.module.add_function(self.name, text, internal=self._is_internal)
        return self.name

    # Constants and indices

    def constant(self, value: float | int | bool, dtype: DType, lanes: int = 0) -> Operand:
        """Return a constant, in every lane."""
        text = literal(value, dtype)
        if lanes:
            element = f"{scalar_type(dtype)} {text}"
            text = f"<{', '.join([element] * lanes)}>"
        return Operand(text, dtype, lanes)

    def like(self, value: float | int | bool, other: Operand) -> Operand:
        """Return a constant of the dtype and lanes of ``other``."""
        return self.constant(value, other.dtype, other.lanes)

    def iota(self, dtype: DType, lanes: int) -> Operand:
        """Return the vector 0, 1, 2 …"""
        texts = ", ".join(f"{scalar_type(dtype)} {literal(i, dtype)}" for i in range(lanes))
        return Operand(f"<{texts}>", dtype, lanes)

    def operand(self, index: Index) -> Operand:
        """Return an index as an int64 operand."""
        return self.constant(index, dtypes.int64) if isinstance(index, int) else index

    def add_index(self, x: Index, y: Index) -> Index:
        """Return x + y."""
        if isinstance(x, int) and isinstance(y, int):
            return x + y
        if isinstance(x, int) and x == 0:
            return y
        if isinstance(y, int) and y == 0:
            return x
        return self.binary("add nsw", self.operand(x), self.operand(y))

    def mul_index(self, x: Index, y: Index) -> Index:
        """Return x · y."""
        if isinstance(x, int) and isinstance(y, int):
            return x * y
        for a, b in ((x, y), (y, x)):
            if isinstance(a, int) and a in (0, 1):
                return b if a else 0
        return self.binary("mul nsw", self.operand(x), self.operand(y))

    def sub_index(self, x: Index, y: Index) -> Index:
        """Return x − y."""
        if isinstance(x, int) and isinstance(y, int):
            return x - y
        if isinstance(y, int) and y == 0:
            return x
        return self.binary("sub nsw", self.operand(x), self.operand(y))

    def floordiv_index(self, x: Index, y: Index) -> Index:
        """Return ⌊x / y⌋ for x ≥ 0 and y > 0."""
        if isinstance(x, int) and isinstance(y, int):
            return x // y
        if isinstance(y, int) and y == 1:
            return x
        return self.binary("udiv", self.operand(x), self.operand(y))

    def mod_index(self, x: Index, y: Index) -> Index:
        """Return x mod y for x ≥ 0 and y > 0."""
        if isinstance(x, int) and isinstance(y, int):
            return x % y
        if isinstance(y, int) and y == 1:
            return 0
        return self.binary("urem", self.operand(x), self.operand(y))

    def min_index(self, x: Index, y: Index) -> Index:
        """Return the smaller of x and y."""
        if isinstance(x, int) and isinstance(y, int):
            return min(x, y)
        a, b = self.operand(x), self.operand(y)
        return self.select(self.compare("slt", a, b), a, b)

    # Arithmetic. Both operands have the same dtype and lanes.

    def binary(self, instruction: str, x: Operand, y: Operand) -> Operand:
        """Return the result of an LLVM instruction of two operands: ``fadd``, ``and`` …"""
        return Operand(self.value(f"{instruction} {x.type} {x.text}, {y.text}"), x.dtype, x.lanes)

    def add(self, x: Operand, y: Operand) -> Operand:
        """Return x + y; integers wrap."""
        return self.binary("fadd" if x.is_float else "add", x, y)

    def sub(self, x: Operand, y: Operand) -> Operand:
        """Return x − y; integers wrap."""
        return self.binary("fsub" if x.is_float else "sub", x, y)

    def mul(self, x: Operand, y: Operand) -> Operand:
        """Return x · y; integers wrap."""
        return self.binary("fmul" if x.is_float else "mul", x, y)

    def div(self, x: Operand, y: Operand) -> Operand:
        """Return x / y: floats, or integers truncated (y ≠ 0, and no overflow)."""
        return self.binary("fdiv" if x.is_float else "sdiv" if x.is_signed else "udiv", x, y)

    def rem(self, x: Operand, y: Operand) -> Operand:
        """Return the remainder of `div` for integers (y ≠ 0, and no overflow)."""
        return self.binary("srem" if x.is_signed else "urem", x, y)

    def neg(self, x: Operand) -> Operand:
        """Return −x."""
        if x.is_float:
            return Operand(self.value(f"fneg {x.typed}"), x.dtype, x.lanes)
        return self.sub(self.like(0, x), x)

    def fma(self, x: Operand, y: Operand, z: Operand) -> Operand:
        """Return x · y + z, rounded once; on processors without that instruction, twice.

        There the exact result would be a call of the C library for each element.
        """
        if not self.target.fma:
            return self.add(self.mul(x, y), z)
        return self.intrinsic("fma", x, y, z)

    def intrinsic(self, name: str, *operands: Operand) -> Operand:
        """Return the result of ``llvm.name``, whose operands and result have one type."""
        x = operands[0]
        suffix = SUFFIX.get(x.scalar_type, x.scalar_type)
        full = f"llvm.{name}.{f'v{x.lanes}' if x.lanes else ''}{suffix}"
        return self.call(full, x, *operands)

    def call(self, name: str, like: Operand, *operands: Operand) -> Operand:
        """Return the result of a function whose result has the type of ``like``."""
        self.module.declare(name, like.type, [o.type for o in operands])
        arguments = ", ".join(o.typed for o in operands)
        return Operand(self.value(f"call {like.type} @{name}({arguments})"), like.dtype, like.lanes)

    def compare(self, predicate: str, x: Operand, y: Operand) -> Operand:
        """Return x ⋚ y as bools, by an LLVM predicate: ``olt``, ``une`` for floats, ``slt``,
        ``ult``, ``eq`` for integers."""
        kind = "fcmp" if x.is_float else "icmp"
        name = self.value(f"{kind} {predicate} {x.type} {x.text}, {y.text}")
        return Operand(name, dtypes.bool, x.lanes)

    def logical_not(self, x: Operand) -> Operand:
        """Return whether a bool is false."""
        return self.binary("xor", x, self.like(True, x))

    def less(self, x: Operand, y: Operand) -> Operand:
        """Return x < y; false for NaN."""
        return self.compare("olt" if x.is_float else "slt" if x.is_signed else "ult", x, y)

    def select(self, condition: Operand, x: Operand, y: Operand) -> Operand:
        """Return x where the condition holds, else y."""
        text = self.value(f"select {condition.typed}, {x.typed}, {y.typed}")
        return Operand(text, x.dtype, x.lanes)

    def maximum(self, x: Operand, y: Operand) -> Operand:
        """Return the larger; NaN where either is."""
        return self._extreme(x, y, "ogt", "sgt", "ugt")

    def minimum(self, x: Operand, y: Operand) -> Operand:
        """Return the smaller; NaN where either is."""
        return self._extreme(x, y, "olt", "slt", "ult")

    def _extreme(self, x: Operand, y: Operand, ordered: str, signed: str, unsigned: str) -> Operand:
        if not x.is_float:
            return self.select(self.compare(signed if x.is_signed else unsigned, x, y), x, y)
        # x where one of them is NaN: one instruction on x86. Then y where that is NaN.
        better = self.select(self.compare(ordered, y, x), y, x)
        return self.select(self.compare("uno", y, y), y, better)

    # Conversions

    def convert(self, x: Operand, dtype: DType) -> Operand:
        """Return x in another dtype: floats round to nearest, float to int truncates and saturates
        (NaN becomes 0), to bool is ``x ≠ 0``."""
        return convert(self, x, dtype)

    def bitcast(self, x: Operand, dtype: DType) -> Operand:
        """Return the bits of x as another dtype of the same width."""
        target = vector_type(scalar_type(dtype), x.lanes)
        if target == x.type:
            return Operand(x.text, dtype, x.lanes)
        return Operand(self.value(f"bitcast {x.typed} to {target}"), dtype, x.lanes)

    # Vectors

    def splat(self, x: Operand, lanes: int) -> Operand:
        """Return a scalar in every lane; a vector comes back as it is."""
        if x.lanes or not lanes:
            return x
        kind = vector_type(x.scalar_type, lanes)
        first = self.value(f"insertelement {kind} poison, {x.typed}, i32 0")
        mask = f"<{lanes} x i32> zeroinitializer"
        text = self.value(f"shufflevector {kind} {first}, {kind} poison, {mask}")
        return Operand(text, x.dtype, lanes)

    def extract(self, x: Operand, lane: int) -> Operand:
        """Return one lane."""
        return Operand(self.value(f"extractelement {x.typed}, i32 {lane}"), x.dtype)

    def insert(self, x: Operand, element: Operand, lane: int) -> Operand:
        """Return x with one lane replaced."""
        text = self.value(f"insertelement {x.typed}, {element.typed}, i32 {lane}")
        return Operand(text, x.dtype, x.lanes)

    def shuffle(self, x: Operand, y: Operand, lanes: Sequence[int]) -> Operand:
        """Return the lanes of x (0 …) and y (n …) in another order."""
        mask = ", ".join(f"i32 {i}" for i in lanes)
        text = self.value(f"shufflevector {x.typed}, {y.typed}, <{len(lanes)} x i32> <{mask}>")
        return Operand(text, x.dtype, len(lanes))

    def any(self, x: Operand) -> Operand:
        """Return whether any lane of a bool is true, as a scalar."""
        if not x.lanes:
            return x
        name = f"llvm.vector.reduce.or.v{x.lanes}i1"
        self.module.declare(name, "i1", [x.type])
        return Operand(self.value(f"call i1 @{name}({x.typed})"), dtypes.bool)

    def fold(self, x: Operand, combine: Callable[[Operand, Operand], Operand]) -> Operand:
        """Combine all lanes to a scalar, halves with halves: an order that lanes alone determine.

        The number of lanes is a power of two.
        """
        while x.lanes > 1:
            half = x.lanes // 2
            low = self.shuffle(x, x, range(half))
            high = self.shuffle(x, x, range(half, x.lanes))
            x = combine(low, high)
        return self.extract(x, 0) if x.lanes else x

    # Memory

    def pointer(self, base: str, offset: Index, dtype: DType) -> str:
        """Return the address of the element ``offset`` counted from ``base``."""
        if isinstance(offset, int) and offset == 0:
            return base
        text = str(offset) if isinstance(offset, int) else offset.text
        return self.value(f"getelementptr inbounds {memory_type(dtype)}, ptr {base}, i64 {text}")

    def load(
        self, base: str, offset: Index, dtype: DType, lanes: int = 0, mask: Operand | None = None
    ) -> Operand:
        """Load a scalar, or ``lanes`` neighbours; masked lanes are 0."""
        address = self.pointer(base, offset, dtype)
        kind = vector_type(memory_type(dtype), lanes)
        if mask is None:
            text = self.value(f"load {kind}, ptr {address}, align {dtype.itemsize}")
        else:
            name = f"llvm.masked.load.{mangled(dtype, lanes)}.p0"
            self.module.declare(name, kind, ["ptr", "i32", mask.type, kind])
            text = self.value(
                f"call {kind} @{name}(ptr {address}, i32 {dtype.itemsize}, {mask.typed}, "
                f"{kind} zeroinitializer)"
            )
        if dtype == dtypes.bool:
            return self.compare(
                "ne", Operand(text, dtypes.uint8, lanes), self.constant(0, dtypes.uint8, lanes)
            )
        return Operand(text, dtype, lanes)

    def store(self, x: Operand, base: str, offset: Index, mask: Operand | None = None) -> None:
        """Store a scalar, or neighbours; masked lanes are not written."""
        address = self.pointer(base, offset, x.dtype)
        align = x.dtype.itemsize
        if x.dtype == dtypes.bool:
            x = self.convert(x, dtypes.uint8)
        if mask is not None and mask.text.startswith("<") and mask.text.count("i1 1") == 1:
            # LLVM makes a scalar store of it, too, but one that is too wide if x was just narrowed.
            x, mask = self.extract(x, mask.text[1:-1].split(", ").index("i1 1")), None
        if mask is not None and mask.text == self.tail_mask(1, x.lanes).text:
            # LLVM stores too much, for a constant mask of one lane, if the lanes were truncated.
            x, mask = self.extract(x, 0), None
        if mask is None:
            self.emit(f"store {x.typed}, ptr {address}, align {align}")
        else:
            name = f"llvm.masked.store.{mangled(x.dtype, x.lanes)}.p0"
            self.module.declare(name, "void", [x.type, "ptr", "i32", mask.type])
            self.emit(f"call void @{name}({x.typed}, ptr {address}, i32 {align}, {mask.typed})")

    def gather(
        self, base: str, offsets: Operand, dtype: DType, mask: Operand | None = None
    ) -> Operand:
        """Load the elements at a vector of int64 offsets; masked lanes are 0."""
        lanes = offsets.lanes
        element = memory_type(dtype)
        addresses = self.value(f"getelementptr {element}, ptr {base}, {offsets.typed}")
        kind = vector_type(element, lanes)
        mask = mask or self.constant(True, dtypes.bool, lanes)
        name = f"llvm.masked.gather.{mangled(dtype, lanes)}.v{lanes}p0"
        pointers = f"<{lanes} x ptr>"
        self.module.declare(name, kind, [pointers, "i32", mask.type, kind])
        text = self.value(
            f"call {kind} @{name}({pointers} {addresses}, i32 {dtype.itemsize}, {mask.typed}, "
            f"{kind} zeroinitializer)"
        )
        if dtype == dtypes.bool:
            return self.compare(
                "ne", Operand(text, dtypes.uint8, lanes), self.constant(0, dtypes.uint8, lanes)
            )
        return Operand(text, dtype, lanes)

    def scatter(self, x: Operand, base: str, offsets: Operand, mask: Operand | None = None) -> None:
        """Store the lanes at a vector of int64 offsets; masked lanes are not written."""
        lanes = x.lanes
        element = memory_type(x.dtype)
        align = x.dtype.itemsize
        addresses = self.value(f"getelementptr {element}, ptr {base}, {offsets.typed}")
        if x.dtype == dtypes.bool:
            x = self.convert(x, dtypes.uint8)
        mask = mask or self.constant(True, dtypes.bool, lanes)
        name = f"llvm.masked.scatter.{mangled(x.dtype, lanes)}.v{lanes}p0"
        pointers = f"<{lanes} x ptr>"
        self.module.declare(name, "void", [x.type, pointers, "i32", mask.type])
        self.emit(
            f"call void @{name}({x.typed}, {pointers} {addresses}, i32 {align}, {mask.typed})"
        )

    def tail_mask(self, count: Index, lanes: int) -> Operand:
        """Return the mask of the first ``count`` lanes."""
        if isinstance(count, int):
            bits = ", ".join(f"i1 {int(i < count)}" for i in range(lanes))
            return Operand(f"<{bits}>", dtypes.bool, lanes)
        return self.compare("ult", self.iota(dtypes.int64, lanes), self.splat(count, lanes))

    # Control

    def loop(
        self,
        start: Index,
        stop: Index,
        step: Index,
        carried: Sequence[Operand],
        body: Callable[[Index, list[Operand]], Sequence[Operand] | None],
        *,
        runs: bool = False,
    ) -> list[Operand]:
        """Emit ``for i in range(start, stop, step)`` with values carried from turn to turn.

        Args:
            start: first value of i.
            stop: where it ends.
            step: a positive number.
            carried: what the carried values are before the first turn.
            body: from i and the carried values to their next ones.
            runs: whether it is known to run at least once.

        Returns:
            The carried values after the last turn.
        """
        known = isinstance(start, int) and isinstance(stop, int)
        if isinstance(start, int) and isinstance(stop, int):
            if stop <= start:
                return list(carried)
            if isinstance(step, int) and stop - start <= step:
                return list(body(start, list(carried)) or [])
        before = self._block
        head, done = self._fresh("loop"), self._fresh("done")
        first, last = self.operand(start), self.operand(stop)
        if known or runs:
            self.emit(f"br label %{head}")
        else:
            enter = self.compare("slt", first, last)
            self.emit(f"br i1 {enter.text}, label %{head}, label %{done}")
        self._label(head)
        i = Operand(f"%{self._fresh('i')}", dtypes.int64)
        place = self.segment()
        inside = [Operand(f"%{self._fresh('c')}", c.dtype, c.lanes) for c in carried]
        after = list(body(i, inside) or [])
        following = self.value(f"add nuw nsw i64 {i.text}, {self.operand(step).text}")
        again = self.value(f"icmp slt i64 {following}, {last.text}")
        latch = self._block
        self.emit(f"br i1 {again}, label %{head}, label %{done}")
        phis = [f"  {i.text} = phi i64 [{first.text}, %{before}], [{following}, %{latch}]"]
        for c, initial, final in zip(inside, carried, after, strict=True):
            phis.append(
                f"  {c.text} = phi {c.type} [{initial.text}, %{before}], [{final.text}, %{latch}]"
            )
        place.extend(phis)
        self._label(done)
        if known or runs:
            return after
        results = []
        for initial, final in zip(carried, after, strict=True):
            text = self.value(
                f"phi {final.type} [{initial.text}, %{before}], [{final.text}, %{latch}]"
            )
            results.append(Operand(text, final.dtype, final.lanes))
        return results

    def repeat(
        self,
        carried: Sequence[Operand],
        body: Callable[[list[Operand]], tuple[Operand, Sequence[Operand]]],
    ) -> list[Operand]:
        """Emit ``do … while``: the body at least once, and again for as long as it asks for it.

        Args:
            carried: what the carried values are before the first turn.
            body: from the carried values to whether to go on (a scalar bool) and their next ones.

        Returns:
            The carried values after the last turn.
        """
        before = self._block
        head, done = self._fresh("repeat"), self._fresh("done")
        self.emit(f"br label %{head}")
        self._label(head)
        place = self.segment()
        inside = [Operand(f"%{self._fresh('c')}", c.dtype, c.lanes) for c in carried]
        again, after = body(inside)
        latch = self._block
        self.emit(f"br i1 {again.text}, label %{head}, label %{done}")
        for c, initial, final in zip(inside, carried, after, strict=True):
            place.append(
                f"  {c.text} = phi {c.type} [{initial.text}, %{before}], [{final.text}, %{latch}]"
            )
        self._label(done)
        return list(after)

    def branch(
        self,
        condition: Operand,
        then: Callable[[], Sequence[Operand] | None],
        otherwise: Callable[[], Sequence[Operand] | None] | None = None,
    ) -> list[Operand]:
        """Emit ``if condition: … else: …`` and return the values that the taken side gives."""
        yes, no, done = self._fresh("then"), self._fresh("else"), self._fresh("end")
        self.emit(f"br i1 {condition.text}, label %{yes}, label %{no}")
        self._label(yes)
        first = list(then() or [])
        first_end = self._block
        self.emit(f"br label %{done}")
        self._label(no)
        second = list((otherwise() if otherwise else None) or [])
        second_end = self._block
        self.emit(f"br label %{done}")
        self._label(done)
        results = []
        for a, b in zip(first, second, strict=True):
            text = self.value(f"phi {a.type} [{a.text}, %{first_end}], [{b.text}, %{second_end}]")
            results.append(Operand(text, a.dtype, a.lanes))
        return results

    def switch(self, index: Operand, cases: Sequence[Callable[[], None]]) -> None:
        """Emit one of several blocks, chosen by an int64 that is in range."""
        labels = [self._fresh("case") for _ in cases]
        done = self._fresh("end")
        listed = " ".join(f"i64 {i}, label %{label}" for i, label in enumerate(labels))
        self.emit(f"switch i64 {index.text}, label %{done} [ {listed} ]")
        for label, case in zip(labels, cases, strict=True):
            self._label(label)
            case()
            self.emit(f"br label %{done}")
        self._label(done)

    def argument(self, name: str, dtype: DType = dtypes.int64) -> Operand:
        """Return a scalar argument of the function as an operand."""
        return Operand(f"%{name}", dtype)


__all__ = [
    "POINTER",
    "Function",
    "Index",
    "Module",
    "Operand",
    "Segment",
    "literal",
    "memory_type",
    "scalar_type",
    "vector_type",
]
