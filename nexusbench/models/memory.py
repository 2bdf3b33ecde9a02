"""How much memory there is, and one clear line if a model does not fit into it."""

from __future__ import annotations

import os
from pathlib import Path

from nexusbench.core.errors import UsageError

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


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
