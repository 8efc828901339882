"""From LLVM IR text to object code, and from object code to callable functions.

Two steps, because object code is what the cache keeps: `compile_object` makes it, `load_object`
links it into the process. Measured for the step of an MLP (580 KB of IR, 27 KB of code): parsing
12 ms, verifying 3 ms, code generation 90 ms, linking 0.1 ms (through MCJIT, which aborts the
process where a symbol is missing, 0.9 ms). Optimisation levels 1, 2 and 3 of the code generator
take the same time and make the same code of what needle emits, level 0 code twice as large; the
passes over the IR before it bring nothing, so none are run.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import itertools
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from needle.backends.cpu import linux
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import Target, host

#: Of the code generator; see above.
_LEVEL = 1

_EXPORT = re.compile(r"^define (?!internal |private )[^@\n]*@([\w.$]+)\(", re.MULTILINE)
#: Of IR, about, in a part of a module that is compiled side by side with others.
PART_BYTES = 200_000
#: Held while LLVM is at work; nobody forks meanwhile.
lock = threading.RLock()
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
        target: what to generate for; the module's target if None.

    Raises:
        RuntimeError: if LLVM refuses the IR, with its message: a mistake of a generator.
    """
    with lock:
        target = target or module.target
        return _compile(module.text(target.attributes), target)


def compile_objects(module: Module, *, nbytes: int = PART_BYTES) -> list[bytes]:
    """Return the object code of ``module``, in parts that are generated side by side.

    On 2 cores two parts of 580 KB take 135 ms instead of 232 one after the other.

    Args:
        module: the IR.
        nbytes: of IR in a part, about.

    Raises:
        RuntimeError: see `compile_object`.
    """
    target = module.target
    texts = module.parts(nbytes, target.attributes)
    results: list[bytes | BaseException] = [b""] * len(texts)
    pending = collections.deque(range(len(texts)))

    def work() -> None:
        while pending:
            with contextlib.suppress(IndexError):  # another thread was quicker
                i = pending.popleft()
                results[i] = _attempt(texts[i], target)

    with lock:
        helpers = [
            threading.Thread(target=work)
            for _ in range(min(len(texts), linux.available_cores()) - 1)
        ]
        for helper in helpers:
            helper.start()
        work()
        for helper in helpers:
            helper.join()
    codes = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        codes.append(result)
    return codes


def compile_assembly(module: Module, target: Target | None = None) -> str:
    """Return the assembly of ``module``, for people and for tests; see `compile_object`."""
    with lock:
        target = target or module.target
        parsed, machine = _parse(module.text(target.attributes), target)
        text: str = machine.emit_assembly(parsed)
    return text


def load_object(
    code: bytes | Sequence[bytes],
    exports: Iterable[str],
    symbols: Mapping[str, int] | None = None,
) -> Library:
    """Link object code into the process.

    Args:
        code: from `compile_object`, perhaps in another process on the same kind of machine; several
            objects may call each other. It is trusted: whoever reads it from a file checks it
            first.
        exports: names of the functions to be called.
        symbols: addresses of external functions by name, besides those of the runtime
            (``needle_parallel``) and of the C library.

    Raises:
        RuntimeError: if the code is no object, or calls a function that does not exist.
    """
    import llvmlite.binding as llvm

    names = tuple(exports)
    codes = [code] if isinstance(code, bytes) else list(code)
    imports = {**_runtime(codes, names), **(symbols or {})}
    with lock:
        builder = llvm.JITLibraryBuilder()
        for one in codes:
            builder.add_object_img(one)
        for name in names:
            builder.export_symbol(name)
        for name, address in imports.items():
            builder.import_symbol(name, address)
        tracker = builder.link(_linker(), f"needle{next(_serial)}")
    return Library(tracker, {name: tracker[name] for name in names})


def load(
    module: Module, target: Target | None = None, symbols: Mapping[str, int] | None = None
) -> Library:
    """Compile ``module`` and load it; see `compile_object` and `load_object`."""
    target = target or module.target
    exports = exports_of(module.text(target.attributes))
    return load_object(compile_object(module, target), exports, symbols)


def load_cached(
    module: Module, exports: Iterable[str] = (), symbols: Mapping[str, int] | None = None
) -> Library:
    """Load ``module``, compiling it only if the cache does not have its code: for the runtime's own
    small modules, which every process needs.

    Args:
        module: for the host.
        exports: names of what is not a function, besides the functions.
        symbols: see `load_object`.
    """
    from needle.backends.cpu import cache

    text, target = module.text(module.target.attributes), module.target
    names = [*exports_of(text), *exports]
    key = cache.key(text, target.triple, target.cpu, target.features)
    entry = cache.get(key)
    if entry is None:
        code = compile_object(module)
        cache.put(key, code, {})
        return load_object(code, names, symbols)
    return load_object(entry.objects, names, symbols)


