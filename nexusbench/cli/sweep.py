"""``nexusbench sweep``: every combination of what a spec lists, resumable, one table out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

_WHERE = "Where it runs"

Spec = Annotated[
    Path,
    typer.Argument(
        metavar="SPEC.toml",
        show_default=False,
        help="[base] fields, [grid] lists, [[exclude]], [[include]]; see docs/sweeps.md.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        show_default="results/SPEC.parquet",
        help="The table: a row per cell.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "-j", "--jobs", min=1, metavar="N", rich_help_panel=_WHERE, show_default="all cores",
        help="Processes on this machine; one where a real device is used.",
    ),
]  # fmt: skip
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS|auto|local", rich_help_panel=_WHERE,
        help="Fan out over this Ray cluster instead (local starts one here); needs "
        "pip install 'nexusbench[ray]'.",
    ),
]  # fmt: skip
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Only say what would run, what is kept, and how long it takes."),
]


def sweep(
    spec: Spec,
    output: Out = None,
    jobs: Jobs = None,
    ray: Ray = None,
    dry_run: DryRun = False,
    cache: flags.Cache = Path("results/cells"),
    fresh: flags.Fresh = False,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Run every combination that SPEC lists and write one parquet table.

    nexusbench sweep sweep.toml --dry-run

    Each cell is kept as it ends, by a hash of all that decides it: call again after a kill, or
    after adding a value, and only what is missing runs. Cells that fail are rows too, and make the
    exit code 1.
    """
    from nexusbench.cli._sweeping import SweepPlace, show_sweep

    place = SweepPlace(cache=cache, output=output, jobs=jobs, ray=ray, fresh=fresh)
    show_sweep(spec, place, dry_run=dry_run, as_json=json, quiet=no_progress)
