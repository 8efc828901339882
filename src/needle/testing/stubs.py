"""Write the type stub of Tensor's methods, ``_methods.pyi``, from the op records.

Run as ``python -m needle.testing.stubs``; the build of the package does, too.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import needle
from needle.ops.methods import COMPARISONS, OPERATORS, UNARY
from needle.ops.record import REGISTRY, Entry

STUB = Path(needle.__file__).with_name("_methods.pyi")

_HEADER = '''"""Types of Tensor's methods: generated from the op records."""

from collections.abc import Callable, Sequence
from typing import Any

from needle.dtypes import DType
from needle.ops.elementwise import TensorLike
from needle.ops.samples import Array
from needle.shapes import Axis, Shape
from needle.tensor import Tensor

class TensorMethods:
'''


def _signature(entry: Entry) -> tuple[str, str]:
    """Return the parameters after the first, as a method has them, and the return type."""
    signature = inspect.signature(entry.function)
    parts = ["self"]
    keyword_only = False
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.kind is parameter.VAR_POSITIONAL:
            keyword_only = True
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            parts.append("*")
            keyword_only = True
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        default = " = ..." if parameter.default is not parameter.empty else ""
        parts.append(f"{star}{parameter.name}: {_annotation(parameter.annotation)}{default}")
    return ", ".join(parts), _annotation(signature.return_annotation)


def _annotation(annotation: object) -> str:
    if annotation is inspect.Signature.empty:
        return "Any"
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "Any")


def stub() -> str:
    """Return the text of the stub."""
    lines = [_HEADER]
    for entry in REGISTRY.values():
        for name in (entry.name, *entry.aliases):
            if entry.unpacks:
                lines.append(f"    def {name}(self, *shape: int | Sequence[int]) -> Tensor: ...\n")
            elif entry.is_method:
                parameters, result = _signature(entry)
                lines.append(f"    def {name}({parameters}) -> {result}: ...\n")
    for dunder in OPERATORS:
        stem = dunder[2:]
        lines += [
            f"    def {kind}{stem}(self, other: TensorLike) -> Tensor: ...\n"
            for kind in ("__", "__r", "__i")
        ]
    for dunder in COMPARISONS:
        ignore = "  # type: ignore[override]" if dunder in ("__eq__", "__ne__") else ""
        lines.append(f"    def {dunder}(self, other: Any) -> Tensor: ...{ignore}\n")
    lines += [f"    def {dunder}(self) -> Tensor: ...\n" for dunder in UNARY]
    lines.append("    def __getitem__(self, key: Any) -> Tensor: ...\n")
    lines.append("    def __setitem__(self, key: Any, value: TensorLike) -> None: ...\n")
    lines.append("    def copy_(self, source: TensorLike) -> Tensor: ...\n")
    lines.append("    def fill_(self, value: float) -> Tensor: ...\n")
    lines.append("    def zero_(self) -> Tensor: ...\n")
    lines.append("\ndef attach_method(name: str, function: Callable[..., Any]) -> None: ...\n")
    return "".join(lines)


def write_stub(path: Path = STUB) -> None:
    """Write the stub, unless it is up to date."""
    text = stub()
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    write_stub()
