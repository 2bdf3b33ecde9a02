"""Made-up series for the tests of the gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nexusbench.gates.series import Run, RunSeries, Samples

MACHINE: dict[str, Any] = {"cpu": "a CPU", "cores": 2}


def environment(**changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "trace": "t", "trace_sha256": "aa", "model": "m", "device": "sim:l20",
        "device_sha256": "dd", "scheduler": "vllm", "simulated": True,
    }  # fmt: skip
    return {**usual, **changes}


def samples(
    values: Sequence[float | None], *, unit: str = "ms", better: Any = "lower", exact: bool = False
) -> Samples:
    return Samples(unit=unit, better=better, exact=exact, values=list(values))


def series(
    metrics: dict[str, Samples],
    *,
    seeds: Sequence[int] | None = None,
    logs: Sequence[str | None] | None = None,
    machine: dict[str, Any] | None = None,
    **env: Any,
) -> RunSeries:
    count = len(next(iter(metrics.values())).values) if metrics else 0
    seeds = list(range(count)) if seeds is None else seeds
    logs = [None] * len(seeds) if logs is None else logs
    runs = [Run(seed, log) for seed, log in zip(seeds, logs, strict=True)]
    return RunSeries(
        environment=environment(**env),
        machine=MACHINE if machine is None else machine,
        runs=runs,
        metrics=metrics,
    )


def exact(*values: float | None, **more: Any) -> RunSeries:
    """One deterministic metric ``x``."""
    sort = {key: more.pop(key) for key in ("unit", "better") if key in more}
    return series({"x": samples(values, exact=True, **sort)}, **more)


def measured(*values: float | None, **more: Any) -> RunSeries:
    """One measured metric ``x``."""
    sort = {key: more.pop(key) for key in ("unit", "better") if key in more}
    return series({"x": samples(values, **sort)}, **more)
