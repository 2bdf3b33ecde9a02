"""From the flags of ``serve-trace`` to its runs: of the engine, or of a server behind a URL."""

from __future__ import annotations

import typer

from nexusbench.cli._endpoint import plan_endpoint_jobs, refuse_endpoint_flags
from nexusbench.cli._session import Output, parse_by, plan_jobs, serve
from nexusbench.core.config import RunConfig
from nexusbench.serving.opening import check_runs


def serve_asked(context: typer.Context) -> None:
    """Do what the command line says. Raises UsageError naming the flag that cannot be."""
    # Named as the fields of configs: they are taken by name, not listed again.
    flags = context.params
    if flags["endpoint"] is not None:
        jobs = plan_endpoint_jobs(context)
    else:
        refuse_endpoint_flags(context)
        jobs = plan_jobs(flags)
        check_runs(job.config for job in jobs if isinstance(job.config, RunConfig))
    output = Output(
        results=None if flags["no_save"] else flags["results"],
        as_json=flags["json"],
        quiet=flags["no_progress"],
        formulas=flags["formulas"],
        by=parse_by(flags["by"] or []),
        timeline=flags["timeline"],
    )
    serve(jobs, output)
