"""``nexusbench capacity``: the highest rate that keeps an SLO, with an interval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags
from nexusbench.cli import _slo_flags as slo_flags

_SEARCH = "Search"

Precision = Annotated[
    float,
    typer.Option(
        min=0.1, max=100, metavar="PERCENT", rich_help_panel=_SEARCH,
        help="Step between neighbouring rates; the capacity is found to one step.",
    ),
]  # fmt: skip
Arrivals = Annotated[
    bool,
    typer.Option(
        "--keep-arrivals", rich_help_panel=_SEARCH,
        help="Stretch the trace's own arrivals instead of drawing new ones for each seed.",
    ),
]  # fmt: skip


def capacity(
    context: typer.Context,
    trace: flags.TracePath,
    goodput: slo_flags.Bounds = None,
    slo: slo_flags.SloName = None,
    attainment: slo_flags.Attainment = None,
    scheduler: flags.Schedulers = ["nexus"],  # noqa: B006 (Typer reads it, nobody changes it)
    partitioner: flags.Partitioners = None,
    device: flags.Device = "auto",
    model: flags.Model = "llama-3.1-8b",
    cost_model: flags.CostModel = None,
    profile: flags.Profile = None,
    force_profile: flags.ForceProfile = False,
    kernel_table: flags.KernelTable = None,
    tensor_parallel_size: flags.TensorParallel = 1,
    gpu_memory_utilization: flags.Utilization = 0.9,
    kv_blocks: flags.KvBlocks = None,
    swap_space: flags.SwapSpace = None,
    max_num_seqs: flags.MaxSeqs = None,
    max_num_batched_tokens: flags.MaxBatchedTokens = None,
    max_model_len: flags.MaxModelLen = None,
    limit: flags.Limit = None,
    burstiness: slo_flags.Shape = 1.0,
    keep_arrivals: Arrivals = False,
    precision: Precision = 2.0,
    seed: flags.Seed = 0,
    seeds: slo_flags.Draws = 5,
    jobs: slo_flags.Jobs = None,
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

    show_capacity(context.params)
