"""What a run ran on: versions, processor, the cores and memory this process may really use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from needle.backends.cpu.linux import (
    available_cores as available_cores,
    cpu_name as cpu_name,
    cpu_quota as cpu_quota,
)

_CGROUP = Path("/sys/fs/cgroup")


def memory_limit(root: Path = _CGROUP) -> int | None:
    """Return the memory in bytes that this process may use, or None where that is unknown.

    The smaller of the machine's memory and the limit of the control group.
    """
    limits = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _words(root / name)
        if words and words[0].isdigit():
            limits.append(int(words[0]))
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def cpu_features() -> list[str]:
    """Return the processor's instruction set extensions, as LLVM names them, sorted."""
    from llvmlite import binding

    return sorted(name for name, present in binding.get_host_cpu_features().items() if present)


def cache_folder() -> Path:
    """Return the folder for data that needle fetches: `$NEEDLE_CACHE`, or `~/.cache/needle`."""
    own = os.environ.get("NEEDLE_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "needle"


def versions() -> dict[str, str]:
    """Return the versions of needle, Python and the packages that needle stands on, by name."""
    import needle

    packages = ("numpy", "llvmlite", "ml_dtypes", "safetensors")
    own = {"needle": needle.__version__, "Python": platform.python_version()}
    return {**own, **{package: _package_version(package) for package in packages}}


def describe() -> dict[str, str]:
    """Return a short description of versions and machine, for reports and run records.

    Example:
        >>> from needle.train import environment
        >>> sorted(environment.describe())[:3]
        ['Python', 'cores', 'llvmlite']
    """
    memory = memory_limit()
    return {
        **versions(),
        "system": platform.platform(terse=True),
        "processor": cpu_name(),
        "cores": f"{available_cores()} of {os.cpu_count() or 1}",
        "memory": "unknown" if memory is None else f"{memory / 2**30:.1f} GiB",
    }


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _package_version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
