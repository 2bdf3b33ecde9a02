"""``nexusbench timeline``: stored runs as a trace for Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags


def timeline(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", show_default=False, help="Run folders, or ids in --results."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The trace to write.")
    ] = Path("timeline.json"),
    window: Annotated[
        str | None,
        typer.Option(metavar="A:B", show_default=False, help="Only seconds A to B of the run."),
    ] = None,
    results: flags.Results = Path("results"),
) -> None:
    """Write stored runs as Chrome trace JSON: open it in ui.perfetto.dev or chrome://tracing.

    nexusbench timeline results/RUN --window 10:20

    A track per partition with its batches, counters of queue and KV cache, flows of requests.
    """
    from nexusbench.cli._timelines import write_stored

    write_stored(runs, results, output, window)
