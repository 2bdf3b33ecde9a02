"""Turns the options of ``serve-trace`` into its runs, checked before the first one starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import typer
from msgspec.structs import replace

from nexusbench.cli._flags import STATISTIC_BOUND
from nexusbench.core.config import EndpointConfig, RunConfig, TrafficConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.options import declared
from nexusbench.core.registry import did_you_mean, parse_options, split_spec
from nexusbench.costs.base import cost_models
from nexusbench.metrics.groups import GROUPINGS
from nexusbench.metrics.run_events import check_slo
from nexusbench.partitioners.base import partitioners
from nexusbench.schedulers.base import schedulers
from nexusbench.serving.opening import check_runs
from nexusbench.workloads.transform import parse_window

LABEL = "endpoint"


class RunJob(msgspec.Struct, frozen=True):
    """One run: ``label`` heads its column, ``title`` names it in progress and errors."""

    label: str
    title: str
    config: RunConfig | EndpointConfig


class AskedRuns(msgspec.Struct, frozen=True):
    """The options of ``serve-trace`` that decide its runs: ``server`` is None without --endpoint;
    ``schedulers``, ``partitioners`` and ``goodput`` are as typed; ``config.seed`` is the first of
    ``seeds`` seeds.
    """

    config: RunConfig
    server: EndpointConfig | None
    schedulers: list[str]
    partitioners: list[str]
    goodput: list[str]
    seeds: int


def plan_jobs(asked: AskedRuns, context: typer.Context) -> list[RunJob]:
    """The runs, of the engine or against a server. ``context`` tells which options were given.
    Raises UsageError naming an option that cannot be used.
    """
    engine, server = declared(RunConfig), declared(EndpointConfig)
    if asked.server is not None:
        for name, field in engine.items():
            if name not in server and _given(context, name):
                why = field.option.no_server
                raise UsageError(f"{field.flag} means nothing with --endpoint: {why}")
        return _endpoint_jobs(asked, asked.server, model=_given(context, "model"))
    for name, field in server.items():
        if name not in engine and _given(context, name):
            raise UsageError(f"{field.flag} needs a server: --endpoint URL")
    jobs = _engine_jobs(asked)
    check_runs(job.config for job in jobs if isinstance(job.config, RunConfig))
    return jobs


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and not source.name.startswith("DEFAULT")


def _engine_jobs(asked: AskedRuns) -> list[RunJob]:
    """One run per scheduler and seed."""
    named = split_policies(asked.schedulers, "--scheduler")
    pairs = pair_policies(named, split_policies(asked.partitioners, "--partitioner"))
    check_together(asked.config)
    check_policies(pairs, asked.config.cost_model)
    base = replace(asked.config, goodput=parse_goodput(asked.goodput))
    configs = [
        (label, replace(base, scheduler=scheduler, partitioner=partitioner))
        for label, (scheduler, partitioner) in zip(policy_labels(pairs), pairs, strict=True)
    ]
    return _seeded(configs, asked.seeds)


def _endpoint_jobs(asked: AskedRuns, server: EndpointConfig, *, model: bool) -> list[RunJob]:
    """One replay per seed; the default of --model is the engine's."""
    check_together(server)
    goodput, named = parse_goodput(asked.goodput), asked.config.model if model else None
    return _seeded([(LABEL, replace(server, model=named, goodput=goodput))], asked.seeds)


def _seeded(configs: Sequence[tuple[str, RunConfig | EndpointConfig]], seeds: int) -> list[RunJob]:
    """One job for each config and seed; its title holds its number if there are several."""
    many = len(configs) * seeds
    jobs: list[RunJob] = []
    for label, config in configs:
        for seed in range(config.seed, config.seed + seeds):
            title = label + (f", seed {seed}" if seeds > 1 else "")
            title += f" ({len(jobs) + 1} of {many})" if many > 1 else ""
            jobs.append(RunJob(label, title, replace(config, seed=seed)))
    return jobs


def policy_labels(pairs: Sequence[tuple[str, str | None]]) -> list[str]:
    """The schedulers as typed, with partitioners if these differ; a repeated label is numbered."""
    several = len({partitioner for _, partitioner in pairs}) > 1
    labels: list[str] = []
    for scheduler, partitioner in pairs:
        label = f"{scheduler} + {partitioner}" if several and partitioner else scheduler
        again = labels.count(label)
        labels.append(f"{label} #{again + 1}" if again else label)
    return labels


