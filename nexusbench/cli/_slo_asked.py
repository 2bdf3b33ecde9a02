"""From the flags of ``capacity`` and ``advise`` to an SLO and configs, checked before any run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.experiments.pool import cores
from nexusbench.metrics.slo import Slo, parse_slo, preset
from nexusbench.serving.resolve import resolve_device


def asked_slo(params: Mapping[str, Any]) -> tuple[Slo, str]:
    """The SLO, and where it comes from. Raises UsageError."""
    name, bounds = params["slo"], params["goodput"]
    if (name is None) == (not bounds):
        raise UsageError(
            "give the SLO as --goodput 'ttft:p99<2000,tbt:p99<100' or as --slo NAME (one of them; "
            "see nexusbench list slos)"
        )
    if name is None:
        return parse_slo(bounds, params["attainment"]), "as given"
    chosen = preset(name)
    return parse_slo([chosen.slo], params["attainment"], "--slo"), f"{name}: {chosen.source}"


def asked_config(params: Mapping[str, Any]) -> RunConfig:
    """What all runs have in common. No SLO: runs are kept for any. The device by its own name: a
    rate or an advice is of one GPU, and ``auto`` is another elsewhere. Raises UsageError.
    """
    names = (set(RunConfig.__struct_fields__) & set(params)) - {
        "scheduler", "partitioner", "goodput", "seed",
    }  # fmt: skip
    fields = {name: params[name] for name in names}
    fields |= {"trace": str(params["trace"]), "device": resolve_device(params["device"])}
    if fields["force_profile"] and fields["profile"] is None:
        raise UsageError("--force-profile goes with --profile, which is not given")
    if params.get("keep_arrivals"):
        fields["burstiness"] = None
    return RunConfig(**fields)


def asked_jobs(params: Mapping[str, Any]) -> int:
    """Processes: a real device takes one run at a time."""
    jobs = params["jobs"] or cores()
    if jobs > 1 and resolve_device(params["device"]).partition(":")[0] != "sim":
        print("a real device takes one run at a time: --jobs 1", file=sys.stderr)
        return 1
    return int(jobs)
