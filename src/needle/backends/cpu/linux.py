"""What the CPU backend asks of Linux, and the plain substitutes for other systems.

Three things: which cores this process may use (affinity, control groups), how a thread sleeps until
a word in memory changes (futex), and the permission to use the AMX tiles.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import sys
from pathlib import Path

IS_LINUX = sys.platform == "linux"

_CGROUP = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")
_CPUS = Path("/sys/devices/system/cpu")
#: Numbers of system calls, by machine: those of futex and arch_prctl.
_FUTEX = {"x86_64": 202, "aarch64": 98}
_ARCH_PRCTL = 158
#: arch_prctl: ask for a component of the processor's state; the component of AMX' tiles.
_REQUEST_PERMISSION, _TILE_DATA = 0x1023, 18


def allowed_cores() -> list[int]:
    """Return the logical cores that this process may run on: its affinity mask (`taskset`).

    Example:
        >>> from needle.backends.cpu.linux import allowed_cores
        >>> len(allowed_cores()) >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@functools.cache
def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def cpu_quota(root: Path = _CGROUP, own: Path = _SELF) -> float | None:
    """Return the cores that the control groups grant, or None where they set no limit.

    Args:
        root: where control groups are mounted. Version 2 has ``cpu.max`` ("quota period" in
            microseconds), version 1 has ``cpu/cpu.cfs_quota_us`` and ``cpu/cpu.cfs_period_us``.
        own: names the process' groups, one a line: ``id:controllers:/path``. A limit counts that is
            set on any group on the way from the process' own up to the root.
    """
    quotas = []
    for mount, group in _groups(root, own):
        for folder in (group, *group.parents):
            quota = _quota(mount / folder)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _groups(root: Path, own: Path) -> list[tuple[Path, Path]]:
    """Return where the controller of processor time is mounted, and the path of a group in it."""
    # Without this file, or in a namespace of its own, the process sees its own group as the root.
    groups = [(root, Path()), (root / "cpu", Path()), (root / "cpu,cpuacct", Path())]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return groups
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inside = Path(path.lstrip("/"))
        if ".." in inside.parts:  # outside of the namespace: not to be seen
            continue
        if not controllers:
            groups.append((root, inside))
        elif "cpu" in controllers.split(","):
            groups += [(root / controllers, inside), (root / "cpu", inside)]
    return groups


def _quota(folder: Path) -> float | None:
    """Return the cores that one control group grants."""
    words = _words(folder / "cpu.max")
    if not words:
        words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    try:
        quota, period = (float(word) for word in words)
    except ValueError:  # "max 100000", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def available_cores(root: Path = _CGROUP, own: Path = _SELF) -> int:
    """Return how many logical cores this process may keep busy, at least 1.

    The smaller of its affinity mask and the quota of its control groups (containers), rounded up. A
    container limited to 2 of 64 cores gives 2.

    Example:
        >>> from needle.backends.cpu.linux import available_cores
        >>> available_cores() >= 1
        True
    """
    cores = len(allowed_cores())
    quota = cpu_quota(root, own)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def default_threads(root: Path = _CGROUP, own: Path = _SELF, cpus: Path = _CPUS) -> int:
    """Return how many threads to compute with: the available cores, each core once.

    Two logical cores that share one physical core share its arithmetic units: work split between
    them in equal parts gains nothing, and each part waits for the other.

    Args:
        root: see `cpu_quota`.
        own: see `cpu_quota`.
        cpus: where Linux describes the cores.
    """
    siblings = set()
    for core in allowed_cores():
        words = _words(cpus / f"cpu{core}/topology/thread_siblings_list")
        siblings.add(words[0] if words else str(core))
    return max(1, min(len(siblings), available_cores(root, own)))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def wait_ir(futex: bool = IS_LINUX) -> str:
    """Return the IR of ``void @pool_wait(ptr word, i32 value)``, ``void @pool_wake(ptr word)`` and
    ``void @pool_yield()``.

    ``pool_wait`` sleeps while the word has the value, and may return early; ``pool_wake`` ends the
    sleep of a thread that waits for the word. With a futex that takes about 5 µs of the waker's
    time; elsewhere the waiting thread looks again every 100 µs, and waking does nothing.
    ``pool_yield`` lets another thread run that waits for the same core.

    Args:
        futex: whether to use Linux' futex.
    """
    number = _FUTEX.get(platform.machine())
    yields = "SwitchToThread" if os.name == "nt" else "sched_yield"
    common = f"""declare i32 @{yields}()
define internal void @pool_yield() #0 {{
  %r = call i32 @{yields}()
  ret void
}}"""
    if futex and number is not None:
        # 128 and 129: wait and wake, on memory that belongs to this process alone.
        call = f"call i64 (i64, ...) @syscall(i64 {number}, ptr %word"
        return f"""{common}
declare i64 @syscall(i64, ...)
define internal void @pool_wait(ptr %word, i32 %value) #0 {{
  %r = {call}, i32 128, i32 %value, ptr null, ptr null, i32 0)
  ret void
}}
define internal void @pool_wake(ptr %word) #0 {{
  %r = {call}, i32 129, i32 1, ptr null, ptr null, i32 0)
  ret void
}}"""
    name, kind, pause = ("Sleep", "void", 1) if os.name == "nt" else ("usleep", "i32", 100)
    call = f"call void @{name}" if kind == "void" else f"%r = call {kind} @{name}"
    return f"""{common}
declare {kind} @{name}(i32)
define internal void @pool_wait(ptr %word, i32 %value) #0 {{
  {call}(i32 {pause})
  ret void
}}
define internal void @pool_wake(ptr %word) #0 {{
  ret void
}}"""


def wait_symbols() -> dict[str, int]:
    """Return the addresses of the functions of the system that `wait_ir` calls."""
    if os.name == "nt":
        library, names = ctypes.CDLL("kernel32"), ["Sleep", "SwitchToThread"]
    else:
        library, names = ctypes.CDLL(None), ["syscall", "usleep", "sched_yield"]
    addresses = {
        name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        for name in names
        if hasattr(library, name)
    }
    return {name: address for name, address in addresses.items() if address}


@functools.cache
def has_amx() -> bool:
    """Ask for the permission to use the AMX tiles; return whether this process has it.

    Linux gives it to the process on request, for all of its threads (from version 5.16 on, on
    processors that have them). Code that uses tiles must not run before.
    """
    if not IS_LINUX or platform.machine() != "x86_64":
        return False
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    numbers = (_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)
    return bool(syscall(*map(ctypes.c_long, numbers)) == 0)
