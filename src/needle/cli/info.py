"""`needle info`: what is installed, and what it runs on."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any


def collect() -> dict[str, Any]:
    """Return versions, machine, dtypes and folders, as JSON values.

    Example:
        >>> from needle.cli.info import collect
        >>> sorted(collect())
        ['dtypes', 'folders', 'machine', 'versions']
    """
    import needle as ndl
    from needle.train import environment

    memory = environment.memory_limit()
    names = [
        "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
        "float16", "bfloat16", "float32", "float64",
    ]  # fmt: skip
    return {
        "versions": environment.versions(),
        "machine": {
            "system": environment.describe()["system"],
            "processor": environment.cpu_name(),
            "features": environment.cpu_features(),
            "cores_available": environment.available_cores(),
            "cores_of_machine": os.cpu_count() or 1,
            "cpu_quota": environment.cpu_quota(),
            "threads": ndl.get_num_threads(),
            "memory_bytes": memory,
        },
        "dtypes": [name for name in names if hasattr(ndl, name)],
        "folders": {
            "package": str(Path(ndl.__file__).parent),
            "cache": str(environment.cache_folder()),
            "python": str(Path(sys.executable).parent),
        },
    }


def render(info: dict[str, Any]) -> str:
    """Return the description as text for people."""
    machine = info["machine"]
    quota = machine["cpu_quota"]
    cores = f"{machine['cores_available']} of {machine['cores_of_machine']}"
    if quota is not None:
        cores += f" (the container's quota is {quota:g})"
    memory = machine["memory_bytes"]
    rows = {
        **info["versions"],
        "system": machine["system"],
        "processor": machine["processor"],
        "features": " ".join(machine["features"]),
        "cores": cores,
        "threads": str(machine["threads"]),
        "memory": "unknown" if memory is None else f"{memory / 2**30:.1f} GiB",
        "dtypes": " ".join(info["dtypes"]),
        **{f"{name} folder": path for name, path in info["folders"].items()},
    }
    width = max(map(len, rows)) + 2
    indent = " " * width
    return "\n".join(
        textwrap.fill(
            f"{name:<{width}}{value}",
            100,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, value in rows.items()
    )
