"""Which ops eager execution runs by generated kernels instead of their references.

The modules of the kernels are imported when they are first needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from needle.ops.record import REGISTRY, Op

#: Modules beside this one, with a function of the op's name: from the reference's arguments to its
#: result, or None for what it leaves to the reference.
MODULES = {"matmul": "matmul"}


def install() -> None:
    """Tell the ops their kernels."""
    for name, module in MODULES.items():
        op = REGISTRY[name]
        assert isinstance(op, Op)
        op.kernel = _on_demand(op, module)


def _on_demand(op: Op, module: str) -> Any:
    """Return a kernel that at its first call puts the real one in its place."""

    def kernel(*arrays: Any, **attrs: Any) -> Any:
        op.kernel = getattr(import_module(f"needle.backends.cpu.{module}"), op.name)
        return op.kernel(*arrays, **attrs)

    return kernel


install()