def check_together(config: RunConfig | EndpointConfig) -> None:
    """Check options that exclude or need each other. Raises UsageError naming one."""
    if isinstance(config, RunConfig):
        if len(split_policies([config.cost_model or "-"], "--cost-model")) > 1:
            raise UsageError(
                f"--cost-model {config.cost_model}: a run asks one belief. nexusbench regret "
                "compares several on one trace"
            )
        if config.force_profile and config.profile is None:
            raise UsageError("--force-profile goes with --profile, which is not given")
    if config.window is not None:
        try:
            parse_window(config.window)
        except UsageError as error:
            raise UsageError(f"--window: {error}") from None
    if config.burstiness is not None and config.request_rate is None:
        raise UsageError("--burstiness redraws arrivals and needs --rate")
    if config.concurrency is not None:
        for name in ("request_rate", "speed", "quantize_arrivals"):
            if getattr(config, name) is not None:
                flag = declared(TrafficConfig)[name].flag
                raise UsageError(
                    f"--concurrency gives up the timestamps that {flag} changes. Choose one"
                )


def parse_goodput(values: Sequence[str]) -> dict[str, float]:
    """Bounds in ms from values such as ``ttft:500,tbt:50``. Raises UsageError."""
    bounds: dict[str, float] = {}
    for text in (piece for value in values for piece in value.replace(",", " ").split()):
        key, colon, number = text.partition(":")
        try:
            bound = float(number)
        except ValueError:
            colon, bound = "", 0.0
        if not colon and STATISTIC_BOUND.fullmatch(text):
            raise UsageError(
                f"--goodput '{text}' bounds a statistic of a run, which nexusbench capacity and "
                "advise judge by. Here each request is judged: write KEY:MS, as in ttft:500 tbt:50"
            )
        if not colon:
            raise UsageError(
                f"--goodput '{text}' is not KEY:MS. Write milliseconds, as in ttft:500 tbt:50"
            )
        if key in bounds:
            raise UsageError(f"--goodput: '{key}' is given twice")
        bounds[key] = bound
    try:
        return check_slo(bounds)
    except UsageError as error:
        raise UsageError(f"--goodput: {error}") from None


def parse_by(values: Sequence[str]) -> tuple[str, ...]:
    """Names of groupings from values such as ``prompt-length,tenant``. Raises UsageError."""
    names = [name.strip() for value in values for name in value.split(",")]
    for name in names:
        if name not in GROUPINGS:
            raise UsageError(f"--by '{name}' is unknown. {did_you_mean(name, list(GROUPINGS))}")
    return tuple(dict.fromkeys(names))


def split_policies(values: list[str], flag: str) -> list[str]:
    """Policy specs from one or more values of ``flag``.

    A comma separates policies, unless ``key=`` follows: then it continues the options of the
    previous policy. Raises UsageError that names the flag.
    """
    specs: list[str] = []
    for value in values:
        begun = False
        for piece in value.split(","):
            piece = piece.strip()
            key, equals, _ = piece.partition("=")
            if equals and ":" not in key:
                if not begun:
                    raise UsageError(f"{flag} {value}: option '{piece}' follows no name")
                specs[-1] += ("," if ":" in specs[-1] else ":") + piece
            elif not piece or piece.startswith(":"):
                raise UsageError(f"{flag} '{value}' has an empty name. Write {flag} a,b,c")
            else:
                specs.append(piece.removesuffix(":"))
                begun = True
    return specs


def pair_policies(schedulers: list[str], partitioners: list[str]) -> list[tuple[str, str | None]]:
    """(scheduler, partitioner): no partitioner, one for all, or one each. Raises UsageError."""
    if len(partitioners) <= 1:
        partitioner = partitioners[0] if partitioners else None
        return [(scheduler, partitioner) for scheduler in schedulers]
    if len(partitioners) != len(schedulers):
        raise UsageError(
            f"--partitioner: {len(partitioners)} partitioners for {len(schedulers)} schedulers. "
            "Give one for all, or one for each in the same order"
        )
    return list(zip(schedulers, partitioners, strict=True))


def check_policies(pairs: list[tuple[str, str | None]], cost_model: str | None) -> None:
    """Check names, options and pairs of policies before the first run.

    Raises UsageError or InputError that names the policy.
    """
    for scheduler, partitioner in pairs:
        policy = schedulers.create(scheduler)
        name, options = split_spec(partitioner or policy.default_partitioner)
        cls = partitioners.load(name)
        parse_options(cls.Options, options, f"partitioner '{name}'")
        if policy.partitions not in cls.serves:
            raise UsageError(
                f"--partitioner {name} cannot serve scheduler '{policy.name}', which runs on "
                f"partition {' and '.join(policy.partitions)}. {_hint(pairs, partitioners, policy)}"
            )
    if cost_model is None:
        return
    name, options = split_spec(cost_model)
    parse_options(cost_models.load(name).Options, options, f"cost model '{name}'")


def _hint(pairs: list[tuple[str, str | None]], partitioners: Any, policy: Any) -> str:
    """Names the partitioners that serve the policy's partitions."""
    fitting = [
        name for name in partitioners.names() if policy.partitions in partitioners.load(name).serves
    ]
    hint = f"It can have: {', '.join(fitting)}"
    if len(pairs) > 1:
        hint += "; give one --partitioner for each scheduler, in the same order"
    return hint
