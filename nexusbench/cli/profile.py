"""``nexusbench profile``: measure a device and a model, find saturation and contention, fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

app = typer.Typer(
    invoke_without_command=True,
    help="Measure a device and a model; show or check what was measured.",
)
_SWEEP, _OUTPUT = "Sweep", "Output"


@app.callback()
def profile(
    context: typer.Context,
    device: flags.Device = "auto",
    model: flags.Model = "llama-3.1-8b",
    kernel_table: flags.KernelTable = None,
    tensor_parallel_size: flags.TensorParallel = 1,
    gpu_memory_utilization: flags.Utilization = 0.9,
    block_size: flags.BlockSize = 16,
    max_num_seqs: flags.MaxSeqs = None,
    max_num_batched_tokens: flags.MaxBatchedTokens = None,
    max_model_len: flags.MaxModelLen = None,
    quick: Annotated[
        bool, typer.Option("--quick", rich_help_panel=_SWEEP, help="About 500 points.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", rich_help_panel=_SWEEP, help="Many thousand points.")
    ] = False,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            "--batch",
            metavar="SPEC",
            rich_help_panel=_SWEEP,
            help="Measure this batch too, on all SMs (repeatable): 2q2k_32q1s1k is two prompts of "
            "2,048 tokens and 32 decodes at 1,024.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, rich_help_panel=_SWEEP, help="Of simulated noise.")
    ] = 0,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", rich_help_panel=_SWEEP, help="Forget what the folder holds."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            parser=flags.folder,
            metavar="DIR",
            rich_help_panel=_OUTPUT,
            show_default="results/profiles/DEVICE-MODEL",
            help="Where the profile is kept; a sweep that was cut short goes on from there.",
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            "--plots",
            parser=flags.folder,
            metavar="DIR",
            rich_help_panel=_OUTPUT,
            help="Draw latency over SMs, contention and splits (needs matplotlib).",
        ),
    ] = None,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Sweep a device over SMs, batches and neighbours; find where each phase stops profiting from
    more SMs and what each costs the other; fit every cost model, judged on batches it never saw.

    nexusbench profile --device sim:l20 --model qwen2.5-3b --quick
    """
    if context.invoked_subcommand is not None:
        return
    from nexusbench.cli._profiling import run_profile

    run_profile(context.params)
