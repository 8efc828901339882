"""Which machine code is generated for: the host's, or a narrower one that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int

    def lanes(self, dtype: DType) -> int:
        """Return how many elements of ``dtype`` a vector register holds."""
        return self.vector_bytes // max(dtype.itemsize, 1)

    @property
    def attributes(self) -> str:
        """Return the LLVM attributes of all functions."""
        bits = self.vector_bytes * 8
        return f'nounwind "prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}"'


def host() -> Target:
    """Return the target of this machine, by its feature list: names lie under virtualisation."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    wide = features.get("avx512f") and features.get("avx512vl") and features.get("avx512dq")
    vector_bytes = 64 if wide else 32 if features.get("avx2") and features.get("fma") else 16
    cpu = "x86-64-v4" if wide else llvm.get_host_cpu_name()
    return Target("", cpu, features.flatten(), vector_bytes, 32 if wide else 16)
