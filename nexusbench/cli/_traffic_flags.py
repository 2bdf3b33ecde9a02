"""Flags that change when requests arrive, beyond those of :mod:`nexusbench.cli._flags`."""

from __future__ import annotations

from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

QuantizeArrivals = Annotated[
    float | None,
    typer.Option(
        callback=flags.positive,
        metavar="S",
        rich_help_panel="Traffic",
        help="Round arrivals up to multiples of S seconds (llm-bench does so with 1).",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=flags.bounded,
        metavar="N",
        rich_help_panel="Traffic",
        help="A closed loop of N users: the next request comes when one is free, no timestamps.",
    ),
]
