"""The flags that ``capacity`` and ``advise`` share: an SLO, how it is judged, draws of arrivals."""

from __future__ import annotations

from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

_SLO, _SEARCH = "SLO", "Search"

Bounds = Annotated[
    list[str] | None,
    typer.Option(
        "--goodput", metavar="BOUND ...", rich_help_panel=_SLO,
        help="KEY:STATISTIC<MS of a run, as in 'ttft:p99<2000,tbt:p99<100' (quote it, or write "
        "ttft:p99:2000), or KEY:MS of each request. Keys ttft, tbt, tpot, e2e, queueing; "
        "statistics mean, p50 to p99.9, max.",
    ),
]  # fmt: skip
SloName = Annotated[
    str | None,
    typer.Option(
        "--slo",
        metavar="NAME",
        rich_help_panel=_SLO,
        help="An SLO by name, from nexusbench list slos.",
    ),
]
Attainment = Annotated[
    float | None,
    typer.Option(
        callback=flags.positive, metavar="PERCENT", rich_help_panel=_SLO,
        show_default="90 for KEY:MS",
        help="Take every bound for each request, to be kept by so many of those offered.",
    ),
]  # fmt: skip
Shape = Annotated[
    float,
    typer.Option(
        callback=flags.positive, metavar="SHAPE", rich_help_panel=_SEARCH,
        help="Arrivals are drawn with gamma gaps of this shape: 1 is Poisson, less is burstier.",
    ),
]  # fmt: skip
Draws = Annotated[
    int,
    typer.Option(
        min=1, max=100, metavar="N", rich_help_panel=_SEARCH, help="Draws of the arrivals."
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "-j", "--jobs", min=1, metavar="N", rich_help_panel=_SEARCH, show_default="all cores",
        help="Processes on this machine; one where a real device is used.",
    ),
]  # fmt: skip
