"""One run of a map, kept as what its verdicts need."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np

from nexusbench.comparison.load import Load
from nexusbench.core.clock import now_ns
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError
from nexusbench.core.units import NS_PER_S
from nexusbench.experiments.judging import attained
from nexusbench.experiments.probe import run_probe, statistic
from nexusbench.metrics.slo import Slo, parse_slo

# So much faster than the trace says that all requests are there at once.
AT_ONCE = 1e12
_EVERY_REQUEST = 100.0


class MapTask(msgspec.Struct, frozen=True):
    """A run, and the SLOs (name -> text) that it is judged by."""

    config: RunConfig
    slos: dict[str, str]


class MapRow(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run. ``attained``: percent of the requests that keep every bound, by SLO (a
    preset's bounds on percentiles count as bounds on each request); times in ms, infinite where
    requests did not finish. ``longest_s`` is the longest a request was there: of requests that all
    arrive at once the makespan. ``load`` is None where a run failed, or was kept before it was
    looked at.
    """

    attained: dict[str, float]
    ttft_mean: float
    ttft_p95: float
    tbt_p99: float
    longest_s: float
    digest: str
    wall_s: float
    error: str = ""
    load: Load | None = None


def suffix(slos: dict[str, str]) -> str:
    """Ends the name under which a row is kept: the same run under other SLOs is another row."""
    text = "\n".join(f"{name} {slo}" for name, slo in sorted(slos.items()))
    return f".paying-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def measure(task: MapTask) -> MapRow:
    """Run a task to its end. Its own faults are in ``error``."""
    began = now_ns()
    try:
        probe = run_probe(task.config, None)
    except (Interrupted, KeyboardInterrupt):
        raise
    except NexusbenchError as error:
        return failed(" ".join(str(error).split()))
    except Exception as error:
        # A plug-in may raise anything: that is its row's result.
        return failed(f"unexpected {type(error).__name__}: {error}")
    ttft = np.sort(np.array(probe.ttft))
    return MapRow(
        attained={name: attained(probe, _each(text)) for name, text in task.slos.items()},
        ttft_mean=statistic(ttft, "mean"),
        ttft_p95=statistic(ttft, "p95"),
        tbt_p99=probe.gaps["p99"],
        longest_s=max(probe.e2e) / 1e3,
        digest=probe.digest,
        wall_s=round((now_ns() - began) / NS_PER_S, 3),
        load=probe.load,
    )


def failed(error: str) -> MapRow:
    """The row of a run that failed."""
    return MapRow(
        attained={}, ttft_mean=np.inf, ttft_p95=np.inf, tbt_p99=np.inf, longest_s=np.inf, digest="",
        wall_s=0.0, error=error,
    )  # fmt: skip


def _each(text: str) -> Slo:
    """Every bound of an SLO as one on each request."""
    return parse_slo([text], _EVERY_REQUEST)
