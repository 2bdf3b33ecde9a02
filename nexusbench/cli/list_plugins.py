"""``nexusbench list``: what there is to choose from, with sources and options."""

from __future__ import annotations

from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

FAMILIES = (
    "schedulers", "partitioners", "cost-models", "devices", "gpus", "engines", "models",
    "model-families", "metrics", "formats", "counters", "slos",
)  # fmt: skip


def list_plugins(
    family: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY",
            show_default=False,
            callback=flags.one_of(*FAMILIES),
            help=f"One of: {', '.join(FAMILIES)}.",
        ),
    ],
    json: flags.Json = False,
) -> None:
    """List what there is to choose from: name, purpose, source, options with defaults.

    nexusbench list schedulers

    --json gives for each entry its name, about, source, facts, options (name, type, default) and
    the error of a plug-in that is broken; what is empty is left out.
    """
    from nexusbench.cli._catalogue import show_family

    show_family(family, as_json=json)
