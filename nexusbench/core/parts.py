"""The unit of what partitions divide: a GPU's SMs, a CPU's cores or shares of their time.

It follows from the device's name, which is all that a stored run or a profile holds of it.
"""

from __future__ import annotations

# By the device's name: the unit in a table, the noun in a text. All other devices have SMs.
_PARTS = {"cpu": ("cores", "cores"), "cpu:shared": ("% of time", "shares of time")}
_SMS = ("SMs", "SMs")


def unit_of(device: str) -> str:
    """The unit of what each partition has of the device called so: ``SMs`` of a GPU, ``cores``."""
    return _PARTS.get(_profiled(device), _SMS)[0]


def parts_of(device: str) -> str:
    """As :func:`unit_of`, as a noun: what a device has more or fewer of."""
    return _PARTS.get(_profiled(device), _SMS)[1]


def _profiled(device: str) -> str:
    """A simulated device made of a profile has the unit of the device that was profiled."""
    return device.removeprefix("sim:profile(").removesuffix(")")
