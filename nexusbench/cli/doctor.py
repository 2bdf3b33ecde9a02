"""``nexusbench doctor``: what works on this machine, and what to do about what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags


def doctor(
    results: flags.Results = Path("results"),
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Measure the CPU's limits (2 s).")
    ] = True,
    json: flags.Json = False,
) -> None:
    """Check versions, machine, devices, results folder and plug-ins; serve a request as a test.

    Exit code 0 unless the core itself is broken.
    """
    from nexusbench.cli._checkup import check_up

    if not check_up(results, as_json=json, speed=speed):
        raise typer.Exit(1)
