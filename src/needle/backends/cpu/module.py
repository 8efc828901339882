"""The text of one LLVM module, to which functions, declarations and constants are added."""

from __future__ import annotations

import re
from collections.abc import Sequence

from needle.backends.cpu.target import Target, host

#: The name of a function or constant, where it is used.
_NAME = re.compile(r"@([\w.$]+)")


class Module:
    """The text of one LLVM module: declarations, functions, constants.

    Args:
        target: the processor that it is generated for; this machine's by default.
    """

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or host()
        self._declarations: dict[str, str] = {}
        #: Text of each function from its arguments on, and whether only the module calls it.
        self._functions: dict[str, tuple[str, bool]] = {}
        self._constants: dict[str, str] = {}
        self._texts: list[str] = []
        self._names: set[str] = set()
        #: Names of internal functions and constants, by their text.
        self._known: dict[str, str] = {}
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

    def constant(self, stem: str, value: str) -> str:
        """Return the name of a private constant of the module: of one that it has, if it is equal.

        Args:
            stem: a name for people.
            value: type, value and alignment, as LLVM writes them.
        """
        name = self._known.get(value)
        if name is None:
            name = self._known[value] = self.unique(stem)
            self._constants[name] = f"@{name} = private constant {value}"
        return name

    def add_text(self, text: str) -> None:
        """Add functions and variables that are written as LLVM assembly."""
        self._texts.append(text)

    def add_function(self, name: str, text: str, *, internal: bool) -> str:
        """Add a function; `Function.end` does.

        Where a network repeats a layer, its kernels are the same but for the buffers that they are
        called with. So an internal function that the module has already is not added again.

        Args:
            name: of the function.
            text: from its arguments on.
            internal: whether only this module calls it.

        Returns:
            The name to call it by.
        """
        if internal:
            known = self._known.setdefault(text, name)
            if known != name:
                return known
        self._functions[name] = (text, internal)
        return name

    def text(self, attributes: str = "nounwind") -> str:
        """Return the module as LLVM assembly; ``attributes`` are those of all functions."""
        heads = [*self._declarations.values(), *self._constants.values(), *self._texts]
        functions = [self._definition(name, "internal ") for name in self._functions]
        return _assembly(heads, functions, attributes)

    def parts(self, nbytes: int, attributes: str = "nounwind") -> list[str]:
        """Return the module as several that can be compiled side by side, to be linked together.

        What each of them is does not depend on the machine.

        Args:
            nbytes: about how long each is to be.
            attributes: those of all functions.
        """
        sizes = {name: len(text) for name, (text, _) in self._functions.items()}
        count = min(round(sum(sizes.values()) / nbytes), len(sizes))
        if count <= 1 or self._texts:
            return [self.text(attributes)]
        members: list[list[str]] = [[] for _ in range(count)]
        filled = [0] * count
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            emptiest = filled.index(min(filled))
            members[emptiest].append(name)
            filled[emptiest] += sizes[name]
        return [self._part(names, attributes) for names in members]

    def _part(self, names: Sequence[str], attributes: str) -> str:
        """Return some of the functions as a module."""
        used = {n: None for name in names for n in _NAME.findall(self._functions[name][0])}
        heads = list(self._declarations.values())
        for name in used:
            if name in self._constants:
                heads.append(self._constants[name])
            elif name in self._functions and name not in names:
                text, internal = self._functions[name]
                arguments = text[: text.index(") ") + 1]
                heads.append(f"declare {'hidden ' if internal else ''}void @{name}{arguments}")
        return _assembly(heads, [self._definition(name, "hidden ") for name in names], attributes)

    def _definition(self, name: str, linkage: str) -> str:
        """Return the text of a function; ``linkage`` is that of internal ones."""
        text, internal = self._functions[name]
        return f"define {linkage if internal else ''}void @{name}{text}"


def _assembly(heads: Sequence[str], functions: Sequence[str], attributes: str) -> str:
    return "\n".join([*heads, *functions, f"attributes #0 = {{ {attributes} }}", ""])
