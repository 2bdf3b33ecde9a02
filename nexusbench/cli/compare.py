"""``nexusbench compare``: stored runs side by side, complete or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN", show_default=False, help="Run folders, or ids in --results."),
]


def compare(
    runs: Runs,
    results: flags.Results = Path("results"),
    goodput: flags.Goodput = None,
    by: flags.By = None,
    price_per_hour: flags.Price = None,
    watts: flags.Watts = None,
    json: flags.Json = False,
    formulas: flags.Formulas = False,
) -> None:
    """Show stored runs side by side; interrupted and killed ones too, with what they kept.

    nexusbench compare results/* --goodput ttft:500 tbt:50

    With --goodput, --price-per-hour or --watts all runs are judged by these instead of their own.
    """
    from nexusbench.cli._jobs import parse_by, parse_goodput
    from nexusbench.cli._stored import compare_runs
    from nexusbench.comparison.view import Judgement

    slo = parse_goodput(goodput) if goodput else None
    judgement = Judgement(slo, price_per_hour, watts, parse_by(by or []))
    compare_runs(runs, results, judgement, as_json=json, formulas=formulas)
