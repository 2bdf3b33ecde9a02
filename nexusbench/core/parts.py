"""What partitions share out of a device, in words: a GPU's SMs, a CPU's cores or their time.

By the device's name, which is all that a stored run or a profile has of it; so below every package
that reads one.
"""

from __future__ import annotations

# By the device's name: as a unit in a table, as a noun in a text. Any other has SMs.
_PARTS = {"cpu": ("cores", "cores"), "cpu:shared": ("% of time", "shares of time")}
_SMS = ("SMs", "SMs")


def unit_of(device: str) -> str:
    """The unit of what each partition has of the device called so: ``SMs`` of a GPU, ``cores``."""
    return _PARTS.get(_profiled(device), _SMS)[0]


def parts_of(device: str) -> str:
    """As :func:`unit_of`, as a noun: what a device has more or fewer of."""
    return _PARTS.get(_profiled(device), _SMS)[1]


def _profiled(device: str) -> str:
    """The device whose times a simulated one replays has parts of the same kind."""
    return device.removeprefix("sim:profile(").removesuffix(")")
