"""``nexusbench capacity``: the highest rate that keeps an SLO, with an interval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags
from nexusbench.core.config import RunConfig

Precision = Annotated[
    float,
    typer.Option(
        min=0.1, max=100, metavar="PERCENT", rich_help_panel=flags.SEARCH,
        help="Step between neighbouring rates; the capacity is found to one step.",
    ),
]  # fmt: skip
Arrivals = Annotated[
    bool,
    typer.Option(
        "--keep-arrivals", rich_help_panel=flags.SEARCH,
        help="Stretch the trace's own arrivals instead of drawing new ones for each seed.",
    ),
]  # fmt: skip


@flags.asking
def capacity(
    *,
    goodput: flags.Bounds = None,
    slo: flags.SloName = None,
    attainment: flags.Attainment = None,
    scheduler: flags.Schedulers = ["nexus"],  # noqa: B006 (Typer reads it, nothing changes it)
    partitioner: flags.Partitioners = None,
    config: Annotated[
        RunConfig,
        flags.Fields(
            RunConfig,
            "trace",
            "scheduler",
            "partitioner",
            "device",
            "model",
            *flags.SERVED,
            "pipeline_parallel_size",
            "data_parallel_size",
            "enable_expert_parallel",
            "max_num_batched_tokens",
        ),
    ],
    burstiness: flags.Shape = 1.0,
    keep_arrivals: Arrivals = False,
    precision: Precision = 2.0,
    seeds: flags.Draws = 5,
    over_ranges: flags.OverRanges = 0,
    jobs: flags.SearchJobs = None,
    cache: flags.Cache = Path("results/probes"),
    fresh: flags.Fresh = False,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Find the highest request rate at which each scheduler keeps the SLO on TRACE.

    nexusbench capacity workloads/sharegpt.jsonl --goodput 'ttft:p99<2000,tpot:p99<100' --scheduler
    nexus,vllm

    Each seed draws new arrivals and is searched by itself; the interval is over seeds. A run is
    stopped as soon as its SLO is lost, and kept: another SLO on the same traffic starts from it.
    """
    from nexusbench.cli._capacity_screen import show_capacity
    from nexusbench.cli._slo_asked import AskedSearch

    asked = AskedSearch(
        goodput=goodput, slo=slo, attainment=attainment, config=config,
        burstiness=None if keep_arrivals else burstiness, schedulers=scheduler,
        partitioners=partitioner, draws=seeds, jobs=jobs, cache=cache, fresh=fresh, as_json=json,
        quiet=no_progress, over_ranges=over_ranges,
    )  # fmt: skip
    show_capacity(asked, precision)
