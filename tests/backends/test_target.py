"""Targets: what each may use, by the assembly that comes out and by running it here."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import needle as ndl
from needle.backends.cpu import jit, target
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import Target, choose
from needle.errors import ArgumentError, DeviceError

SOURCE = str(Path(ndl.__file__).parents[1])
#: Features of processors, as LLVM lists them.
SSE4 = frozenset(["sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16"])
AVX2 = SSE4 | {"avx", "avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt", "movbe"}
AVX512 = AVX2 | {f"avx512{group}" for group in ("f", "vl", "dq", "bw", "cd", "bf16")} | {"amx-tile"}


def kernel(aim):
    """Vectors of the target's width: y = x·x + 1 where x > 0, else x."""
    module = Module(aim)
    f = Function(module, "kernel", {"x": "ptr", "y": "ptr"}, internal=False)
    lanes = aim.lanes(np.dtype(np.float32))

    def body(i, carried):
        x = f.load("%x", i, ndl.float32, lanes)
        y = f.select(f.less(f.like(0, x), x), f.add(f.mul(x, x), f.like(1, x)), x)
        f.store(y, "%y", i)
        return carried

    f.loop(0, 960, lanes, [], body)
    f.end()
    return module


def machine_has(name):
    try:
        Target.named(name)
    except ArgumentError:
        return False
    return True


WIDTHS = {"sse2": "xmm", "sse4": "xmm", "avx2": "ymm", "avx512": "zmm"}


@pytest.mark.parametrize("name", WIDTHS)
def test_registers_of_each_width(name):
    aim = {"sse2": target.SSE2, "sse4": target.SSE4, "avx2": target.AVX2, "avx512": target.AVX512}[
        name
    ]
    text = jit.compile_assembly(kernel(aim))
    used = set(re.findall(r"%([xyz]mm)\d+", text))
    assert WIDTHS[name] in used
    wider = {"xmm": {"ymm", "zmm"}, "ymm": {"zmm"}, "zmm": set()}[WIDTHS[name]]
    assert not used & wider
    registers = [int(n) for n in re.findall(r"%[xyz]mm(\d+)", text)]
    assert max(registers) < aim.registers
    if name == "sse2":
        assert "roundps" not in text
        assert "blendvps" not in text  # SSE4.1
    if name.startswith("sse"):  # three operands came with AVX
        assert not re.search(r"\bv\w+ps\b", text)
    if name != "avx512":
        assert "%k" not in text


@pytest.mark.parametrize("name", WIDTHS)
def test_narrower_code_runs_here(name):
    if not machine_has(name):
        pytest.skip(f"this machine has no {name}")
    library = jit.load(kernel(Target.named(name)))
    x = np.linspace(-3, 3, 960, dtype=np.float32)
    y = np.zeros_like(x)
    pointer = ctypes.c_void_p
    library.function("kernel", pointer, pointer)(x.ctypes.data, y.ctypes.data)
    np.testing.assert_array_equal(y, np.where(x > 0, x * x + np.float32(1), x))


def test_code_for_arm():
    """Generated on any machine; in NEON's registers of 16 bytes."""
    module = kernel(target.NEON)
    text = jit.compile_assembly(module)
    assert re.search(r"\bfcmgt\s+v\d+\.4s", text)
    assert re.search(r"\bfmul\s+v\d+\.4s", text)
    code = jit.compile_object(module)
    assert code[:4] == b"\x7fELF"
    assert int.from_bytes(code[18:20], "little") == 183  # EM_AARCH64


@pytest.mark.parametrize(
    ("present", "name", "expected"),
    [
        (AVX512, "", "avx512"),
        (AVX512, "avx2", "avx2"),
        (AVX512, "sse", "sse2"),
        (AVX2, "", "avx2"),
        (AVX2 - {"fma"}, "", "sse4"),
        (AVX512 - {"avx512vl"}, "", "avx2"),
        (frozenset(), "", "sse2"),
    ],
)
def test_the_widest_by_the_features(present, name, expected):
    chosen = choose(name, "x86", frozenset(present))
    assert chosen.name == expected
    assert chosen.architecture == "x86"


def test_extensions_only_where_their_registers_are():
    assert choose("", "x86", AVX512).has("avx512bf16")
    assert choose("", "x86", AVX512).has("amx-tile")
    assert not choose("avx512", "x86", AVX512).has("amx-tile")  # a named level has none
    hidden = choose("", "x86", AVX512 - {"avx512vl"})
    assert not hidden.has("avx512bf16")
    assert not hidden.has("amx-tile")


def test_arm_has_neon():
    chosen = choose("", "aarch64", frozenset({"bf16", "neon"}))
    assert (chosen.name, chosen.vector_bytes, chosen.registers) == ("neon", 16, 32)
    assert chosen.has("bf16")
    assert chosen.architecture == "aarch64"


@pytest.mark.parametrize("name", ["avx1024", "neon", "AVX2"])
def test_what_there_is_not(name):
    with pytest.raises(ArgumentError, match=r"this machine has sse2, sse4, avx2$"):
        choose(name, "x86", AVX2)


def test_a_machine_that_no_code_is_made_for(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    target._machine.cache_clear()
    try:
        with pytest.raises(DeviceError, match="riscv64"):
            target.host()
    finally:
        target._machine.cache_clear()


def test_environment_variable():
    code = "from needle.backends.cpu.target import host; print(host().name, host().vector_bytes)"

    def python(name):
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": SOURCE, "NEEDLE_TARGET": name},
            capture_output=True,
            text=True,
            timeout=60,
        )

    if machine_has("sse2"):
        assert python("sse").stdout == "sse2 16\n"
    assert "NEEDLE_TARGET" in python("mips").stderr
