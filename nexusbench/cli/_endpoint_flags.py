"""The flags of ``serve-trace`` for a server behind a URL, in a panel of their own."""

from __future__ import annotations

from typing import Annotated

import typer

from nexusbench.cli._flags import one_of, positive

_PANEL = "Endpoint"


def _optional_api(value: str | None) -> str | None:
    return None if value is None else one_of("completions", "chat")(value)


Endpoint = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        rich_help_panel=_PANEL,
        help="Replay against this OpenAI-compatible server, as in http://127.0.0.1:8000/v1, in "
        "real time. --model is then its name for the model.",
    ),
]
Api = Annotated[
    str | None,
    typer.Option(
        callback=_optional_api,
        metavar="completions|chat",
        rich_help_panel=_PANEL,
        show_default="completions if it has it",
        help="Which API is called.",
    ),
]
PromptForm = Annotated[
    str,
    typer.Option(
        "--prompt",
        callback=one_of("auto", "ids", "text"),
        metavar="auto|ids|text",
        rich_help_panel=_PANEL,
        help="Prompts as token ids, which have the exact length, or as text; auto tries ids.",
    ),
]
VocabSize = Annotated[
    int,
    typer.Option(
        min=8, metavar="N", rich_help_panel=_PANEL, help="Token ids are drawn below this."
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_PANEL,
        show_default="OPENAI_API_KEY",
        help="The environment variable that holds the key; the key itself is never stored.",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        callback=positive,
        metavar="SECONDS",
        rich_help_panel=_PANEL,
        help="A request whose answer has not ended after so long has failed.",
    ),
]
