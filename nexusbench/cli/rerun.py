"""``nexusbench rerun``: the same config again, and whether the event log is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags


def rerun(
    run: Annotated[
        str, typer.Argument(metavar="RUN", show_default=False, help="A run folder, or its id.")
    ],
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="as recorded", help="Where the trace is now."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            parser=flags.folder,
            metavar="DIR",
            show_default="beside the original",
            help="Where to keep the new run, and to look for RUN if it is an id.",
        ),
    ] = None,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Run a stored run's config again and compare the event logs.

    nexusbench rerun results/RUN

    Exit codes: 0 identical (a real device: it ended), 1 it differs, 4 the stored run is partial or
    damaged: there is nothing to compare with.
    """
    from nexusbench.cli._again import run_again

    run_again(run, results, trace=trace, as_json=json, quiet=no_progress)
