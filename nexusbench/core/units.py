"""Units: time is integer nanoseconds inside, seconds or milliseconds where people read it."""

from __future__ import annotations

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

GIB = 1024**3
MIB = 1024**2

# What the shares of a device are made of, by its name: as a unit in a table, as a noun in a text.
_PARTS = {"cpu": ("cores", "cores"), "cpu:shared": ("% of time", "shares of time")}


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer not below numerator / denominator (denominator > 0)."""
    return -(-numerator // denominator)


def ms(ns: float) -> float:
    """Nanoseconds as milliseconds."""
    return ns / NS_PER_MS


def seconds(ns: float) -> float:
    """Nanoseconds as seconds."""
    return ns / NS_PER_S


def counted(count: int, noun: str) -> str:
    """A number of things: ``1 request``, ``2,000 requests``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def unit_of(device: str) -> str:
    """The unit of what each partition has of the device called so: ``SMs`` of a GPU, ``cores``."""
    return _PARTS.get(_profiled(device), ("SMs",))[0]


def parts_of(device: str) -> str:
    """As :func:`unit_of`, as a noun: what a device has more or fewer of."""
    return _PARTS.get(_profiled(device), ("SMs",))[-1]


def _profiled(device: str) -> str:
    """The device whose times a simulated one replays has parts of the same kind."""
    return device.removeprefix("sim:profile(").removesuffix(")")
