"""``nexusbench reproduce``: a paper's evaluation again, and for each of its claims a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

Paper = Annotated[
    str,
    typer.Argument(
        metavar="PAPER",
        show_default=False,
        help="Whose experiments: nexus, sarathi, semi-pd, muxwise, bullet, duetserve, adrenaline, "
        "openinfer, or another folder in --specs.",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME,...",
        help="Only these figures or experiments, as fig9,fig10.",
        show_default="all",
    ),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="Fewer requests, rates and draws; says what was cut.")
]
Specs = Annotated[Path, typer.Option(metavar="DIR", help="Where the folders with experiments lie.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="DIR", show_default="results/PAPER-paper, with --quick ...-quick",
        help="Where results and pictures go; what is there of other figures stays.",
    ),
]  # fmt: skip


def reproduce(
    paper: Paper,
    only: Only = None,
    quick: Quick = False,
    specs: Specs = Path("workloads"),
    output: Out = None,
    jobs: flags.Jobs = None,
    cache: flags.Cache = Path("results/cells"),
    fresh: flags.Fresh = False,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Run a paper's experiments on simulated GPUs and judge its claims: one table "claim, paper,
    ours, verdict, why".

    nexusbench reproduce nexus --quick

    Each run is kept as it ends: call again after a kill. See docs/reproduction.md.
    """
    from nexusbench.cli._reproducing import AskedPaper, show_reproduction

    asked = AskedPaper(
        paper=paper, only=tuple(only or ()), quick=quick, specs=specs, output=output, jobs=jobs,
        cache=cache, fresh=fresh,
    )  # fmt: skip
    show_reproduction(asked, as_json=json, quiet=no_progress)
