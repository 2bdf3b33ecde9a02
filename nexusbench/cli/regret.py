"""``nexusbench regret``: what a policy's decisions cost, judged by the simulated truth."""

from __future__ import annotations

from typing import Annotated

import typer

from nexusbench.cli import _flags as flags
from nexusbench.core.config import RunConfig

Beliefs = Annotated[
    list[str] | None,
    typer.Option(
        "--cost-model",
        metavar="NAME[:KEY=VALUE,...]",
        show_default="roofline unfitted; with --profile also all it has fits of",
        help="Beliefs to compare, as a,b,c or by repeating the flag.",
    ),
]
Sizers = Annotated[
    list[str] | None,
    typer.Option(
        "--partitioner",
        metavar="NAME[:KEY=VALUE,...]",
        show_default="nexus, and fixed to compare with",
        help="Those that ask a belief run once with each.",
    ),
]
Sample = Annotated[
    int, typer.Option(min=1, metavar="N", help="Decisions of each run that are judged.")
]


@flags.asking
def regret(
    *,
    config: Annotated[
        RunConfig,
        flags.Fields(
            RunConfig,
            "trace",
            "device",
            "model",
            "profile",
            "force_profile",
            "request_rate",
            "limit",
            "seed",
        ),
    ],
    cost_model: Beliefs = None,
    partitioner: Sizers = None,
    sample: Sample = 300,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Judge decisions by the truth: how far from the best legal split, how often out of bounds.

    nexusbench regret workloads/mixed.jsonl --device sim:l20 --profile PROFILE

    On a simulated device only. Each belief serves TRACE under nexus; the oracle asks the truth.
    """
    from nexusbench.cli._regretting import show_regret

    show_regret(
        config, cost_model or [], partitioner or [], sample, as_json=json, quiet=no_progress
    )