def _runtime(codes: Sequence[bytes], exports: Sequence[str]) -> dict[str, int]:
    """Return the addresses of the runtime's functions that the objects may call."""
    name = "needle_parallel"
    if name in exports or not any(name.encode() in code for code in codes):
        return {}
    from needle.backends.cpu import threads

    return {name: threads.entry()}


def _compile(text: str, target: Target) -> bytes:
    """Return the object code of a module; several threads may do this at a time."""
    parsed, machine = _parse(text, target)
    emit = _unlocked_emit()
    code: bytes = machine.emit_object(parsed) if emit is None else emit(machine, parsed)
    return code


def _attempt(text: str, target: Target) -> bytes | BaseException:
    """Return the object code of ``module``, or the error, for another thread to raise."""
    try:
        return _compile(text, target)
    except BaseException as error:
        return error


def _parse(text: str, target: Target) -> tuple[Any, Any]:
    """Return the parsed module and a code generator for ``target``."""
    import llvmlite.binding as llvm

    machine = _machine(target)
    # A context of its own: types and constants of the module go when it goes, and other threads
    # may work on other contexts meanwhile.
    parsed = llvm.parse_assembly(text, context=llvm.create_context())
    parsed.triple = machine.triple
    parsed.data_layout = str(machine.target_data)
    parsed.verify()
    return parsed, machine


@functools.cache
def _unlocked_emit() -> Callable[[Any, Any], bytes] | None:
    """Return what generates object code outside of llvmlite's lock; None if there is no such thing.

    llvmlite lets one thread at a time into LLVM. LLVM itself generates code in as many threads as
    have a context and a code generator of their own, so this calls the same function of the same
    library through a handle that no lock surrounds.
    """
    from llvmlite.binding import ffi

    try:
        library = ctypes.CDLL(ffi.lib._name)
        emit = library.LLVMPY_TargetMachineEmitToMemory
        start, size = library.LLVMPY_GetBufferStart, library.LLVMPY_GetBufferSize
        dispose, dispose_text = library.LLVMPY_DisposeMemoryBuffer, library.LLVMPY_DisposeString
    except (AttributeError, OSError):  # another version of llvmlite: one thread at a time, then
        return None
    pointer = ctypes.c_void_p
    emit.argtypes, emit.restype = [pointer, pointer, ctypes.c_int, pointer], pointer
    start.argtypes, start.restype = [pointer], pointer
    size.argtypes, size.restype = [pointer], ctypes.c_size_t
    dispose.argtypes, dispose.restype = [pointer], None
    dispose_text.argtypes, dispose_text.restype = [pointer], None

    def call(machine: Any, module: Any) -> bytes:
        text = ctypes.c_char_p()
        machine_pointer, module_pointer = (ctypes.cast(x._ptr, pointer) for x in (machine, module))
        buffer = emit(machine_pointer, module_pointer, 1, ctypes.byref(text))
        if not buffer:
            message = (text.value or b"no object code, and no reason given").decode()
            dispose_text(ctypes.cast(text, pointer))
            raise RuntimeError(message)
        try:
            return ctypes.string_at(start(buffer), size(buffer))
        finally:
            dispose(buffer)

    return call


@functools.cache
def _initialize(is_foreign: bool) -> None:
    import llvmlite.binding as llvm

    if is_foreign:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    else:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()


def _machine(target: Target) -> Any:
    """Return a new code generator of LLVM's for ``target``; it takes 0.1 ms to make."""
    import llvmlite.binding as llvm

    own = llvm.get_process_triple()
    triple = target.triple or own
    _initialize(triple.partition("-")[0] != own.partition("-")[0])
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

    return llvm.create_lljit_compiler(_machine(host()), use_jit_link=True)


def _before_fork() -> None:
    lock.acquire()
    for inner in _llvmlite_lock():
        inner.__enter__()


def _after_fork() -> None:
    for inner in _llvmlite_lock():
        inner.__exit__(None, None, None)
    lock.release()


def _llvmlite_lock() -> list[Any]:
    """Return llvmlite's own lock, if it has been loaded and has one."""
    ffi = sys.modules.get("llvmlite.binding.ffi")
    inner = getattr(getattr(ffi, "lib", None), "_lock", None)
    return [] if inner is None else [inner]


# A child process must not inherit a lock that nobody in it will release.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
