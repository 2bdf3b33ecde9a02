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
    dtype: Annotated[str | None, flags.option("dtype", rich_help_panel=None)] = None,
    quantization: Annotated[str | None, flags.option("quantization", rich_help_panel=None)] = None,
    kv_cache_dtype: Annotated[
        str | None, flags.option("kv_cache_dtype", rich_help_panel=None)
    ] = None,
    json: flags.Json = False,
) -> None:
    """Show what a model is made of: layer groups, parameters, bytes of weights, KV cache, states.

    nexusbench model show llama-3.1-8b

    Nothing is simulated and no weights are read. What the description leaves out is said, and
    whether simulated devices have kernels for all of its layers. With a data type or a quantiser
    it is shown as simulated devices serve it so.
    """
    from nexusbench.cli._model_screen import show_model
    from nexusbench.models.precision import Precision

    asked = Precision(dtype, quantization, kv_cache_dtype)
    show_model(model, asked, as_json=json)


@app.callback()
def _group() -> None:
    """Look into model descriptions."""
