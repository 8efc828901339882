"""Which machine code is generated for: the host's, or a narrower one that is asked for."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from functools import cache

from needle.backends.cpu.linux import has_amx
from needle.dtypes import DType
from needle.errors import ArgumentError, DeviceError


@dataclass(frozen=True)
class Target:
    """A processor as code generation sees it.

    Attributes:
        triple: LLVM's name of architecture and system; empty for the host's.
        cpu: LLVM's name of the processor model.
        features: LLVM's feature list: ``+avx2,-avx512f,…``, added to those of the model.
        vector_bytes: bytes of the widest vector register to be used: 64, 32 or 16.
        registers: how many vector registers there are.
        fma: whether it multiplies and adds with one rounding.
        rounding: whether it rounds floats to integers in one instruction (on x86 since SSE4.1).
        half: whether it converts between float16 and float32 (on x86: F16C).
        name: of the instruction set: "avx512", "avx2", "sse4", "sse2", "neon".
    """

    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    fma: bool = True
    rounding: bool = True
    half: bool = True
    name: str = ""

    @classmethod
    def named(cls, name: str) -> Target:
        """Return the target of an instruction set that this machine has, without its extensions.

        Args:
            name: "avx512", "avx2", "sse4", "sse2" (or "sse"), "neon".

        Raises:
            ArgumentError: if there is no such set, or this machine does not have it.
        """
        return choose(name, *_machine())

    def lanes(self, dtype: DType) -> int:
        """Return how many elements of ``dtype`` a vector register holds."""
        return self.vector_bytes // max(dtype.itemsize, 1)

    def has(self, feature: str) -> bool:
        """Return whether code may use an extension, by LLVM's name: ``"amx-bf16"``."""
        return f"+{feature}" in self.features.split(",")

    @property
    def architecture(self) -> str:
        """The family of processors: "x86" or "aarch64"."""
        return "aarch64" if self.name == "neon" else "x86"

    @property
    def attributes(self) -> str:
        """Return the LLVM attributes of all functions."""
        bits = self.vector_bytes * 8
        return f'nounwind "prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}"'


_X86 = "x86_64-unknown-linux-gnu"
#: The x86-64 levels, for tests of the narrower ones and for code that is to run on any of them.
AVX512 = Target(_X86, "x86-64-v4", "", 64, 32, name="avx512")
AVX2 = Target(_X86, "x86-64-v3", "", 32, 16, name="avx2")
SSE4 = Target(_X86, "x86-64-v2", "", 16, 16, fma=False, half=False, name="sse4")
SSE2 = Target(_X86, "x86-64", "", 16, 16, fma=False, rounding=False, half=False, name="sse2")
NEON = Target("aarch64-unknown-linux-gnu", "generic", "", 16, 32, name="neon")

#: What a processor must have to run code of each level, besides what the level before needs.
_REQUIRED = {
    SSE2: "",
    SSE4: "sse3 ssse3 sse4.1 sse4.2 popcnt cx16",
    AVX2: "avx avx2 fma bmi bmi2 f16c lzcnt movbe",
    AVX512: "avx512f avx512vl avx512dq avx512bw avx512cd",
}
#: What systems call the architectures.
_ARCHITECTURES = {"x86_64": "x86", "amd64": "x86", "aarch64": "aarch64", "arm64": "aarch64"}
#: Extensions that the host's code uses where it has them.
_EXTENSIONS = {
    "x86": (
        "avxvnni avx512bf16 avx512fp16 avx512vnni avx512vbmi avx512vbmi2 avx512bitalg avx512ifma "
        "avx512vpopcntdq gfni amx-tile amx-bf16 amx-int8"
    ),
    "aarch64": "fullfp16 bf16 dotprod i8mm lse rdm",
}


def host() -> Target:
    """Return the target of this machine, by its feature list: names lie under virtualisation.

    The environment variable ``NEEDLE_TARGET`` names a narrower instruction set, for tests.

    Raises:
        ArgumentError: if it names one that there is not.
    """
    return choose(os.environ.get("NEEDLE_TARGET", ""), *_machine())


@cache
def choose(name: str, architecture: str, present: frozenset[str]) -> Target:
    """Return the target of a processor of which the features are known.

    Args:
        name: of an instruction set; empty for the widest there is, with its extensions.
        architecture: "x86" or "aarch64".
        present: the processor's features, by LLVM's names.

    Raises:
        ArgumentError: if there is no such set, or the processor does not have it.
    """
    if architecture == "aarch64":
        usable = [NEON]
    else:
        usable = list(
            itertools.takewhile(lambda t: present.issuperset(_REQUIRED[t].split()), _REQUIRED)
        )
    if not name:
        extensions = [f"+{f}" for f in _EXTENSIONS[architecture].split() if f in present]
        if usable[-1].vector_bytes < 64:  # without their registers, these mean nothing
            extensions = [f for f in extensions if "avx512" not in f and "amx" not in f]
        return replace(usable[-1], triple="", features=",".join(extensions))
    for target in usable:
        if target.name == {"sse": "sse2"}.get(name, name):
            return replace(target, triple="")
    raise ArgumentError(
        f"the instruction set {name!r} (NEEDLE_TARGET, or the argument of Target.named) cannot be "
        f"used: this machine has {', '.join(target.name for target in usable)}"
    )


@cache
def _machine() -> tuple[str, frozenset[str]]:
    """Return the architecture and the features of this machine that this process may use.

    Raises:
        DeviceError: if it is one that no code is generated for.
    """
    import platform

    import llvmlite.binding as llvm

    name = platform.machine().lower()
    architecture = _ARCHITECTURES.get(name)
    if architecture is None:
        raise DeviceError(
            "needle compiles for x86-64 and for 64-bit ARM; this machine is of another kind "
            f"({name or 'unknown'}): run without needle.compile"
        )
    features = llvm.get_host_cpu_features()
    present = frozenset(feature for feature, is_present in features.items() if is_present)
    if "amx-tile" in present and not has_amx():
        present = frozenset(feature for feature in present if not feature.startswith("amx"))
    return architecture, present
