"""Flags of devices that compute tokens, one alias each."""

from __future__ import annotations

from typing import Annotated

import typer

from nexusbench.cli._flags import one_of, share

_TOKENS = "Real tokens (--device cpu, cuda)"

LoadFormat = Annotated[
    str,
    typer.Option(
        callback=one_of("auto", "safetensors", "dummy"),
        metavar="FORMAT",
        rich_help_panel=_TOKENS,
        help="Weights from the model's folder (safetensors) or random by seed (dummy); auto is "
        "dummy for the models tiny and small.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        rich_help_panel=_TOKENS,
        show_default="the model's",
        help="float32, bfloat16 or float16: what weights are converted to and computed in.",
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        min=0,
        max=100,
        metavar="T",
        rich_help_panel=_TOKENS,
        help="0 takes the likeliest token; above, tokens are drawn by --seed.",
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        callback=share,
        metavar="SHARE",
        rich_help_panel=_TOKENS,
        help="Draw from the likeliest tokens that have this probability together.",
    ),
]
StopAtEos = Annotated[
    bool,
    typer.Option(
        "--stop-at-eos",
        rich_help_panel=_TOKENS,
        help="End at the model's end token; else the trace's output lengths decide.",
    ),
]
Graphs = Annotated[
    bool,
    typer.Option(
        "--graphs/--no-graphs",
        rich_help_panel=_TOKENS,
        help="Decode by CUDA graphs (--device cuda only).",
    ),
]
