"""Was the measurement disturbed? What a reading says about throttling and about other users."""

from __future__ import annotations

from nexusbench.counters.base import Reading

BUSY_SHARE = 0.15  # of one core, used by others: above it CPU trials were visibly disturbed
_THROTTLING = {
    "power cap": ("sw_power_cap",),
    "thermal slowdown": ("sw_thermal_slowdown", "hw_thermal_slowdown"),
    "hardware slowdown": ("hw_slowdown", "hw_power_brake"),
}


def throttled(reading: Reading) -> str | None:
    """Why the GPU held its clocks down and for which part of the time, or None.

    None also if the event reasons could not be read: ``reading.reasons`` then says so. Clocks that
    somebody set, idling and synchronised boosting are no throttling.
    """
    found = []
    for cause, names in _THROTTLING.items():
        share = max(reading.values.get(f"nvml.clock_event.{name}") or 0.0 for name in names)
        if share > 0:
            found.append(f"{cause} {share:.0%} of the time")
    return ", ".join(found) or None


def busy(reading: Reading) -> str | None:
    """Who else used the CPU (over 15 % of a core) or the GPU meanwhile, or None.

    None also if that could not be read: ``reading.reasons`` then says so.
    """
    found = []
    elapsed = reading.values.get("process.elapsed")
    for name, who in (("cpu_others", "other processes"), ("cpu_stolen", "the hypervisor")):
        used = reading.values.get(f"process.{name}")
        if used is not None and elapsed and used / elapsed > BUSY_SHARE:
            found.append(f"{who} used {used / elapsed:.2f} CPU cores")
    others = reading.values.get("nvml.other_processes")
    if others:
        found.append(f"{others:.1f} other processes computed on the GPU")
    return ", ".join(found) or None
