"""``nexusbench check-model``: does the decoder compute what transformers computes?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nexusbench.cli import _flags as flags

if TYPE_CHECKING:
    from nexusbench.models.agreement import Agreement
    from nexusbench.models.architecture import DecoderConfig

EXIT_DIFFERS = 3
JSON_SCHEMA = 1
_SHOWN = 5


def check_model(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="A folder with config.json and safetensors.", show_default=False
        ),
    ],
    dtype: Annotated[
        str,
        typer.Option("--dtype", metavar="DTYPE", help="Compute in float32, bfloat16 or float16."),
    ] = "float32",
    prompts: Annotated[
        str, typer.Option("--prompts", metavar="N,N,...", help="Lengths of the random prompts.")
    ] = "5,37,90",
    new_tokens: Annotated[
        int,
        typer.Option("--new-tokens", min=1, metavar="N", help="Greedy tokens after each prompt."),
    ] = 16,
    seed: Annotated[
        int, flags.option("seed", help="Seed of the prompts.", rich_help_panel=None)
    ] = 0,
    as_json: flags.Json = False,
) -> None:
    """Compare logits and greedy tokens with transformers, through chunked prefill and paged decode.

    nexusbench check-model models/Qwen2.5-0.5B --dtype float32

    Needs the extra 'check'. Exit code 0 if both agree up to rounding, 3 if they differ.
    """
    from nexusbench.core.errors import UsageError
    from nexusbench.models.architecture import load_decoder_config

    # Before torch is imported, which takes seconds.
    config = load_decoder_config(folder)
    try:
        lengths = [int(length) for length in prompts.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise UsageError(f"--prompts takes lengths such as 5,37,90, not '{prompts}'")

    from nexusbench.models.agreement import TOLERANCES, compare

    if dtype not in TOLERANCES:
        raise UsageError(f"--dtype takes {', '.join(TOLERANCES)}, not '{dtype}'")
    found = compare(config, dtype, lengths, new_tokens, seed)
    if as_json:
        from json import dumps, loads

        import msgspec

        document = {"schema": JSON_SCHEMA, "agrees": found.agrees, **msgspec.to_builtins(found)}
        # Through msgspec, which writes what is no number as null; then with every sign escaped.
        print(dumps(loads(msgspec.json.encode(document)), indent=2))
    else:
        _show(found)
        _say_why(config, found)
    if not found.agrees:
        raise typer.Exit(EXIT_DIFFERS)


def _say_why(config: DecoderConfig, found: Agreement) -> None:
    """What 16 bits do to experts, where that may be all that differs."""
    from nexusbench.cli._console import results_console, say
    from nexusbench.models.designs import ExpertsDesign

    experts = any(isinstance(layer.mlp, ExpertsDesign) for layer in config.layers)
    if not found.agrees and experts and found.dtype != "float32":
        say(
            results_console(),
            f"in {found.dtype} two correct programs pick other experts where scores are closer "
            "than rounding, and logits then differ by more than that: compare in float32",
        )


def _show(found: Agreement) -> None:
    from nexusbench.cli._console import counted, results_console, say

    console = results_console()
    verdict = "agrees" if found.agrees else "DIFFERS"
    console.print(f"{found.model} in {found.dtype}: {verdict} with transformers", style="bold")
    say(
        console,
        f"largest difference of a logit {found.largest_difference:.2e} (up to "
        f"{found.tolerance:.2e} is rounding; largest logit {found.largest_logit:.3g}) over "
        f"{counted(found.positions, 'position')} of {counted(len(found.prompts), 'prompt')}",
    )
    if found.empty:
        say(
            console,
            "no finite logit differs from 0: the weights are zeros, or so large that norms of them "
            "are. There is nothing to agree on",
        )
    for side in found.broken[:_SHOWN]:
        say(
            console,
            f"NaN or infinite logits: {side.side}, prompt {side.prompt}, "
            f"{counted(side.count, 'position')} from position {side.position} on",
        )
    differing = [each for each in found.disagreements if not each.tie]
    ties = len(found.disagreements) - len(differing)
    total = found.new_tokens * len(found.prompts)
    say(
        console,
        f"greedy tokens: {total - len(found.disagreements):,} of {total:,} equal, "
        f"{counted(ties, 'tie')}, {len(differing):,} different",
    )
    for each in (differing or found.disagreements)[:_SHOWN]:
        say(
            console,
            f"prompt {each.prompt}, position {each.position}: ours {each.ours}, transformers "
            f"{each.theirs}, which it prefers by {each.margin:.2e}"
            + (" (a tie)" if each.tie else ""),
            indent=2,
        )
