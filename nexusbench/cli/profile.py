"""``nexusbench profile``: measure a device and a model, find saturation and contention, fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags
from nexusbench.cli import _token_flags as tokens

app = typer.Typer(invoke_without_command=True)
EXIT_DRIFTED = 3
_SWEEP, _OUTPUT = "Sweep", "Output"

Quick = Annotated[bool, typer.Option("--quick", rich_help_panel=_SWEEP, help="About 500 points.")]
Full = Annotated[bool, typer.Option("--full", rich_help_panel=_SWEEP, help="Several thousand.")]
Batches = Annotated[
    list[str] | None,
    typer.Option(
        "--batch",
        metavar="SPEC",
        rich_help_panel=_SWEEP,
        help="Measure this batch too, on all SMs (repeatable): 1q1k_32q1s1k is a prompt of 1,024 "
        "tokens and 32 decodes at 1,024.",
    ),
]
CounterNames = Annotated[
    list[str] | None,
    typer.Option(
        "--counters",
        metavar="NAME[:KEY=VALUE,...]",
        rich_help_panel=_SWEEP,
        show_default="sim, or process, nvml and cupti",
        help="Counter sources to read, as a,b (nexusbench list counters).",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, callback=flags.bounded, metavar="N", rich_help_panel=_SWEEP,
        help="Seed of simulated noise.",
    ),
]  # fmt: skip
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh", rich_help_panel=_SWEEP, help="Measure again what the folder holds too."
    ),
]
Folder = Annotated[
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
]
Plots = Annotated[
    Path | None,
    typer.Option(
        "--plots",
        parser=flags.folder,
        metavar="DIR",
        rich_help_panel=_OUTPUT,
        help="Draw latency over SMs, contention and splits (needs matplotlib).",
    ),
]
ProfilePath = Annotated[
    Path,
    typer.Argument(
        metavar="PATH", show_default=False, help="A profile.json, or the folder it is in."
    ),
]


@app.callback()
def profile(
    context: typer.Context,
    device: flags.Device = "auto",
    model: flags.Model = "llama-3.1-8b",
    load_format: tokens.LoadFormat = "auto",
    dtype: tokens.Dtype = None,
    graphs: tokens.Graphs = True,
    kernel_table: flags.KernelTable = None,
    tensor_parallel_size: flags.TensorParallel = 1,
    gpu_memory_utilization: flags.Utilization = 0.9,
    block_size: flags.BlockSize = 16,
    max_num_seqs: flags.MaxSeqs = None,
    max_num_batched_tokens: flags.MaxBatchedTokens = None,
    max_model_len: flags.MaxModelLen = None,
    quick: Quick = False,
    full: Full = False,
    batch: Batches = None,
    counters: CounterNames = None,
    seed: Seed = 0,
    fresh: Fresh = False,
    output: Folder = None,
    plots: Plots = None,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Measure a device and a model: where each phase stops profiting from more SMs, and what each
    costs the other; fit every cost model, judged on batches it never saw.

    nexusbench profile --device sim:l20 --model qwen2.5-3b --quick
    """
    if context.invoked_subcommand is not None:
        return
    from nexusbench.cli._profiling import run_profile

    run_profile(context.params)


@app.command("show")
def show(
    path: ProfilePath,
    json: flags.Json = False,
    plots: Plots = None,
) -> None:
    """Show a stored profile: saturation, benefit, contention, splits, and the fits' errors.

    nexusbench profile show results/profiles/sim-l20-qwen2.5-3b
    """
    from nexusbench.cli._profiling import show_stored

    show_stored(path, as_json=json, plots=plots)


@app.command("check")
def check(
    path: ProfilePath,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="DEVICE", show_default="the profile's", help="What to measure."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", show_default="the profile's", help="What it runs."
        ),
    ] = None,
    kernel_table: flags.KernelTable = None,
    json: flags.Json = False,
) -> None:
    """Measure a handful of a profile's points again: does it still predict today's device?

    nexusbench profile check results/profiles/sim-l20-qwen2.5-3b

    Exit code 0 if it holds, 3 if it has drifted.
    """
    from nexusbench.cli._profiling import check_stored

    named = {"device": device, "model": model, "kernel_table": kernel_table}
    if not check_stored(path, named, as_json=json):
        raise typer.Exit(EXIT_DRIFTED)


@app.command("paper")
def paper(
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="As for nexusbench profile.")
    ] = "sim:l20",
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="As for nexusbench profile.")
    ] = "qwen2.5-3b",
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            show_default="workloads/ldc.jsonl, if it is here",
            help="What is replayed for the table of batch types.",
        ),
    ] = None,
    json: flags.Json = False,
) -> None:
    """The Nexus paper's section 3 beside this device: what is found, and what was put in.

    nexusbench profile paper --device sim:l20 --model qwen2.5-3b
    """
    from nexusbench.cli._profile_paper import show_paper

    show_paper(device, model, trace, as_json=json)
