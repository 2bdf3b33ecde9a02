"""``nexusbench profile``: measure a device and a model, find saturation and contention, fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags
from nexusbench.core.config import RunConfig

app = typer.Typer(invoke_without_command=True)
EXIT_DRIFTED = 3
_SWEEP, _OUTPUT = flags.SWEEP, "Output"

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
Seed = Annotated[int, flags.option("seed", rich_help_panel=_SWEEP, help="Seed of simulated noise.")]
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
@flags.asking
def profile(
    context: typer.Context,
    *,
    config: Annotated[
        RunConfig,
        flags.Fields(
            RunConfig,
            "device",
            "model",
            "load_format",
            "dtype",
            "quantization",
            "kv_cache_dtype",
            "graphs",
            "kernel_table",
            "engine",
            "tensor_parallel_size",
            "gpu_memory_utilization",
            "block_size",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_model_len",
        ),
    ],
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
    from nexusbench.cli._profiling import AskedProfile, run_profile

    asked = AskedProfile(
        config=config, quick=quick, full=full, batches=batch or [], counters=counters or [],
        seed=seed, fresh=fresh, output=output, plots=plots, as_json=json, quiet=no_progress,
    )  # fmt: skip
    run_profile(asked)


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
        flags.option(
            "device", show_default="the profile's", help="What to measure.", rich_help_panel=None
        ),
    ] = None,
    model: Annotated[
        str | None,
        flags.option(
            "model", show_default="the profile's", help="What it runs.", rich_help_panel=None
        ),
    ] = None,
    kernel_table: Annotated[str | None, flags.option("kernel_table")] = None,
    engine: Annotated[str | None, flags.option("engine")] = None,
    json: flags.Json = False,
) -> None:
    """Measure a handful of a profile's points again: does it still predict today's device?

    nexusbench profile check results/profiles/sim-l20-qwen2.5-3b

    Exit code 0 if it holds, 3 if it has drifted.
    """
    from nexusbench.cli._profiling import check_stored

    if not check_stored(path, device, model, kernel_table, engine, as_json=json):
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
