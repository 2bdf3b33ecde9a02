"""NVML, GPM and CUPTI on a copy whose bytes are known (``python -m tests.gpu.cross_check``)."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.gpu import cross_check, machine

COUNTERS = (
    "cupti.dram_read", "cupti.dram_write", "cupti.sm_share", "nvml.power", "nvml.energy",
    "nvml.sm_clock", "nvml.dram_util", "nvml.sm_util", "nvml.tensor_util",
)  # fmt: skip


@cache
def checked() -> dict[str, Any]:
    return cross_check.cross_check(machine.peak_gbps())


@pytest.mark.parametrize("name", COUNTERS)
def test_the_counters_of_a_copy_are_what_they_should_be(name: str) -> None:
    found = checked()
    check = next(check for check in found["checks"] if check["counter"] == name)
    if check["value"] is None:
        pytest.skip(found["reasons"].get(name) or found["support"].get(name.split(".")[0], ""))
    assert check["right"], f"{name} is {check['value']}, wanted {check['wanted']}"
