"""Replay a recorded run on a simulated device and set what was measured beside it."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.experiments.fidelity.recorded_pool import simulated_blocks
from nexusbench.experiments.fidelity.recording import KV_USE, FloatArray, ServerRecording
from nexusbench.metrics.run_events import RunEvents
from nexusbench.physics.host import load_engine
from nexusbench.results.resolved import Resolved
from nexusbench.serving.assembly import assemble
from nexusbench.serving.resolve import model_on_device
from nexusbench.serving.runner import RunResult, run, serve

STATISTICS: tuple[tuple[str, Callable[[FloatArray], float]], ...] = (
    ("mean", lambda values: float(values.mean())),
    ("p50", lambda values: float(np.percentile(values, 50))),
    ("p99", lambda values: float(np.percentile(values, 99))),
)


class Comparison(msgspec.Struct, frozen=True):
    """One number, measured and simulated (None: not recorded, or it cannot be)."""

    name: str
    statistic: str
    unit: str
    measured: float | None
    simulated: float | None

    @property
    def error(self) -> float | None:
        """Simulated over measured - 1, in per cent."""
        if not self.measured or self.simulated is None:
            return None
        return 100.0 * (self.simulated / self.measured - 1.0)


class Curves(msgspec.Struct, frozen=True):
    """Something over time, once per recorded second; ``error``: mean of its size, in ``unit``."""

    name: str
    unit: str
    measured: list[float]
    simulated: list[float]
    error: float


class ReplayValidation(msgspec.Struct):
    """Everything that ``validate run`` shows."""

    rows: list[Comparison]
    curves: list[Curves]
    config: RunConfig
    resolved: Resolved
    notes: list[str]

    @property
    def reached(self) -> dict[str, float]:
        """Errors by name (of means) and ``name.statistic``, for bounds."""
        found = {}
        for row in self.rows:
            if row.error is not None:
                found[f"{row.name}.{row.statistic}"] = row.error
                if row.statistic in ("mean", "value"):
                    found[row.name] = row.error
        return found


def replay(recording: ServerRecording, config: RunConfig) -> ReplayValidation:
    """Serve the recording's requests under ``config`` and compare.

    What the recording says was resolved wins over ``config``: KV blocks, limits, prefix caching.
    The scheduler is ``vllm``, admitting whole prompts if the recorded engine did; where that is not
    recorded, as the engine of ``config`` does by default. Raises UsageError for a device that does
    not simulate.
    """
    if not config.device.startswith("sim"):
        raise UsageError(f"validate run simulates; --device {config.device} does not")
    recording, assumed = _settled(recording, config.engine)
    known = recording.resolved
    scheduler = "vllm:whole_prompt=true" if known.whole_prompt else "vllm"
    changes = {
        name: getattr(known, name)
        for name in (
            "kv_blocks", "block_size", "prefix_caching", "max_num_seqs", "max_num_batched_tokens",
            "max_model_len", "tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size",
            "enable_expert_parallel",
            "gpu_memory_utilization",
        )
        if getattr(known, name) is not None
    }  # fmt: skip
    settled = msgspec.structs.replace(config, **changes)
    if known.kv_blocks is not None:
        blocks, said = simulated_blocks(
            known.kv_blocks, model_on_device(settled).model, settled.tensor_parallel_size,
            settled.block_size,
        )  # fmt: skip
        settled, assumed = msgspec.structs.replace(settled, kv_blocks=blocks), [*assumed, *said]
    at_engine = config.engine is not None and all(r.queued is not None for r in recording.requests)
    if at_engine:
        assumed = [*assumed, "requests count from when the engine queued them: no front end"]
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / f"{recording.folder.resolve().name}.jsonl"
        trace.write_text("".join(_trace_lines(recording)), encoding="utf-8")
        config = msgspec.structs.replace(settled, trace=str(trace), scheduler=scheduler)
        result = _at_engine(config) if at_engine else run(config)
    _check_served(recording, result)
    rows, curves = _rows(recording, result.events), _curves(recording, result)
    for curve in curves:
        if curve.name == "waiting":
            both = [queue_growth(recording, c) for c in (curve.measured, curve.simulated)]
            rows.append(Comparison("queue_growth", "value", "", both[0], both[1]))
    return ReplayValidation(
        rows,
        curves,
        config,
        result.resolved,
        [*assumed, *_notes(recording)],
    )


def _at_engine(config: RunConfig) -> RunResult:
    """A run without the front end of the engine that ``config`` names: requests are at the
    scheduler when they come.
    """
    assembly = assemble(config)
    try:
        host = assembly.device.host
        assert host is not None  # of the engine that is named
        assembly.device.host = msgspec.structs.replace(
            host, request_us=0.0, prompt_token_us=0.0, reply_us=0.0, stream_us=0.0
        )
        return serve(assembly)
    finally:
        assembly.device.close()


def _settled(recording: ServerRecording, engine: str | None) -> tuple[ServerRecording, list[str]]:
    """``recording`` with what it does not say of how its engine schedules, and a note on that."""
    known = recording.resolved
    if engine is None or known.asynchronous is not None:
        return recording, []
    host, changes = load_engine(engine), {}
    changes["asynchronous"] = host.asynchronous
    if known.whole_prompt is None:
        changes["whole_prompt"] = "whole_prompt=true" in host.scheduler
    resolved = msgspec.structs.replace(known, **changes)
    note = f"the recording does not say how its engine schedules: as {host.name} does by default"
    return msgspec.structs.replace(recording, resolved=resolved), [note]


def _check_served(recording: ServerRecording, result: RunResult) -> None:
    """Numbers of runs are compared, so all of the run must have been served."""
    served, count = int(result.events.finished.sum()), len(recording.requests)
    if served < count:
        raise UsageError(
            f"{count - served} of the {count} recorded requests cannot be served here: they exceed "
            "the KV pool or the longest context. Give the device and the model that were recorded"
        )


def _trace_lines(recording: ServerRecording) -> list[str]:
    return [
        json.dumps(
            {
                "timestamp": r.arrival * 1e3,
                "input_length": r.prompt_tokens,
                "output_length": r.output_tokens,
            }
        )
        + "\n"
        for r in recording.requests
    ]


def _rows(recording: ServerRecording, events: RunEvents) -> list[Comparison]:
    requests = recording.requests
    tokens = np.array([r.output_tokens for r in requests], dtype=np.float64)
    first = np.array([r.first for r in requests])
    last = np.array([r.last for r in requests])
    begun = np.array([r.queued if r.queued is not None else np.nan for r in requests])
    # Of a run that is recorded in part nothing is scored that the rest would change.
    makespan = float(last.max() - begun.min()) if np.isfinite(begun).all() else None
    simulated = events.makespan / 1e9
    rows = [
        Comparison("makespan", "value", "s", makespan, simulated),
        Comparison(
            "output_throughput", "value", "tok/s",
            float(tokens.sum()) / makespan if makespan else None,
            float(tokens.sum()) / simulated,
        ),
        Comparison(
            "request_throughput", "value", "req/s",
            len(tokens) / makespan if makespan else None, len(tokens) / simulated,
        ),
    ]  # fmt: skip
    several = tokens > 1
    ours = (events.last_token - events.first_token) / 1e6
    rows += _statistics(
        "tpot", "ms",
        ((last - first) * 1e3 / np.maximum(tokens - 1, 1))[several],
        (ours / np.maximum(tokens - 1, 1))[several],
    )  # fmt: skip
    rows += _gaps(recording, events, float((last - first).sum() * 1e3), float(several @ tokens))
    scheduled = np.array([r.scheduled if r.scheduled is not None else np.nan for r in requests])
    stamped = scheduled  # of which step, hangs on how steps were scheduled
    if recording.resolved.asynchronous is None:
        stamped = np.full(len(requests), np.nan)
    rows += _statistics(
        "scheduled_to_first_token", "ms", (first - stamped) * 1e3,
        (events.first_token - _scheduled(recording, events)) / 1e6,
    )  # fmt: skip
    rows += _statistics("ttft", "ms", (first - begun) * 1e3, _ttft(events))
    waited = float((first - begun).sum())
    queued = float((stamped - begun).sum()) / waited if waited else math.nan
    share = float((events.first_admitted - events.arrival).sum() / _ttft(events).sum() / 1e6)
    rows.append(Comparison("queueing_share_of_ttft", "mean", "", _finite(queued), share))
    rows.append(
        Comparison("preemptions", "value", "", None, float(len(events.tables["preempted"]["time"])))
    )
    return rows


def _ttft(events: RunEvents) -> FloatArray:
    found: FloatArray = (events.first_token - events.arrival) / 1e6
    return found


def _gaps(
    recording: ServerRecording, events: RunEvents, total_ms: float, tokens: float
) -> list[Comparison]:
    """TBT: every gap where each was recorded, else only their mean, which needs the ends alone."""
    ours = events.gaps / 1e6
    if all(r.gaps is not None for r in recording.requests):
        measured = np.array([gap for r in recording.requests for gap in r.gaps or ()]) * 1e3
        return _statistics("tbt", "ms", measured, ours)
    several = sum(r.output_tokens > 1 for r in recording.requests)
    rows = _statistics("tbt", "ms", np.array([np.nan]), ours)
    mean = total_ms / (tokens - several) if tokens > several else None
    return [msgspec.structs.replace(rows[0], measured=mean), *rows[1:]]


def _statistics(
    name: str, unit: str, measured: FloatArray, simulated: FloatArray
) -> list[Comparison]:
    known = bool(len(measured)) and bool(np.isfinite(measured).all())
    return [
        Comparison(
            name, statistic, unit, of(measured) if known else None,
            of(simulated) if len(simulated) else None,
        )
        for statistic, of in STATISTICS
    ]  # fmt: skip


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _scheduled(recording: ServerRecording, events: RunEvents) -> FloatArray:
    """When requests were scheduled (ns), in the recorded engine's sense.

    With asynchronous scheduling vLLM plans a step while the one before still runs, so a request is
    scheduled one step earlier than its batch starts: at the launch before, if there was no pause.
    """
    admitted = events.first_admitted.astype(np.float64)
    if not recording.resolved.asynchronous:
        return admitted
    submitted, chunks = events.tables["submitted"], events.tables["chunk"]
    starts, ends = submitted["time"], events.tables["step_done"]["time"]
    # The launch before on the same partition; of requests the launch of their first chunk.
    before = np.arange(len(starts))
    for code in np.unique(submitted["partition"]):
        rows = np.flatnonzero(submitted["partition"] == code)
        before[rows[1:]] = rows[:-1]
    requests, first = np.unique(chunks["request"], return_index=True)
    row = np.zeros(len(admitted), dtype=np.int64)
    row[requests] = np.searchsorted(submitted["step"], chunks["step"][first])
    before = before[row]
    done = np.argsort(events.tables["step_done"]["step"], kind="stable")
    back_to_back = (before < row) & (ends[done][before] >= starts[row])
    return np.where(back_to_back, starts[before], admitted)


def queue_growth(recording: ServerRecording, curve: list[float]) -> float:
    """By how much a queue grew from second to second after the last arrival: preemptions, at least
    those that were not admitted again within the second.
    """
    assert recording.series is not None
    late = recording.series["t"] > recording.requests[-1].arrival + 1.0
    growth = np.diff(np.array(curve)[late])
    return float(growth[growth > 0].sum())


def _curves(recording: ServerRecording, result: RunResult) -> list[Curves]:
    if recording.series is None:
        return []
    submitted = result.events.tables["submitted"]
    seconds = recording.series["t"]
    row = np.searchsorted(submitted["time"], seconds * 1e9, side="right") - 1
    late = seconds * 1e9 > result.events.window[1]
    made = []
    for name, unit, ours in (
        ("running", "requests", submitted["running"]),
        ("waiting", "requests", submitted["waiting"]),
        (
            KV_USE,
            "% of blocks",
            100.0 * submitted["kv_used"] / result.events.facts.kv_blocks,
        ),
    ):
        values = np.where(late | (row < 0), 0.0, ours[np.maximum(row, 0)])
        measured = recording.series[name]
        if name == KV_USE and not recording.kv_use_recorded:
            continue
        error = float(np.abs(values - measured).mean())
        made.append(Curves(name, unit, measured.tolist(), values.tolist(), error))
    return made


def _notes(recording: ServerRecording) -> list[str]:
    known, notes = recording.resolved, list(recording.resolved.notes)
    if known.asynchronous is None:
        notes.append(
            "the recording does not say whether steps were scheduled while others ran "
            "(async_scheduling): scheduled to first token is not scored"
        )
    if known.asynchronous:
        notes.append(
            "recorded with asynchronous scheduling: requests count as scheduled one step before "
            "their batch starts, in the simulation too"
        )
    if known.kv_blocks is None:
        notes.append("the recording does not say how many KV blocks there were")
    if recording.series is not None and not recording.kv_use_recorded:
        notes.append(f"{KV_USE} is 0 throughout: the recorder did not read it, it is not compared")
    notes.append(
        "queue_growth: what the queue grew by per second after the last arrival; preemptions, at "
        "least those not admitted again within the second, since no recording counts them"
    )
    notes.append("TTFT is mostly queueing where requests wait long: it scores throughput")
    return notes
