"""``nexusbench explain``: where one request's time went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags


def explain(
    run: Annotated[
        str, typer.Argument(metavar="RUN", show_default=False, help="A run folder, or its id.")
    ],
    request: Annotated[
        str | None,
        typer.Option(
            "--request",
            "-r",
            metavar="ID",
            show_default="list the slowest",
            help="Its id in the trace, or its number from 0.",
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many of the slowest to list.")
    ] = 10,
    results: flags.Results = Path("results"),
    json: flags.Json = False,
) -> None:
    """Say where a request's time went: queue, KV wait, compute, contention.

    nexusbench explain results/RUN --request 17

    Without --request: the requests with the longest time to first token.
    """
    from nexusbench.cli._explanation import explain_request, list_slowest

    if request is None:
        list_slowest(run, results, top=top, as_json=json)
    else:
        explain_request(run, results, request, as_json=json)
