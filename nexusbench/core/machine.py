"""What this machine offers the process: cores in the order partitions are cut, and memory."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from nexusbench.core.errors import UsageError

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")


def usable_cores() -> tuple[int, ...]:
    """Logical cores of this process, neighbours first: those of a socket, then those of a physical
    core stand together, so that a partition cut from either end shares neither if it need not.

    A cgroup's quota (``docker --cpus``) counts too: threads beyond it would only be throttled.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
    else:
        allowed = list(range(os.cpu_count() or 1))
    ordered = sorted(allowed, key=lambda core: (*_place(core), core))
    quota = _quota()
    return tuple(ordered if quota is None else ordered[: max(1, math.ceil(quota))])


def threads_per_core(cores: tuple[int, ...]) -> int:
    """The most of ``cores`` that share one physical core; 1 where the system does not say."""
    count: dict[tuple[int, int], int] = {}
    for core in cores:
        place = _place(core)
        if place != (-1, -1):
            count[place] = count.get(place, 0) + 1
    return max(count.values(), default=1)


def _place(core: int) -> tuple[int, int]:
    """(socket, physical core), -1 where unknown."""
    return _number(core, "physical_package_id"), _number(core, "core_id")


def _number(core: int, name: str) -> int:
    try:
        return int((_TOPOLOGY / f"cpu{core}" / "topology" / name).read_text())
    except (OSError, ValueError):
        return -1


def _quota() -> float | None:
    """Cores' worth of time that the cgroup (version 2) allows, None without a limit."""
    try:
        limit, period = (_CGROUP / "cpu.max").read_text().split()
        return int(limit) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"


def available_memory() -> int:
    """Bytes that can be taken without swapping: what the kernel says, within the cgroup's limit."""
    free = _available()
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup, or the limit is "max"
        return free
    return min(free, max(0, limit - used))


def _available() -> int:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    # Not Linux: no better estimate than all of it.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_memory(needed: float, what: str, hint: str) -> None:
    """Raise UsageError unless ``needed`` bytes are there for ``what``; ``hint`` says what to do."""
    free = available_memory()
    if needed > free:
        raise UsageError(
            f"{what} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free. "
            f"{hint}"
        )
