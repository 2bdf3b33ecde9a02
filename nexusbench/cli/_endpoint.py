"""What ``serve-trace --endpoint`` asks for: its jobs, and the flags that mean nothing to it."""

from __future__ import annotations

from typing import Any

import typer

from nexusbench.cli._session import Job, check_texts, parse_goodput
from nexusbench.core.config import EndpointConfig
from nexusbench.core.errors import UsageError

LABEL = "endpoint"
_SERVER = "the server decides that for itself"
# Flags of the engine, by parameter -> why a server behind a URL has no use for them.
_OF_ENGINE = {
    **dict.fromkeys(
        (
            "scheduler", "partitioner", "cost_model", "profile", "force_profile", "recalibrate",
            "gpu_memory_utilization", "kv_blocks", "swap_space", "block_size", "prefix_caching",
            "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size", "load_format",
            "dtype", "graphs",
        ),
        _SERVER,
    ),
    "device": "the server runs where it runs",
    "kernel_table": "nothing is simulated",
    "max_tokens": "it is told the length of each request",
    "stop_at_eos": "it is told the length of each request",
    "temperature": "requests ask for temperature 0",
    "top_p": "requests ask for temperature 0",
}  # fmt: skip
_OF_ENDPOINT = ("api", "prompt", "vocab_size", "api_key_env", "timeout_s")


def plan_endpoint_jobs(context: typer.Context) -> list[Job]:
    """One replay per seed. Raises UsageError naming a flag that has no meaning here."""
    for name, why in _OF_ENGINE.items():
        if _given(context, name):
            raise UsageError(f"{_flag(context, name)} means nothing with --endpoint: {why}")
    flags = context.params
    check_texts(flags)
    names = set(EndpointConfig.__struct_fields__) & set(flags)
    fields: dict[str, Any] = {name: flags[name] for name in names}
    fields |= {"trace": str(flags["trace"]), "goodput": parse_goodput(flags["goodput"] or [])}
    if not _given(context, "model"):
        fields["model"] = None  # the default is the engine's
    jobs = []
    for number in range(flags["seeds"]):
        seed = flags["seed"] + number
        title = LABEL
        if flags["seeds"] > 1:
            title += f", seed {seed} ({number + 1} of {flags['seeds']})"
        jobs.append(Job(LABEL, title, EndpointConfig(**{**fields, "seed": seed})))
    return jobs


def refuse_endpoint_flags(context: typer.Context) -> None:
    """Without --endpoint its flags would be ignored silently. Raises UsageError naming one."""
    for name in _OF_ENDPOINT:
        if _given(context, name):
            raise UsageError(f"{_flag(context, name)} needs a server: --endpoint URL")


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and not source.name.startswith("DEFAULT")


def _flag(context: typer.Context, name: str) -> str:
    """As it is written on the command line."""
    found = next(option for option in context.command.params if option.name == name)
    return found.opts[0]
