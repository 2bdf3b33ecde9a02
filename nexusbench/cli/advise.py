"""``nexusbench advise``: scheduler, split policy and chunk size for this traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags
from nexusbench.cli import _slo_flags as slo_flags

_COMPARED = "What is compared"

Schedulers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:KEY=VALUE,...]", rich_help_panel=_COMPARED, show_default="all there are",
        help="Only these schedulers.",
    ),
]  # fmt: skip
Partitioners = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:KEY=VALUE,...]", rich_help_panel=_COMPARED, show_default="all there are",
        help="Only these partitioners, with every scheduler that they can serve.",
    ),
]  # fmt: skip
Chunks = Annotated[
    str,
    typer.Option(
        "--chunks", metavar="N,N,...", rich_help_panel=_COMPARED,
        help="Values of --max-num-batched-tokens.",
    ),
]  # fmt: skip
Effort = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", rich_help_panel=_COMPARED,
        help="Requests to simulate before the final, shared among all candidates.",
    ),
]  # fmt: skip

MostDraws = Annotated[
    int | None,
    typer.Option(
        "--max-seeds", min=1, max=1_000, rich_help_panel=_COMPARED,
        show_default="four times --seeds",
        help="Go on to so many draws with those that cannot be told apart from the leader.",
    ),
]  # fmt: skip


def advise(
    context: typer.Context,
    trace: flags.TracePath,
    goodput: slo_flags.Bounds = None,
    slo: slo_flags.SloName = None,
    attainment: slo_flags.Attainment = None,
    device: flags.Device = "auto",
    model: flags.Model = "llama-3.1-8b",
    request_rate: flags.Rate = None,
    scheduler: Schedulers = None,
    partitioner: Partitioners = None,
    chunks: Chunks = "512,1024,2048,4096,8192",
    effort: Effort = 60_000,
    cost_model: flags.CostModel = None,
    profile: flags.Profile = None,
    force_profile: flags.ForceProfile = False,
    kernel_table: flags.KernelTable = None,
    tensor_parallel_size: flags.TensorParallel = 1,
    gpu_memory_utilization: flags.Utilization = 0.9,
    kv_blocks: flags.KvBlocks = None,
    swap_space: flags.SwapSpace = None,
    max_num_seqs: flags.MaxSeqs = None,
    max_model_len: flags.MaxModelLen = None,
    limit: flags.Limit = None,
    burstiness: slo_flags.Shape = 1.0,
    seed: flags.Seed = 0,
    seeds: slo_flags.Draws = 5,
    max_seeds: MostDraws = None,
    jobs: slo_flags.Jobs = None,
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

    show_advice(context.params)
