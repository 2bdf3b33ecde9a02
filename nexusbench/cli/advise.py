"""``nexusbench advise``: scheduler, split policy and chunk size for this traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags
from nexusbench.core.config import RunConfig

Compared = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:KEY=VALUE,...]", rich_help_panel=flags.COMPARED,
        show_default="all there are",
        help="Only these schedulers.",
    ),
]  # fmt: skip
ComparedPartitioners = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:KEY=VALUE,...]", rich_help_panel=flags.COMPARED,
        show_default="all there are",
        help="Only these partitioners, with every scheduler that they can serve.",
    ),
]  # fmt: skip
Chunks = Annotated[
    str,
    typer.Option(
        "--chunks", metavar="N,N,...", rich_help_panel=flags.COMPARED,
        help="Values of --max-num-batched-tokens.",
    ),
]  # fmt: skip
Effort = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", rich_help_panel=flags.COMPARED,
        help="Requests to simulate before the final, shared among all candidates.",
    ),
]  # fmt: skip

MostDraws = Annotated[
    int | None,
    typer.Option(
        "--max-seeds", min=1, max=1_000, rich_help_panel=flags.COMPARED,
        show_default="four times --seeds",
        help="Go on to so many draws with those that cannot be told apart from the leader.",
    ),
]  # fmt: skip


@flags.asking
def advise(
    *,
    goodput: flags.Bounds = None,
    slo: flags.SloName = None,
    attainment: flags.Attainment = None,
    config: Annotated[
        RunConfig,
        flags.Fields(RunConfig, "trace", "device", "model", "request_rate", *flags.SERVED),
    ],
    scheduler: Compared = None,
    partitioner: ComparedPartitioners = None,
    chunks: Chunks = "512,1024,2048,4096,8192",
    effort: Effort = 60_000,
    burstiness: flags.Shape = 1.0,
    seeds: flags.Draws = 5,
    max_seeds: MostDraws = None,
    over_ranges: flags.OverRanges = 0,
    jobs: flags.SearchJobs = None,
    cache: flags.Cache = Path("results/probes"),
    fresh: flags.Fresh = False,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Find the scheduler, split policy and chunk size that keep the SLO for most of TRACE's
    requests.

    nexusbench advise workloads/mixed.jsonl --device sim:l20 --goodput ttft:2000,tbt:100

    All combinations are tried on a little of the trace, the better third on more of it, and so on;
    the last few race over fresh draws of the arrivals until one leads for sure, or a tie is named.
    Ends with the commands that check the answer, simulated and on the real GPU.
    """
    from nexusbench.cli._advice_screen import show_advice
    from nexusbench.cli._slo_asked import AskedSearch

    asked = AskedSearch(
        goodput=goodput, slo=slo, attainment=attainment, config=config, burstiness=burstiness,
        schedulers=scheduler, partitioners=partitioner, draws=seeds, jobs=jobs, cache=cache,
        fresh=fresh, as_json=json, quiet=no_progress, over_ranges=over_ranges,
    )  # fmt: skip
    show_advice(asked, chunks, effort, max_seeds)
