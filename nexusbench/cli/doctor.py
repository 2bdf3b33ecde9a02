"""``nexusbench doctor``: what works on this machine, and what to do about what does not."""

from __future__ import annotations

from pathlib import Path

import typer

from nexusbench.cli import _flags as flags


def doctor(results: flags.Results = Path("results"), json: flags.Json = False) -> None:
    """Check versions, machine, devices, results folder and plug-ins; serve a request as a test.

    Exit code 0 unless the core itself is broken.
    """
    from nexusbench.cli._checkup import check_up

    if not check_up(results, as_json=json):
        raise typer.Exit(1)
