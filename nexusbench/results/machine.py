"""The machine as measured times depend on it: CPU, cores, system and the versions that matter."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


@cache
def machine_facts() -> dict[str, str | int]:
    """CPU model, cores usable by this process, system, and Python without its patch level.

    No host name and no kernel version: they change between machines and days that are alike.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = ".".join(platform.python_version_tuple()[:2])
    return {
        "cpu": _cpu_model(),
        "cores": usable or 0,
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {python}",
    }


def _cpu_model() -> str:
    """The CPU's name where the system tells it, else its architecture."""
    try:
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"
