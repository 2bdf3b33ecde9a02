"""``nexusbench report``: stored runs as one page that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN", show_default=False, help="Run folders, ids in --results, or profiles."
    ),
]


def report(
    runs: Runs,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The page to write.")
    ] = Path("report.html"),
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default=False, help="Also every chart as PNG and SVG."),
    ] = None,
    results: flags.Results = Path("results"),
    goodput: flags.Goodput = None,
    price_per_hour: flags.Price = None,
    watts: flags.Watts = None,
    json: flags.Json = False,
) -> None:
    """Make one self-contained page of stored runs, or of profiles, that needs no network.

    nexusbench report results/* -o report.html

    Runs that differ only in their seed share a column; several loads get latency over rate.
    """
    from nexusbench.cli._jobs import parse_goodput
    from nexusbench.cli._reporting import show_made
    from nexusbench.comparison.view import Judgement
    from nexusbench.core.errors import UsageError
    from nexusbench.report.build import are_profiles, report_profiles, report_runs

    slo = parse_goodput(goodput) if goodput else None
    judgement = Judgement(slo, price_per_hour, watts)
    if are_profiles(runs):
        if not judgement.own:
            raise UsageError("--goodput, --price-per-hour and --watts judge runs, not profiles")
        show_made(report_profiles(runs, output, plots), as_json=json)
        return
    show_made(report_runs(runs, results, output, judgement, plots), as_json=json)
