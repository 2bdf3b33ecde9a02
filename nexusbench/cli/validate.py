"""``nexusbench validate``: how far the simulated GPU is from measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from nexusbench.cli import _flags as flags

JSON_SCHEMA = 1

app = typer.Typer(no_args_is_help=True, help="Set the simulated GPU beside measurements.")

Bounds = Annotated[
    list[str],
    typer.Option(
        "--bound", metavar="NAME:PERCENT", help="Exit with 3 if this error is larger (repeatable)."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Half = Literal["all", "held-out", "fitted"]
ModelName = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="A shipped model or a config.json.")
]

PointsOf = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Only points of this model of the table."),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="COLUMN=VALUE", help="Only such points (repeatable)."),
]
Every = Annotated[
    int, typer.Option("--every", min=1, metavar="N", help="Only every Nth of these points.")
]
Configs = Annotated[
    Path | None,
    typer.Option("--configs", metavar="DIR", help="Further models: a folder OWNER--NAME for each."),
]
Rounds = Annotated[
    int, typer.Option("--rounds", min=1, max=1000, metavar="N", help="Requests of each user.")
]
Steady = Annotated[bool, typer.Option("--steady", help="Leave out the first and the last round.")]
RangeRatio = Annotated[
    float | None,
    typer.Option(
        "--range-ratio",
        min=0.01,
        max=1.0,
        metavar="SHARE",
        help="Draw lengths from this share of isl and osl to all of it.",
        show_default="as the point was measured: 0.8 by InferenceX, else 1",
    ),
]
StepTokens = Annotated[
    int | None,
    flags.option(
        "max_num_batched_tokens", show_default="users + isl + 1500", help="Tokens of a batch."
    ),
]


@app.command("kernels")
def kernels(
    gpu: Annotated[str, typer.Argument(metavar="GPU", help="A shipped GPU, or a .toml file.")],
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="A --kernel-table folder, a dense CSV of Vidur, a folder of aiconfigurator's "
            "parquet files, or 'aiconfigurator' for the installed package.",
        ),
    ],
    model: ModelName = "llama-3.1-8b",
    bound: Bounds = [],  # noqa: B006 - Typer reads it, nothing changes it
    as_json: AsJson = False,
) -> None:
    """Errors of the physics alone, and of tables with whole counts held out, by operator.

    nexusbench validate kernels a100 TABLE --bound gemm:8

    Bounds name an operator or a group ('gemm:8', 'attention:12': MAPE of the physics where it was
    not fitted; 'table gemm:5': of the table).
    """
    import json

    import msgspec

    from nexusbench.cli._kernels_screen import show_scores
    from nexusbench.experiments.fidelity.errors import parse_bounds
    from nexusbench.experiments.fidelity.kernels import read_samples, summarise
    from nexusbench.models.config import load_model
    from nexusbench.physics.gpus import load_gpu

    bounds = parse_bounds(bound)
    spec = load_gpu(gpu)
    samples = read_samples(spec, gpu, load_model(model), table)
    scores = summarise(samples)
    reached = {s.operator: s.physics.mape for s in scores if s.physics is not None}
    reached |= {f"table {s.operator}": s.table.mape for s in scores if s.table is not None}
    if as_json:
        document = {
            "schema": JSON_SCHEMA, "command": "validate kernels", "gpu": spec.name, "table": table,
            "scores": msgspec.to_builtins(scores), "notes": samples.notes,
        }  # fmt: skip
        print(json.dumps(document, indent=2))
    else:
        show_scores(spec.name, table, scores, samples.notes)
    _hold(bounds, reached)


@app.command("partitions")
def partitions(
    gpu: Annotated[str, typer.Argument(metavar="GPU", help="A shipped GPU, or a .toml file.")],
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="A CSV table in a format of docs/fidelity.md, or the folder of a profile "
            "(nexusbench profile).",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="What was measured, where the table does not say."
        ),
    ] = None,
    half: Annotated[
        Half,
        typer.Option(
            "--half",
            help="The rows that are scored and that bounds hold: all, the half that is held out of "
            "every fit, or the half that constants may be fitted on.",
        ),
    ] = "held-out",
    bound: Bounds = [],  # noqa: B006 - Typer reads it, nothing changes it
    as_json: AsJson = False,
) -> None:
    """Measured sharing of a GPU beside the simulated one: SM counts, two streams, splits.

    nexusbench validate partitions h100 TABLE --bound stream:8 --bound "work rate split:10"

    Times are compared over the time on all SMs; 'NAME, absolute' are times themselves. A bound is
    on the MAPE in percent; on a work rate it is in hundredths: 10 means within 0.10 of measured.
    """
    import json

    from nexusbench.cli._partitions_screen import document, show
    from nexusbench.experiments.fidelity.errors import parse_bounds
    from nexusbench.experiments.fidelity.partitions.formats import read_partitions
    from nexusbench.experiments.fidelity.partitions.scores import PER_CENT, summarise
    from nexusbench.models.config import load_model
    from nexusbench.physics.gpus import load_gpu

    bounds = parse_bounds(bound)
    spec = load_gpu(gpu)
    found = read_partitions(table, spec, None if model is None else load_model(model))
    scores, repeated = summarise(found.points)
    if as_json:
        print(json.dumps(document(spec, str(table), half, found, scores), indent=2))
    else:
        show(spec, str(table), half, found, [s for s in scores if s.operator not in repeated])
    units = {s.operator: f"({s.unit})" for s in scores if s.unit != PER_CENT}
    _hold(bounds, {s.operator: s.of(half)[1].mape for s in scores}, units)


@app.command("run")
def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A recorded run.")],
    device: Annotated[
        str, typer.Option("--device", metavar="sim:GPU", help="The GPU that was recorded.")
    ],
    model: ModelName = "llama-3.1-8b",
    kernel_table: Annotated[
        Path | None, typer.Option("--kernel-table", metavar="DIR", help="Measured operator times.")
    ] = None,
    engine: Annotated[str | None, flags.option("engine", rich_help_panel=None)] = None,
    seed: Annotated[
        int, flags.option("seed", help="Seed of simulated noise.", rich_help_panel=None)
    ] = 0,
    bound: Bounds = [],  # noqa: B006 - Typer reads it, nothing changes it
    as_json: AsJson = False,
) -> None:
    """Replay a recorded run of a real engine: measured beside simulated.

    nexusbench validate run RECORDING --device sim:h100 --bound tpot:5

    Bounds name a row ('makespan:3', 'tpot:3' for its mean, 'tpot.p99:5').
    """
    import json

    import msgspec

    from nexusbench.cli._replay_screen import show_replay
    from nexusbench.core.config import RunConfig
    from nexusbench.experiments.fidelity.errors import parse_bounds
    from nexusbench.experiments.fidelity.recording import read_recording
    from nexusbench.experiments.fidelity.replay import replay

    bounds = parse_bounds(bound)
    config = RunConfig(
        trace="",
        device=device,
        model=model,
        seed=seed,
        kernel_table=None if kernel_table is None else str(kernel_table),
        engine=engine,
    )
    recording = read_recording(folder)
    made = replay(recording, config)
    if as_json:
        rows = [{**msgspec.to_builtins(row), "error_percent": row.error} for row in made.rows]
        document = {
            "schema": JSON_SCHEMA, "command": "validate run", "simulated": True,
            "recording": str(folder), "config": msgspec.to_builtins(made.config), "rows": rows,
            "curves": msgspec.to_builtins(made.curves), "notes": made.notes,
        }  # fmt: skip
        print(json.dumps(document, indent=2))
    else:
        show_replay(str(folder), recording.resolved.engine, made)
    _hold(bounds, made.reached)


@app.command("serving")
def serving(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A CSV of measured points.")],
    engine: Annotated[
        str | None,
        flags.option("engine", rich_help_panel=None, show_default="by backend and version"),
    ] = None,
    model: PointsOf = None,
    only: Only = None,
    every: Every = 1,
    configs: Configs = None,
    rounds: Rounds = 10,
    steady: Steady = False,
    range_ratio: RangeRatio = None,
    budget: StepTokens = None,
    jobs: flags.Jobs = None,
    cache: flags.Cache = Path("results/serving"),
    fresh: flags.Fresh = False,
    bound: Bounds = [],  # noqa: B006 - Typer reads it, nothing changes it
    as_json: AsJson = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Replay measured closed-loop points of servers: TTFT and TPOT, measured beside simulated.

    nexusbench validate serving points.csv --configs CONFIGS --bound tpot:10

    Bounds name 'ttft' or 'tpot' (MAPE of all points), 'tpot bias', or 'MODEL tpot'. Points that
    cannot be simulated, or that the table itself contradicts, are refused with the reason,
    counted, and not scored.
    """
    from nexusbench.cli._serving_screen import AskedServing, show_serving
    from nexusbench.experiments.fidelity.errors import parse_bounds
    from nexusbench.experiments.fidelity.serving_configs import ServingPlan

    bounds = parse_bounds(bound)
    plan = ServingPlan(
        engine=engine, configs=configs, rounds=rounds, steady=steady, range_ratio=range_ratio,
        budget=budget,
    )  # fmt: skip
    asked = AskedServing(
        table=table, plan=plan, model=model, only=only or [], every=every, cache=cache, jobs=jobs,
        fresh=fresh, as_json=as_json, quiet=no_progress,
    )  # fmt: skip
    _hold(bounds, show_serving(asked).reached)


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE.json", help="What vllm bench serve --save-detailed wrote."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The recording to make.")],
) -> None:
    """Make a recording of your own server that 'validate run' replays.

    nexusbench validate import bench.json RECORDING
    """
    from nexusbench.cli._console import results_console
    from nexusbench.experiments.fidelity.bench_serve import import_bench_serve

    console = results_console()
    for note in import_bench_serve(source, folder):
        console.print(note, soft_wrap=True)


