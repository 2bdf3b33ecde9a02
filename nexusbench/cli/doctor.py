"""``nexusbench doctor``: what works on this machine, and what to do about what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags


def doctor(
    results: flags.Results = Path("results"),
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="DEVICE",
            show_default="all, briefly",
            help="Look at one device closely: cuda, cuda:1, cpu, sim:h200.",
        ),
    ] = None,
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Measure the CPU's limits (2 s).")
    ] = True,
    json: flags.Json = False,
) -> None:
    """Check versions, machine, devices, results folder and plug-ins; serve a request as a test.

    nexusbench doctor --device cuda

    Exit code 0 unless the core itself is broken, or the --device that was asked about.
    """
    from nexusbench.cli._checkup import check_device, check_up

    if device is not None:
        fine = check_device(device, as_json=json)
    else:
        fine = check_up(results, as_json=json, speed=speed)
    if not fine:
        raise typer.Exit(1)
