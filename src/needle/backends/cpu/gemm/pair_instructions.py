"""The instructions that multiply pairs of bfloat16: AMX's tiles, AVX-512-BF16's vectors.

AMX has eight tile registers of 16 lines of 64 bytes, AVX-512-BF16 vectors of 16 sums. Both take
subnormal numbers for zeros.
"""

from __future__ import annotations

from needle import dtypes
from needle.backends.cpu.gemm.vnni import LINE, SIDE
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.backends.cpu.target import Target


def multiplies_pairs(target: Target) -> bool:
    """Whether the processor multiplies pairs of bfloat16 and adds them up in float32."""
    return has_tiles(target) or target.has("avx512bf16")


def has_tiles(target: Target) -> bool:
    """Whether the processor has AMX tiles of bfloat16 that this process may use."""
    return target.has("amx-tile") and target.has("amx-bf16")


def begin_tiles(f: Function) -> None:
    """Emit the setting up of a thread's tile registers: eight of 16 lines of 64 bytes."""
    data = [1, *[0] * 15, *[LINE, 0] * 8, *[0] * 16, *[SIDE] * 8, *[0] * 8]
    listed = ", ".join(f"i8 {x}" for x in data)
    name = f.module.constant("tiles", f"[64 x i8] [{listed}], align 64")
    f.module.declare("llvm.x86.ldtilecfg", "void", ["ptr"])
    f.emit(f"call void @llvm.x86.ldtilecfg(ptr @{name})")


def end_tiles(f: Function) -> None:
    """Emit the end of a thread's use of its tile registers, which the system then need not keep."""
    f.module.declare("llvm.x86.tilerelease", "void", [])
    f.emit("call void @llvm.x86.tilerelease()")


def round_sums(f: Function, x: Operand) -> Operand:
    """Return 16 or 32 sums of pairs as bfloat16.

    By an instruction that takes subnormal numbers for zeros: sums of pairs are none.
    """
    rounded = f"<{x.lanes} x bfloat>"
    if x.lanes == SIDE:
        name, given = "llvm.x86.avx512bf16.cvtneps2bf16.512", [x]
    else:
        name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
        given = [f.shuffle(x, x, range(at, at + SIDE)) for at in (SIDE, 0)]
    f.module.declare(name, rounded, [part.type for part in given])
    listed = ", ".join(part.typed for part in given)
    bits = f.value(f"call {rounded} @{name}({listed})")
    text = f.value(f"bitcast {rounded} {bits} to <{x.lanes} x i16>")
    return Operand(text, dtypes.bfloat16, x.lanes)


def tile_instruction(f: Function, name: str, arguments: str, *types: str) -> None:
    """Emit an instruction of tile registers."""
    f.module.declare(f"llvm.x86.{name}", "void", types)
    f.emit(f"call void @llvm.x86.{name}({arguments})")


def clear_tile(f: Function, number: int) -> None:
    """Emit the setting of a tile register to zeros."""
    tile_instruction(f, "tilezero", f"i8 {number}", "i8")


def load_tile(
    f: Function, number: int, pointer: str, step: Index, *, streams: bool = False
) -> None:
    """Emit a load, ``step`` bytes from line to line; what ``streams`` through is not to push out of
    the L1 cache what stays."""
    given = f"i8 {number}, ptr {pointer}, {f.operand(step).typed}"
    name = "tileloaddt164" if streams else "tileloadd64"
    tile_instruction(f, name, given, "i8", "ptr", "i64")


def store_tile(f: Function, number: int, pointer: str, step: Index) -> None:
    """Emit a store, ``step`` bytes from line to line."""
    given = f"i8 {number}, ptr {pointer}, {f.operand(step).typed}"
    tile_instruction(f, "tilestored64", given, "i8", "ptr", "i64")


def multiply_tiles(f: Function, sums: int, a: int, b: int) -> None:
    """Emit the multiplication of two tile registers, which is added to a third."""
    tile_instruction(f, "tdpbf16ps", f"i8 {sums}, i8 {a}, i8 {b}", "i8", "i8", "i8")


def add_pairs(f: Function, total: Operand, x: Operand, y: Operand) -> Operand:
    """Return 16 sums to which are added the products of two pairs each, words of 32 bits."""
    pairs = f"<{2 * SIDE} x bfloat>"
    a, b = (f.value(f"bitcast {v.typed} to {pairs}") for v in (x, y))
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    f.module.declare(name, total.type, [total.type, pairs, pairs])
    given = f"{total.typed}, {pairs} {a}, {pairs} {b}"
    return total._replace(text=f.value(f"call {total.type} @{name}({given})"))
