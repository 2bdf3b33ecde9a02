"""Units: time is integer nanoseconds inside, seconds or milliseconds where it is shown."""

from __future__ import annotations

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

GIB = 1024**3
MIB = 1024**2
KIB = 1024


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer not below numerator / denominator (denominator > 0)."""
    return -(-numerator // denominator)


def ms(ns: float) -> float:
    """Nanoseconds as milliseconds."""
    return ns / NS_PER_MS


def seconds(ns: float) -> float:
    """Nanoseconds as seconds."""
    return ns / NS_PER_S


def bytes_text(count: float) -> str:
    """Bytes in a unit that leaves few digits: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.4g} {unit}"
        count /= 1024
    return f"{count:,.4g} GiB"


def counted(count: int, noun: str) -> str:
    """A number of things: ``1 request``, ``2,000 requests``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
