"""``nexusbench compare``: stored runs side by side, complete or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", show_default=False, help="Run folders, or ids in --results."),
]


def compare(
    runs: Runs,
    results: flags.Results = Path("results"),
    goodput: flags.Goodput = None,
    json: flags.Json = False,
    formulas: flags.Formulas = False,
) -> None:
    """Show stored runs side by side; interrupted and killed ones too, with what they kept.

    With --goodput all runs are judged by these bounds instead of their own.
    """
    from nexusbench.cli._stored import compare_runs

    compare_runs(runs, results, goodput=goodput or [], as_json=json, formulas=formulas)
