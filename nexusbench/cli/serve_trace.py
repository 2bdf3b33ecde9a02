"""``nexusbench serve-trace``: replay a trace under one or more schedulers, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nexusbench.cli import _flags as flags
from nexusbench.core.config import EndpointConfig, RunConfig


@flags.asking
def serve_trace(
    context: typer.Context,
    *,
    config: Annotated[RunConfig, flags.Fields(RunConfig)],
    server: Annotated[EndpointConfig | None, flags.Fields(EndpointConfig)],
    scheduler: flags.Schedulers = ["nexus"],  # noqa: B006 (Typer reads it, nothing changes it)
    partitioner: flags.Partitioners = None,
    goodput: flags.Goodput = None,
    by: flags.By = None,
    seeds: flags.Seeds = 1,
    results: flags.Results = Path("results"),
    no_save: flags.NoSave = False,
    timeline: flags.Timeline = None,
    json: flags.Json = False,
    no_progress: flags.NoProgress = False,
    formulas: flags.Formulas = False,
) -> None:
    """Replay TRACE under one or more schedulers and show who wins, and why.

    nexusbench serve-trace workloads/mixed.jsonl --scheduler nexus,vllm,sglang --goodput ttft:500
    """
    from nexusbench.cli._jobs import AskedRuns, parse_by, plan_jobs
    from nexusbench.cli._session import Output, serve

    asked = AskedRuns(config, server, scheduler, partitioner or [], goodput or [], seeds)
    output = Output(
        results=None if no_save else results, as_json=json, quiet=no_progress, formulas=formulas,
        by=parse_by(by or []), timeline=timeline,
    )  # fmt: skip
    serve(plan_jobs(asked, context), output)
