"""Build hook: writes the type stub of Tensor's methods from the op records into the package.

The stub is generated, so it is not in the repository: adding an op changes one file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StubHook(BuildHookInterface):
    """Runs `needle.testing.stubs` on the sources before they are packed (or installed editable)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        source = str(Path(self.root) / "src")
        sys.path.insert(0, source)
        try:
            from needle.testing.stubs import write_stub

            write_stub()
        finally:
            sys.path.remove(source)
