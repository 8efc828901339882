"""From LLVM IR text to object code, and from object code to callable functions.

Two steps, because object code is what the cache keeps: `compile_object` makes it, `load_object`
links it into the process. Measured for the step of an MLP (580 KB of IR, 27 KB of code): parsing
12 ms, verifying 3 ms, code generation 90 ms, linking 0.1 ms (through MCJIT, which aborts the
process where a symbol is missing, 0.9 ms). Optimisation levels 1, 2 and 3 of the code generator
take the same time and make the same code of what needle emits, level 0 code twice as large; the
passes over the IR before it bring nothing, so none are run.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from needle.backends.cpu.llvm import Module
from needle.backends.cpu.target import Target, host

#: Of the code generator; see above.
_LEVEL = 1

_EXPORT = re.compile(r"^define (?!internal |private )[^@\n]*@([\w.$]+)\(", re.MULTILINE)
_lock = threading.RLock()
_serial = itertools.count()


class Library:
    """Loaded machine code; its functions live as long as it does.

    Attributes:
        exports: names of the functions that can be called, and their addresses.
    """

    def __init__(self, tracker: Any, exports: dict[str, int]) -> None:
        self._tracker = tracker
        self.exports = exports

    def address(self, name: str) -> int:
        """Return the address of a function.

        Raises:
            KeyError: if the library exports no function of that name.
        """
        return self.exports[name]

    def function(self, name: str, *kinds: Any) -> Callable[..., None]:
        """Return a function for tests and tools; ``kinds`` are ctypes types of its arguments.

        The GIL is released while it runs. It keeps the library alive.
        """
        function: Any = ctypes.CFUNCTYPE(None, *kinds)(self.address(name))
        function.library = self
        return function


def exports_of(text: str) -> tuple[str, ...]:
    """Return the names of the functions that IR text defines for others to call."""
    return tuple(_EXPORT.findall(text))


def compile_object(module: Module, target: Target | None = None) -> bytes:
    """Return the object code of ``module``.

    Args:
        module: the IR.
        target: what to generate for; the host if None.

    Raises:
        RuntimeError: if LLVM refuses the IR, with its message: a mistake of a generator.
    """
    target = target or host()
    with _lock:
        parsed, machine = _parse(module.text(target.attributes), target)
        code: bytes = machine.emit_object(parsed)
    return code


def compile_assembly(module: Module, target: Target | None = None) -> str:
    """Return the assembly of ``module``, for people and for tests; see `compile_object`."""
    target = target or host()
    with _lock:
        parsed, machine = _parse(module.text(target.attributes), target)
        text: str = machine.emit_assembly(parsed)
    return text


def load_object(
    code: bytes, exports: Iterable[str], symbols: Mapping[str, int] | None = None
) -> Library:
    """Link object code into the process.

    Args:
        code: from `compile_object`, perhaps in another process on the same kind of machine. It is
            trusted: whoever reads it from a file checks it first.
        exports: names of the functions to be called.
        symbols: addresses of external functions by name, besides those of the runtime
            (``needle_parallel``) and of the C library.

    Raises:
        RuntimeError: if the code is no object, or calls a function that does not exist.
    """
    import llvmlite.binding as llvm

    names = tuple(exports)
    with _lock:
        builder = llvm.JITLibraryBuilder().add_object_img(code)
        for name in names:
            builder.export_symbol(name)
        for name, address in {**_runtime(code, names), **(symbols or {})}.items():
            builder.import_symbol(name, address)
        tracker = builder.link(_linker(), f"needle{next(_serial)}")
    return Library(tracker, {name: tracker[name] for name in names})


def load(
    module: Module, target: Target | None = None, symbols: Mapping[str, int] | None = None
) -> Library:
    """Compile ``module`` and load it; see `compile_object` and `load_object`."""
    target = target or host()
    exports = exports_of(module.text(target.attributes))
    return load_object(compile_object(module, target), exports, symbols)


def compile_objects(modules: Sequence[Module], target: Target | None = None) -> list[bytes]:
    """Return the object code of several modules; see `compile_object`."""
    return [compile_object(module, target) for module in modules]


def _runtime(code: bytes, exports: Sequence[str]) -> dict[str, int]:
    """Return the addresses of the runtime's functions that ``code`` may call."""
    if b"needle_parallel" not in code or "needle_parallel" in exports:
        return {}
    from needle.backends.cpu import threads

    return {"needle_parallel": threads.entry()}


def _parse(text: str, target: Target) -> tuple[Any, Any]:
    """Return the parsed module and the code generator of ``target``."""
    import llvmlite.binding as llvm

    machine = _machine(target)
    # A context of its own: types and constants of the module go when it goes.
    parsed = llvm.parse_assembly(text, context=llvm.create_context())
    parsed.triple = machine.triple
    parsed.data_layout = str(machine.target_data)
    parsed.verify()
    return parsed, machine


@functools.cache
def _initialize() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@functools.cache
def _machine(target: Target) -> Any:
    """Return LLVM's code generator for ``target``."""
    import llvmlite.binding as llvm

    _initialize()
    triple = target.triple or llvm.get_process_triple()
    # Small and position-independent: constants are addressed relative to the instruction. The
    # linker places a library's sections side by side, and makes stubs for calls that go further.
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=target.cpu,
        features=target.features,
        opt=_LEVEL,
        reloc="pic",
        codemodel="small",
        jit=True,
    )


@functools.cache
def _linker() -> Any:
    """Return LLVM's linker into this process."""
    import llvmlite.binding as llvm

    # What it would print of errors is in the exceptions.
    return llvm.create_lljit_compiler(_machine(host()), use_jit_link=True, suppress_errors=True)


if hasattr(os, "register_at_fork"):  # a child must not inherit a lock that nobody will release
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )
