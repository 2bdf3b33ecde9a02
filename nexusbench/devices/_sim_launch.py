"""A launch on the simulated GPU, and the counters that its launches add up to."""

from __future__ import annotations

import msgspec

from nexusbench.physics.remote import Away
from nexusbench.physics.sharing import LaunchLoad


class SimLaunch(msgspec.Struct, gc=False, eq=False):
    """A batch in progress. ``left`` is ns of work at solo speed, ``slow`` the factor by which it is
    slower now; ``away`` what another GPU computes for it.
    """

    step: int
    partition: str
    load: LaunchLoad
    left: float
    slow: float
    ends_ns: int
    solo_ns: int
    repeats_left: int
    away: Away | None = None


class Meters(msgspec.Struct, gc=False):
    """Cumulative counts over launches (counted whole when they start)."""

    dram_bytes: float = 0.0
    sm_active_ns: float = 0.0  # SMs x ns
    tensor_busy_ns: float = 0.0  # of the launch's SMs together
    busy_ns: float = 0.0

    def count(self, load: LaunchLoad, repeat: int) -> None:
        """Add a launch at its solo speed."""
        self.dram_bytes += repeat * (load.dense.traffic + load.attention.traffic)
        self.sm_active_ns += repeat * load.sms * load.solo
        self.tensor_busy_ns += repeat * (load.dense.busy + load.attention.busy)
        self.busy_ns += repeat * load.solo
