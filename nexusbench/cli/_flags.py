"""The flags of ``serve-trace``, one alias each, in vLLM's dialect where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli._bounds import bounded as bounded
from nexusbench.cli._bounds import folder as folder
from nexusbench.cli._bounds import not_negative as not_negative
from nexusbench.cli._bounds import one_of as one_of
from nexusbench.cli._bounds import positive as positive
from nexusbench.cli._bounds import share as share

_WHAT, _MEMORY, _PREFIX, _LIMITS = "What is run", "Memory", "Prefix cache", "Budgets"
_TRAFFIC, _MEASURE, _OUTPUT = "Traffic", "Measurement", "Output"


TracePath = Annotated[
    Path,
    typer.Argument(
        metavar="TRACE",
        show_default=False,
        help="Native, Mooncake or Qwen JSON lines, Azure or BurstGPT CSV; plain or .gz (detected).",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        rich_help_panel=_WHAT,
        help="auto (a usable CUDA GPU, else sim:l20), sim:GPU (nexusbench list gpus), "
        "sim:FILE.toml for your own GPU, "
        "sim:DIR for the times of the profile in that folder, cpu (real tokens on cores), "
        "cpu:shared (thread priorities), cuda (a GPU's SMs, partitioned), or cuda:streams (not).",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        rich_help_panel=_WHAT,
        help="A shipped model (nexusbench list models), an HF config.json, or its folder.",
    ),
]
Schedulers = Annotated[
    list[str],
    typer.Option(
        rich_help_panel=_WHAT,
        metavar="NAME[:KEY=VALUE,...]",
        help="From nexusbench list schedulers. Several, as a,b,c or by repeating the flag, run one "
        "after the other on one trace.",
    ),
]
Partitioners = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=_WHAT,
        metavar="NAME[:KEY=VALUE,...]",
        show_default="each scheduler's own",
        help="Who sizes the partitions (nexusbench list partitioners): one for all schedulers, or "
        "one for each in the same order.",
    ),
]
CostModel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:KEY=VALUE,...]",
        rich_help_panel=_WHAT,
        show_default="roofline, with --profile nexus",
        help="What the partitioner believes a batch costs (nexusbench list cost-models).",
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        rich_help_panel=_WHAT,
        help="Fit the cost model to this profile of the device and model: its folder, or the "
        "profile.json in it (nexusbench profile).",
    ),
]
ForceProfile = Annotated[
    bool,
    typer.Option(
        "--force-profile",
        rich_help_panel=_WHAT,
        help="Use --profile even if it is of another device or model.",
    ),
]
Recalibrate = Annotated[
    bool,
    typer.Option(
        "--recalibrate",
        rich_help_panel=_WHAT,
        help="Let the belief follow the device: a running ratio of actual to predicted per phase.",
    ),
]
KernelTable = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        rich_help_panel=_WHAT,
        help="Measured operator times for the simulated GPU, instead of its physics alone.",
    ),
]
TensorParallel = Annotated[
    int,
    typer.Option(
        min=1,
        callback=bounded,
        metavar="N",
        rich_help_panel=_WHAT,
        help="GPUs that share every layer.",
    ),
]
Utilization = Annotated[
    float,
    typer.Option(
        callback=share,
        metavar="SHARE",
        rich_help_panel=_MEMORY,
        help="Share of each GPU's memory for weights and KV.",
    ),
]
KvBlocks = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=bounded,
        metavar="N",
        rich_help_panel=_MEMORY,
        show_default="from memory",
        help="KV blocks in the pool; in a pair of GPUs, each has a pool of so many.",
    ),
]
SwapSpace = Annotated[
    float | None,
    typer.Option(
        callback=not_negative,
        metavar="GIB",
        rich_help_panel=_MEMORY,
        show_default="what the scheduler counts on",
        help="Host memory for KV of preempted requests, GiB for each GPU (simulated devices).",
    ),
]
BlockSize = Annotated[
    int,
    typer.Option(
        min=1,
        callback=bounded,
        metavar="N",
        rich_help_panel=_MEMORY,
        help="Tokens of a KV block.",
    ),
]
PrefixCaching = Annotated[
    bool,
    typer.Option(
        "--prefix-caching/--no-prefix-caching",
        # A panel of its own: the long negative name would squeeze the others of a shared one.
        rich_help_panel=_PREFIX,
        help="Reuse KV blocks of equal prefixes. vLLM's names of it work too.",
    ),
]
MaxSeqs = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=bounded,
        metavar="N",
        rich_help_panel=_LIMITS,
        show_default="vLLM's for this GPU",
        help="Requests that hold KV blocks at a time, on all partitions and GPUs together.",
    ),
]
MaxBatchedTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=bounded,
        metavar="N",
        rich_help_panel=_LIMITS,
        show_default="vLLM's for this GPU",
        help="Tokens of a batch; each partition runs batches of its own.",
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=bounded,
        metavar="N",
        rich_help_panel=_LIMITS,
        show_default="the model's",
        help="Most tokens of a request, prompt and output together.",
    ),
]
TooLong = Annotated[
    str,
    typer.Option(
        callback=one_of("reject", "skip", "clip", "error"),
        metavar="ACTION",
        rich_help_panel=_LIMITS,
        help="Requests beyond --max-model-len: reject (counts as a miss), skip, clip the prompt, "
        "or end with an error.",
    ),
]
MaxTokens = Annotated[
    str | None,
    typer.Option(
        metavar="N|trace",
        rich_help_panel=_LIMITS,
        show_default="a power of two for all",
        help="The output bound that a policy may see; 'trace' tells it the truth (an oracle).",
    ),
]
Speed = Annotated[
    float | None,
    typer.Option(
        callback=positive,
        metavar="FACTOR",
        rich_help_panel=_TRAFFIC,
        help="Replay this many times as fast: 2 is faster, half the time between arrivals.",
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        "--request-rate",
        callback=positive,
        metavar="RATE",
        rich_help_panel=_TRAFFIC,
        help="Rescale time evenly to this mean rate, requests per second.",
    ),
]
Burstiness = Annotated[
    float | None,
    typer.Option(
        callback=positive,
        metavar="SHAPE",
        rich_help_panel=_TRAFFIC,
        help="Redraw arrivals (needs --rate): gamma gaps of this shape, 1 is Poisson, less is "
        "burstier.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        "--num-prompts",
        min=1,
        callback=bounded,
        metavar="N",
        rich_help_panel=_TRAFFIC,
        help="Only the first N requests.",
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        metavar="A:B", rich_help_panel=_TRAFFIC, help="Only requests that arrive in seconds A to B."
    ),
]
SpreadTies = Annotated[
    str,
    typer.Option(
        callback=one_of("none", "uniform"),
        metavar="none|uniform",
        rich_help_panel=_TRAFFIC,
        help="Spread requests that share a coarse timestamp until the next one.",
    ),
]
Warmup = Annotated[
    float,
    typer.Option(
        "--warmup",
        callback=not_negative,
        metavar="SECONDS",
        rich_help_panel=_MEASURE,
        help="Leave out what starts earlier than this.",
    ),
]
Goodput = Annotated[
    list[str] | None,
    typer.Option(
        "--goodput",
        metavar="KEY:MS ...",
        rich_help_panel=_MEASURE,
        help="Bounds on ttft, tpot, e2e or tbt (p99 of a request), as in: ttft:500 tbt:50",
    ),
]
By = Annotated[
    list[str] | None,
    typer.Option(
        "--by",
        metavar="prompt-length|tenant",
        rich_help_panel=_MEASURE,
        help="A further table that shows who pays: requests by prompt length, or by tenant.",
    ),
]
Price = Annotated[
    float | None,
    typer.Option(
        "--price-per-hour",
        callback=positive,
        metavar="DOLLARS",
        rich_help_panel=_MEASURE,
        help="Of one GPU: adds the cost of a million output tokens.",
    ),
]
Watts = Annotated[
    float | None,
    typer.Option(
        callback=positive,
        metavar="WATTS",
        rich_help_panel=_MEASURE,
        help="Drawn by one GPU: adds joules per output token.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, callback=bounded, metavar="N", rich_help_panel=_MEASURE, help="The first seed."
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        min=1,
        max=1000,
        metavar="N",
        rich_help_panel=_MEASURE,
        help="Run N seeds each: 95 % intervals, paired differences to the first scheduler.",
    ),
]
Results = Annotated[
    Path,
    typer.Option(
        parser=folder, metavar="DIR", rich_help_panel=_OUTPUT, help="Where runs are kept."
    ),
]
Timeline = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_OUTPUT,
        show_default=False,
        help="Also write a Chrome/Perfetto trace of all runs.",
    ),
]
NoSave = Annotated[bool, typer.Option("--no-save", rich_help_panel=_OUTPUT, help="Keep no run.")]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=_OUTPUT, help="One JSON document on stdout.")
]
NoProgress = Annotated[
    bool, typer.Option("--no-progress", rich_help_panel=_OUTPUT, help="Nothing while it runs.")
]
Formulas = Annotated[
    bool, typer.Option("--formulas", rich_help_panel=_OUTPUT, help="Print every formula shown.")
]
Cache = Annotated[
    Path,
    typer.Option(
        parser=folder,
        metavar="DIR",
        rich_help_panel=_OUTPUT,
        help="Results by the hash of all that decides them: what is there is not run again.",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", rich_help_panel=_OUTPUT, help="Run again what is in --cache too."),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "-j", "--jobs", min=1, metavar="N", show_default="all cores",
        help="Processes on this machine.",
    ),
]  # fmt: skip
