"""``nexusbench gate``: runs against a committed baseline, for CI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags

app = typer.Typer(no_args_is_help=True, help="Pass or fail runs by a baseline, for CI.")
baseline_app = typer.Typer(no_args_is_help=True, help="Make and update baselines.")
app.add_typer(baseline_app, name="baseline")

Runs = Annotated[
    list[str] | None,
    typer.Argument(metavar="RUN", show_default=False, help="Run folders, or ids in --results."),
]
Spec = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml", show_default=False, help="Make the runs of this spec, instead of RUN."
    ),
]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="RULE",
        show_default="the spec's, or a handful",
        help="METRIC[.STATISTIC]:PERCENT%[:AMOUNT]: how far a metric may worsen, by this share "
        "or by this amount, as in ttft.p99:5%:2ms (repeatable).",
    ),
]
Keep = Annotated[
    Path | None,
    typer.Option(
        "--keep", parser=flags.folder, metavar="DIR", show_default="nowhere",
        help="Where runs that the gate makes are kept.",
    ),
]  # fmt: skip


@baseline_app.command("save")
def save(
    runs: Runs = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", show_default="the spec's", help="What to write."
        ),
    ] = None,
    spec: Spec = None,
    rule: Rules = None,
    update: Annotated[
        bool, typer.Option("--update", help="Replace in FILE what was run, and say what changes.")
    ] = False,
    append: Annotated[
        bool,
        typer.Option("--append", help="Add the runs to those in FILE: a baseline of several days."),
    ] = False,
    results: flags.Results = Path("results"),
    keep: Keep = None,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Keep the numbers of runs as a baseline, every run's value of every metric.

    nexusbench gate baseline save --spec gate.toml -o baseline.json

    Without rules all metrics that have a better side are kept.
    """
    from nexusbench.cli._gating import GateSource, save_file

    source = GateSource(runs or [], spec, results, keep, no_progress)
    save_file(source, output, rule, update=update, append=append, as_json=json)


@app.command("check")
def check(
    runs: Runs = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="the spec's", help="What to compare with."),
    ] = None,
    spec: Spec = None,
    rule: Rules = None,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm", help="Run again what is beyond its rule; only what is so twice can fail."
        ),
    ] = False,
    alpha: Annotated[
        float | None,
        typer.Option(
            callback=flags.positive,
            metavar="SHARE",
            show_default="0.008",
            help="Chance of any false alarm over all measured metrics.",
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, help="The report as a page.")
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(metavar="FILE.xml", show_default=False, help="A test case per metric."),
    ] = None,
    action_benchmark: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", show_default=False, help="The two files of github-action-benchmark."
        ),
    ] = None,
    results: flags.Results = Path("results"),
    keep: Keep = None,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
) -> None:
    """Compare runs with a baseline, a verdict for every metric.

    nexusbench gate check --spec gate.toml --baseline baseline.json

    Deterministic (simulated) metrics are compared exactly; measured ones fail only if they are
    worse by more than the rule, and by more than chance. Every rule implies that as many of the
    requests offered finished; a rule on finished, as finished:5%, says how many may be missing. In
    GitHub Actions the report is added to the step's summary.

    Exit codes: 0 pass or warn, 3 a regression, 4 inconclusive, 5 no usable baseline.
    """
    from nexusbench.cli._gating import GateSource, Outputs, check_runs

    source = GateSource(runs or [], spec, results, keep, no_progress)
    outputs = Outputs(json, markdown, junit, action_benchmark)
    check_runs(source, baseline, rule, outputs, confirm=confirm, alpha=alpha)
