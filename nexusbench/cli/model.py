"""``nexusbench model``: what a model description says."""

from __future__ import annotations

from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

app = typer.Typer(no_args_is_help=True, help="Look into model descriptions.")


@app.command("show")
def show(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A shipped model, a config.json, or a folder that holds one.",
        ),
    ],
    json: flags.Json = False,
) -> None:
    """Show what a model is made of: layer groups, parameters, bytes of weights, KV cache, states.

    nexusbench model show llama-3.1-8b

    Nothing is simulated and no weights are read. What the description leaves out is said, and
    whether simulated devices have kernels for all of its layers.
    """
    from nexusbench.cli._model_screen import show_model

    show_model(model, as_json=json)


@app.callback()
def _group() -> None:
    """Look into model descriptions."""
