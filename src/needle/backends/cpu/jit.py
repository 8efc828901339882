"""From LLVM IR text to callable machine code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from needle.backends.cpu.llvm import Module
from needle.backends.cpu.target import Target, host


class Library:
    """Loaded machine code; its functions live as long as it does."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def address(self, name: str) -> int:
        """Return the address of a function."""
        address: int = self._engine.get_function_address(name)
        if not address:
            raise KeyError(name)
        return address

    def function(self, name: str, *kinds: Any) -> Callable[..., None]:
        """Return a function for tests and tools; ``kinds`` are ctypes types of its arguments.

        The GIL is released while it runs.
        """
        return ctypes.CFUNCTYPE(None, *kinds)(self.address(name))


def load(module: Module, target: Target | None = None) -> Library:
    """Compile ``module`` and load it."""
    import llvmlite.binding as llvm

    target = target or host()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=target.cpu,
        features=target.features,
        opt=1,
        reloc="static",
        codemodel="jitdefault",
        jit=True,
    )
    parsed = llvm.parse_assembly(module.text(target.attributes))
    parsed.triple = machine.triple
    parsed.data_layout = str(machine.target_data)
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return Library(engine)