@app.command("fit")
def fit_(
    gpu: Annotated[str, typer.Argument(metavar="GPU", help="A shipped GPU, or a .toml file.")],
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE", help="As for validate kernels; of sharing as for validate partitions."
        ),
    ],
    family: Annotated[
        str,
        typer.Option(
            "--family",
            metavar="gemm|attention|window|mla|gemm-fp8|experts|...|sharing",
            help="Which operators, or what sharing the GPU costs.",
        ),
    ] = "gemm",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            show_default="the table's, or llama-3.1-8b",
            help="A shipped model or a config.json.",
        ),
    ] = None,
    evaluations: Annotated[
        int,
        typer.Option(
            "--evaluations",
            min=20,
            max=1_000_000,
            metavar="N",
            help="Sets of constants to try: more fit better.",
        ),
    ] = 400,
) -> None:
    """Fit a GPU's constants on half of a table; prints the lines for its [sim] section.

    nexusbench validate fit a100 TABLE --family attention
    """
    from nexusbench.cli._console import progress_console, results_console
    from nexusbench.core.errors import UsageError
    from nexusbench.experiments.fidelity.fit import FAMILIES, fit
    from nexusbench.experiments.fidelity.sharing_fit import FAMILY, fit_sharing
    from nexusbench.models.config import load_model
    from nexusbench.physics.gpus import load_gpu

    if family == FAMILY:
        from nexusbench.cli._sharing_fit_screen import show_fit

        spec, named = load_gpu(gpu), None if model is None else load_model(model)
        progress_console().print(f"trying {evaluations:,} sets of constants, and more for ranges")
        show_fit(spec, table, fit_sharing(spec, Path(table), named, evaluations))
        return
    if family not in FAMILIES:
        raise UsageError(f"--family takes {', '.join(FAMILIES)} or {FAMILY}, not '{family}'")
    used = load_model(model or "llama-3.1-8b")
    made = fit(load_gpu(gpu), gpu, used, table, family, evaluations)
    progress_console().print(f"MAPE on the fitted half: {made.before:.2f} -> {made.after:.2f} %")
    if made.held_out is not None:
        before, after = made.held_out
        progress_console().print(f"MAPE on shapes held out: {before:.2f} -> {after:.2f} %")
    for name, value in made.constants.items():
        results_console().print(f"{name} = {value}")


def _hold(
    bounds: dict[str, float], reached: dict[str, float], units: dict[str, str] | None = None
) -> None:
    """Exit with 3, naming what broke, unless every bound holds."""
    from nexusbench.cli._console import progress_console
    from nexusbench.experiments.fidelity.errors import EXIT_BOUND_BROKEN, broken_bounds

    broken = broken_bounds(bounds, reached, units)
    for sentence in broken:
        progress_console().print(sentence, style="bold red", soft_wrap=True)
    if broken:
        raise SystemExit(EXIT_BOUND_BROKEN)


if __name__ == "__main__":
    app()
