"""``nexusbench trace``: make traces from specs, look into them, write them in other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

app = typer.Typer(no_args_is_help=True, help="Make, show and convert traces.")


@app.command("make")
def make(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC.toml", show_default=False, help="A workload spec.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", show_default="SPEC.jsonl here", help="What to write."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", show_default="the spec's", help="Another seed than the spec's."
        ),
    ] = None,
) -> None:
    """Write the trace of a workload spec: the same file on every machine.

    nexusbench trace make workloads/mixed.toml -o mixed.jsonl
    """
    from nexusbench.cli._tracing import make_file

    make_file(spec, output or Path(f"{spec.stem}.jsonl"), seed)


@app.command("show")
def show(trace: flags.TracePath, json: flags.Json = False) -> None:
    """Show what is in a trace: rates, burstiness, lengths, shared prefixes, sessions.

    nexusbench trace show workloads/mixed.jsonl
    """
    from nexusbench.cli._tracing import show_file

    show_file(trace, as_json=json)


@app.command("convert")
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", show_default=False, help="A trace in any format.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", show_default=False, help="What to write.")
    ],
    format: Annotated[
        str,
        typer.Option(
            callback=flags.one_of("native", "mooncake", "azure"),
            metavar="native|mooncake|azure",
            help="The format of OUT.",
        ),
    ] = "native",
) -> None:
    """Write a trace in another format, and say what that format cannot hold.

    nexusbench trace convert workloads/mixed.jsonl mixed.csv --format azure
    """
    from nexusbench.cli._tracing import convert_file

    convert_file(source, target, format)
