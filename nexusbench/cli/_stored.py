"""Stored runs side by side on a terminal, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nexusbench import __version__
from nexusbench.cli._console import progress_console, results_console, say
from nexusbench.cli._screen import badge, header, show_columns
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.comparison.alike import find_warnings, label_apart
from nexusbench.comparison.headline import answers
from nexusbench.comparison.view import Column, Judgement, RunView, view_of_reader
from nexusbench.results.reader import RunReader

if TYPE_CHECKING:
    from rich.console import Console


def compare_runs(
    runs: Sequence[str],
    results: Path,
    judgement: Judgement,
    *,
    as_json: bool = False,
    formulas: bool = False,
) -> None:
    """Print runs side by side. Raises InputError naming a run that cannot be read."""
    views = [view_of_reader(RunReader(run, results), judgement) for run in runs]
    label_apart(views, seeds=True)
    warnings = find_warnings(views)
    if as_json:
        for warning in warnings:
            progress_console().print(f"WARNING: {warning}", soft_wrap=True)
        document: dict[str, object] = {
            "schema": JSON_SCHEMA,
            "command": "compare",
            "nexusbench": __version__,
            "simulated": any(view.simulated for view in views),
            "warnings": warnings,
            **answers(by_run(views)),
            "runs": [view.as_json() for view in views],
        }
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    _show(views, warnings, formulas)


def by_run(views: Sequence[RunView]) -> list[Column]:
    """One column per run: seeds of stored runs are not pooled, since they may be unrelated."""
    return [Column(view.label, [view]) for view in views]


def _show(views: Sequence[RunView], warnings: Sequence[str], formulas: bool) -> None:
    console = results_console()
    columns = by_run(views)
    if warnings:
        _show_mixed(console, columns)
    else:
        header(console, columns, "nexusbench compare")
    for warning in warnings:
        say(console, f"WARNING: {warning}", "bold red", 9)
    show_columns(console, columns, formulas=formulas)
    console.print()
    width = max(len(view.label) for view in views)
    for view in views:
        reason = f": {view.message}" if view.message else ""
        name = " ".join(view.label.split())
        console.print(f"{name:<{width}}  {view.folder}  {view.status}{reason}", soft_wrap=True)


def _show_mixed(console: Console, columns: Sequence[Column]) -> None:
    """The title for runs that have no common header."""
    from rich.text import Text

    console.print(Text("nexusbench compare", style="bold"))
    for column in columns:
        resolved = column.first.resolved
        console.print(
            Text.assemble(
                badge(column.first.simulated),
                f"  {column.label}: {resolved.device}, "
                f"{resolved.model.name}, {resolved.trace.name}",
            ),
            soft_wrap=True,
        )
