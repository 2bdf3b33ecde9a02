"""``nexusbench pays``: where sharing a GPU between prefill and decode pays, as a map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

Spec = Annotated[
    Path,
    typer.Argument(
        metavar="SPEC.toml", show_default=False,
        help="GPUs, traffic, loads, SLOs and systems, as in workloads/when-it-pays/map.toml.",
    ),
]  # fmt: skip
Out = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="DIR", show_default="results/SPEC",
        help="Where the table, the manifest and the pictures go.",
    ),
]  # fmt: skip
Quick = Annotated[
    bool, typer.Option("--quick", help="Less of it, as the quick tables of the spec say.")
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Find the capacities, then say what would run and for how long."
    ),
]


def pays(
    spec: Spec,
    output: Out = None,
    quick: Quick = False,
    jobs: flags.Jobs = None,
    dry_run: DryRun = False,
    cache: flags.Cache = Path("results/cells"),
    fresh: flags.Fresh = False,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Compare systems on simulated GPUs over traffic, load and SLO: where does splitting pay?

    nexusbench pays workloads/when-it-pays/map.toml --quick

    Loads are shares of what the spec's reference can finish, found first. Each run is kept as it
    ends: call again after a kill, or after adding a system. See docs/when-it-pays.md.
    """
    from nexusbench.cli._paying import AskedMap, show_map

    asked = AskedMap(
        spec=spec, output=output, quick=quick, jobs=jobs, dry_run=dry_run, cache=cache, fresh=fresh
    )
    show_map(asked, as_json=json, quiet=no_progress)
