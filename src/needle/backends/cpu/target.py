"""Which machine code is generated for: the host's, or a narrower one that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from needle.dtypes import DType


@dataclass(frozen=True)
class Target:
    """A processor as code generation sees it.

    Attributes:
        triple: LLVM's name of architecture and system; empty for the host's.
        cpu: LLVM's name of the processor model.
        features: LLVM's feature list: ``+avx2,-avx512f,…``.
        vector_bytes: bytes of the widest vector register to be used: 64, 32 or 16.
        registers: how many vector registers there are.
        fma: whether it multiplies and adds with one rounding.
        rounding: whether it rounds floats to integers in one instruction (on x86 since SSE4.1).
        half: whether it converts between float16 and float32 (on x86: F16C).
    """

    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    fma: bool = True
    rounding: bool = True
    half: bool = True

    def lanes(self, dtype: DType) -> int:
        """Return how many elements of ``dtype`` a vector register holds."""
        return self.vector_bytes // max(dtype.itemsize, 1)

    @property
    def attributes(self) -> str:
        """Return the LLVM attributes of all functions."""
        bits = self.vector_bytes * 8
        return f'nounwind "prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}"'


#: The x86-64 levels, for tests of the narrower ones and for code that is to run on any of them.
AVX512 = Target("x86_64-unknown-linux-gnu", "x86-64-v4", "", 64, 32)
AVX2 = Target("x86_64-unknown-linux-gnu", "x86-64-v3", "", 32, 16)
SSE4 = Target("x86_64-unknown-linux-gnu", "x86-64-v2", "", 16, 16, fma=False, half=False)
SSE2 = Target(
    "x86_64-unknown-linux-gnu", "x86-64", "", 16, 16, fma=False, rounding=False, half=False
)
NEON = Target("aarch64-unknown-linux-gnu", "generic", "", 16, 32)


@cache
def host() -> Target:
    """Return the target of this machine, by its feature list: names lie under virtualisation."""
    import platform

    import llvmlite.binding as llvm

    if platform.machine().lower() in ("aarch64", "arm64"):
        return Target("", llvm.get_host_cpu_name(), "", 16, 32)
    features = llvm.get_host_cpu_features()
    wide = features.get("avx512f") and features.get("avx512vl") and features.get("avx512dq")
    vector_bytes = 64 if wide else 32 if features.get("avx2") and features.get("fma") else 16
    return Target(
        "",
        "x86-64-v4" if wide else llvm.get_host_cpu_name(),
        features.flatten(),
        vector_bytes,
        32 if wide else 16,
        fma=bool(features.get("fma")),
        rounding=bool(features.get("sse4.1")),
        half=bool(features.get("f16c")),
    )
