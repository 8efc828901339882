"""The text of one LLVM module, to which functions, declarations and constants are added."""

from __future__ import annotations

from collections.abc import Sequence

from needle.backends.cpu.target import Target, host


class Module:
    """The text of one LLVM module: declarations, functions, constants.

    Args:
        target: the processor that it is generated for; this machine's by default.
    """

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or host()
        self._declarations: dict[str, str] = {}
        self._functions: list[str] = []
        self._globals: list[str] = []
        self._names: set[str] = set()
        #: For generators: functions made already, by what they were made for.
        self.memo: dict[object, str] = {}

    def unique(self, stem: str) -> str:
        """Return a name that no other function or global of the module has."""
        name, n = stem, 1
        while name in self._names:
            n += 1
            name = f"{stem}.{n}"
        self._names.add(name)
        return name

    def declare(self, name: str, result: str, arguments: Sequence[str]) -> None:
        """Declare an external function or intrinsic; again is no harm."""
        self._declarations.setdefault(name, f"declare {result} @{name}({', '.join(arguments)})")

    def add_global(self, text: str) -> None:
        """Add a line at module level: a global variable or constant."""
        self._globals.append(text)

    def add_function(self, text: str) -> None:
        """Add a function's text; `Function.end` does."""
        self._functions.append(text)

    def text(self, attributes: str = "nounwind") -> str:
        """Return the module as LLVM assembly; ``attributes`` are those of all functions."""
        parts = [*self._declarations.values(), *self._globals, *self._functions]
        return "\n".join([*parts, f"attributes #0 = {{ {attributes} }}", ""])
