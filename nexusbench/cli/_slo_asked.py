"""The options that ``capacity`` and ``advise`` share: an SLO, a config and draws of arrivals."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from nexusbench.cli._jobs import check_policies, split_policies
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.experiments.pool import cores
from nexusbench.experiments.ranges import ranged_gpu
from nexusbench.metrics.slo import Slo, parse_slo, preset
from nexusbench.serving.resolve import resolve_device


class AskedSearch(msgspec.Struct, frozen=True, kw_only=True):
    """The shared options. ``burstiness`` None keeps the trace's own arrivals, ``jobs`` None uses
    all cores; ``schedulers`` and ``partitioners`` are as typed; ``over_ranges`` is how often the
    contested constants are drawn, 0 leaves them as they are.
    """

    goodput: list[str] | None
    slo: str | None
    attainment: float | None
    config: RunConfig
    burstiness: float | None
    schedulers: list[str] | None
    partitioners: list[str] | None
    draws: int
    jobs: int | None
    cache: Path
    fresh: bool
    as_json: bool
    quiet: bool
    over_ranges: int = 0

    def judged_by(self) -> tuple[Slo, str]:
        """The SLO and its source. Raises UsageError."""
        if (self.slo is None) == (not self.goodput):
            raise UsageError(
                "give the SLO as --goodput 'ttft:p99<2000,tbt:p99<100' or as --slo NAME (one of "
                "them; see nexusbench list slos)"
            )
        if self.slo is None:
            return parse_slo(self.goodput or [], self.attainment), "as given"
        chosen = preset(self.slo)
        return parse_slo([chosen.slo], self.attainment, "--slo"), f"{self.slo}: {chosen.source}"

    def policies(self) -> tuple[list[str], list[str]]:
        """The named schedulers and partitioners. Raises UsageError, also for the cost model."""
        found = (
            split_policies(self.schedulers or [], "--scheduler"),
            split_policies(self.partitioners or [], "--partitioner"),
        )
        check_policies([], self.config.cost_model)
        return found

    def base(self) -> RunConfig:
        """The config that all runs share, without an SLO, since kept runs serve any SLO. ``auto``
        is resolved to a device name: results hold for one GPU only. Raises UsageError.
        """
        if self.config.force_profile and self.config.profile is None:
            raise UsageError("--force-profile goes with --profile, which is not given")
        device = resolve_device(self.config.device)
        return msgspec.structs.replace(
            self.config, device=device, burstiness=self.burstiness, seed=0
        )

    def check_ranges(self) -> None:
        """Before anything runs. Raises UsageError for a device without ranges, or a single draw."""
        if self.over_ranges == 1:
            raise UsageError("--over-ranges 1: one draw says nothing of a range. Draw 2 or more")
        if self.over_ranges:
            ranged_gpu(resolve_device(self.config.device))

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each draw of the arrivals."""
        return tuple(range(self.config.seed, self.config.seed + self.draws))

    def processes(self) -> int:
        """Number of runs at a time; 1 on a real device."""
        jobs = self.jobs or cores()
        if jobs > 1 and resolve_device(self.config.device).partition(":")[0] != "sim":
            print("a real device takes one run at a time: --jobs 1", file=sys.stderr)
            return 1
        return jobs
