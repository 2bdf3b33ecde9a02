"""Measured closed-loop points replayed: on several processes, kept by content, resumed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError
from nexusbench.experiments.fidelity.deployment import Refused, requests_of
from nexusbench.experiments.fidelity.serving_configs import (
    ServingPlan,
    config_of,
    without_warnings,
)
from nexusbench.experiments.fidelity.serving_table import ServingPoint
from nexusbench.experiments.keys import file_sha256, run_key
from nexusbench.experiments.pool import Lost, run_all
from nexusbench.experiments.store import Store
from nexusbench.metrics.run_events import RunEvents
from nexusbench.serving.runner import run

_SCHEMA = 1


class ServingRun(msgspec.Struct, frozen=True, kw_only=True):
    """A replayed point: means in ms over all requests, and without those of the first and the last
    round (``steady``); ``error`` says why there are none.
    """

    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    steady_ttft_ms: float = 0.0
    steady_tpot_ms: float = 0.0
    preemptions: int = 0
    digest: str = ""
    error: str = ""
    schema: int = _SCHEMA


class ServingResult(msgspec.Struct, frozen=True, kw_only=True):
    """A point beside its replay, or why there is none (``refused``)."""

    point: ServingPoint
    config: RunConfig | None = None
    run: ServingRun | None = None
    refused: str = ""


class _Task(msgspec.Struct, frozen=True):
    config: RunConfig
    users: int


def replay_points(
    points: Sequence[ServingPoint],
    plan: ServingPlan,
    folder: Path,
    *,
    jobs: int,
    fresh: bool = False,
    refused: Mapping[int, str] = MappingProxyType({}),
    step: Callable[[int, int], None] = lambda done, todo: None,
) -> list[ServingResult]:
    """Replay every point that can be, in the order of ``points``; equal ones once.

    ``refused`` says by line why a point is not to be. ``folder`` keeps traces and results: what is
    there is not run again. ``step`` is called with the runs that are done and those to do. Raises
    Interrupted after Ctrl-C; what was finished is kept.
    """
    store = Store(folder, ".json", fresh=fresh)
    configs: list[RunConfig | None] = []
    refusals: list[str] = []
    for point in points:
        try:
            if point.line in refused:
                raise Refused(refused[point.line])
            config = config_of(point, plan)
            trace = trace_of(point, plan, folder)
            configs.append(msgspec.structs.replace(config, trace=str(trace)))
            refusals.append("")
        except Refused as reason:
            configs.append(None)
            refusals.append(str(reason))
    keys = ["" if config is None else _key(config) for config in configs]
    found = {key: _kept(store, key) for key in dict.fromkeys(keys) if key}
    todo = {
        key: _Task(config, requests_of(point))
        for key, config, point in zip(keys, configs, points, strict=True)
        if config is not None and found[key] is None
    }
    step(0, len(todo))
    names = list(todo)
    for done, (index, result) in enumerate(run_all(_run, list(todo.values()), jobs), start=1):
        made = ServingRun(error=result.reason) if isinstance(result, Lost) else result
        found[names[index]] = made
        if not made.error:
            store.put(names[index], msgspec.json.encode(made))
        step(done, len(todo))
    return [
        _result(point, config, found[key] if key else None, reason)
        for point, config, key, reason in zip(points, configs, keys, refusals, strict=True)
    ]


def _result(
    point: ServingPoint, config: RunConfig | None, made: ServingRun | None, refused: str
) -> ServingResult:
    """A run that failed is a point that cannot be simulated."""
    if made is not None and made.error:
        refused, made = f"{point.name}: {made.error}", None
    return ServingResult(point=point, config=config, run=made, refused=refused)


def _key(config: RunConfig) -> str:
    """The key of a run; an engine's own file counts by content."""
    engine = Path(config.engine or "")
    if engine.suffix.lower() == ".toml":
        config = msgspec.structs.replace(config, engine=file_sha256(engine))
    return run_key(config)


def _kept(store: Store, key: str) -> ServingRun | None:
    content = store.get(key)
    if content is None:
        return None
    try:
        kept = msgspec.json.decode(content, type=ServingRun)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # of another version, or damaged: run it again
    return kept if kept.schema == _SCHEMA else None


def trace_of(point: ServingPoint, plan: ServingPlan, folder: Path) -> Path:
    """The requests of a point, as a file; a closed loop gives up their timestamps."""
    from nexusbench.workloads.source import write_atomic

    count, ratio = requests_of(point) * plan.rounds, plan.range_of(point)
    drawn = "" if ratio == 1.0 else f"-{ratio:g}-{plan.seed}"
    path = folder / "traces" / f"{point.isl}-{point.osl}-{count}{drawn}.jsonl"
    draw = random.Random(plan.seed)
    lines = []
    for _ in range(count):
        lengths = [
            size if ratio == 1.0 else max(least, draw.randint(int(size * ratio), size))
            for size, least in ((point.isl, 1), (point.osl, 2))
        ]
        row = {"timestamp": 0, "input_length": lengths[0], "output_length": lengths[1]}
        lines.append(json.dumps(row) + "\n")
    text = "".join(lines).encode()
    try:
        if path.read_bytes() == text:
            return path
    except OSError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    return path


def _run(task: _Task) -> ServingRun:
    """Run one point. Raises nothing but Interrupted and KeyboardInterrupt."""
    try:
        with without_warnings():
            result = run(task.config)
    except (Interrupted, KeyboardInterrupt):
        raise
    except NexusbenchError as error:
        return ServingRun(error=str(error).split("\n")[0])
    events = result.events
    if not bool(events.finished.all()):
        return ServingRun(error="not all of its requests can be served: they exceed the KV pool")
    return _measured(events, task.users, result.event_digest)


def _measured(events: RunEvents, users: int, digest: str) -> ServingRun:
    """Means over all requests, and over those between the first and the last round."""
    ttft = (events.first_token - events.arrival) / 1e6
    tokens = np.asarray(events.requests["output_tokens"], dtype=np.float64)
    tpot = (events.last_token - events.first_token) / 1e6 / np.maximum(tokens - 1.0, 1.0)
    middle = slice(users, -users) if len(ttft) > 2 * users else slice(None)
    return ServingRun(
        ttft_ms=float(ttft.mean()), tpot_ms=float(tpot.mean()),
        steady_ttft_ms=float(ttft[middle].mean()), steady_tpot_ms=float(tpot[middle].mean()),
        preemptions=len(events.tables["preempted"]["time"]), digest=digest,
    )  # fmt: skip
