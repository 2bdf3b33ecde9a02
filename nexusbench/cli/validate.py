"""``nexusbench validate``: how far the simulated GPU is from measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nexusbench.cli import _flags as flags

if TYPE_CHECKING:
    from rich.console import Console

    from nexusbench.experiments.fidelity.errors import Errors
    from nexusbench.experiments.fidelity.kernels import OperatorScore
    from nexusbench.experiments.fidelity.replay import Curves, ReplayValidation

JSON_SCHEMA = 1
_SPARK = "▁▂▃▄▅▆▇█"
_WIDTH = 60  # characters of a curve

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
        _show_scores(spec.name, table, scores, samples.notes)
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
        _show_replay(str(folder), recording.resolved.engine, made)
    _hold(bounds, made.reached)


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


def _show_scores(gpu: str, table: str, scores: list[OperatorScore], notes: list[str]) -> None:
    from rich import box
    from rich.table import Table

    from nexusbench.cli._console import print_whole, results_console

    console = results_console()
    console.print(f"{gpu}, simulated, against {table}: errors in %", style="bold", soft_wrap=True)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    grid.add_column("operator", no_wrap=True)
    grid.add_column("", no_wrap=True)
    for name in ("n", "MAPE", "p50", "p95", "bias"):
        grid.add_column(name, justify="right")
    for score in scores:
        found = {
            "physics, held out": score.physics,
            "physics, fitted half": score.fitted,
            "table, held out": score.table,
        }
        lines = [(what, errors) for what, errors in found.items() if errors is not None]
        for line, (what, errors) in enumerate(lines):
            name = "" if line else score.operator
            grid.add_row(name, what, *_cells(errors), end_section=line == len(lines) - 1)
    print_whole(console, grid)
    console.print(
        "physics, held out: rows outside the half that the GPU's constants were fitted on; table, "
        "held out: every second count left out and interpolated from the rest",
        style="dim",
        soft_wrap=True,
    )
    for note in notes:
        console.print(note, style="dim")


def _cells(found: Errors) -> list[str]:
    return [
        f"{found.n:,}", f"{found.mape:.1f}", f"{found.median:.1f}", f"{found.p95:.1f}",
        f"{found.bias:+.1f}",
    ]  # fmt: skip


def _show_replay(folder: str, engine: str, made: ReplayValidation) -> None:
    from rich import box
    from rich.table import Table

    from nexusbench.cli._console import print_whole, results_console

    console = results_console()
    times = "kernel table" if made.config.kernel_table else "physics alone"
    console.print(
        f"{folder} ({engine or 'engine unknown'}) beside {made.config.device}, {times}, scheduler "
        f"{made.config.scheduler}",
        style="bold",
        soft_wrap=True,
    )
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("", "", "unit"):
        grid.add_column(name, no_wrap=True)
    for name in ("measured", "simulated", "error, %"):
        grid.add_column(name, justify="right")
    shown = ""
    for row in made.rows:
        name = row.name if row.name != shown else ""
        shown = row.name
        values = [_number(value) for value in (row.measured, row.simulated)]
        error = "" if row.error is None else f"{row.error:+.2f}"
        grid.add_row(name, row.statistic, row.unit, *values, error)
    print_whole(console, grid)
    for curve in made.curves:
        _show_curve(console, curve)
    for note in made.notes:
        console.print(note, style="dim", soft_wrap=True)


def _show_curve(console: Console, curve: Curves) -> None:
    top = max([*curve.measured, *curve.simulated], default=0.0) or 1.0
    console.print(f"{curve.name}, {curve.unit}: mean size of the error {curve.error:.2f}")
    console.print(f"  measured   {_spark(curve.measured, top)}")
    console.print(f"  simulated  {_spark(curve.simulated, top)}")


def _spark(values: list[float], top: float) -> str:
    """Means of equal stretches as bars from 0 to ``top``."""
    count = min(_WIDTH, len(values))
    bars = []
    for i in range(count):
        part = values[i * len(values) // count : (i + 1) * len(values) // count]
        share = sum(part) / len(part) / top
        bars.append(_SPARK[min(len(_SPARK) - 1, int(share * len(_SPARK)))])
    return "".join(bars)


def _number(value: float | None) -> str:
    if value is None:
        return "not recorded"
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:,.2f}"


if __name__ == "__main__":
    app()
