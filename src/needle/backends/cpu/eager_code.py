"""The code of a kernel that eager execution calls by itself: from the cache, or made now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from needle.backends.cpu import cache, jit
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import host


def load_kernel(
    what: str, name: str, emit: Callable[[Module], object], *argument_types: Any
) -> Callable[..., Any]:
    """Return a function of generated code.

    Args:
        what: all that the code depends on besides the processor.
        name: of the function.
        emit: writes it into a module; called if the cache does not have it.
        argument_types: of `ctypes`.
    """
    target = host()
    key = cache.key(f"eager {what}", target.triple, target.cpu, target.features)
    entry = cache.get(key)
    if entry is None:
        module = Module()
        emit(module)
        code = jit.compile_object(module)
        cache.put(key, code, {})
        library = jit.load_object(code, [name])
    else:
        library = jit.load_object(entry.objects, [name])
    return library.function(name, *argument_types)
