"""Run a config: assemble, serve, record, summarise. The stable Python API is ``nexusbench.run``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nexusbench.core.clock import now_ns, utc_now
from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.faults import blamed
from nexusbench.core.printable import folder_name
from nexusbench.engine.engine import Engine, EngineConfig
from nexusbench.serving.assembly import Assembly, assemble
from nexusbench.serving.recorder import CHECK_STEPS, Progress, Recorder, Saver, splits_of, stop_flag

if TYPE_CHECKING:
    from nexusbench.core.events import EventLog
    from nexusbench.core.work import HostGap
    from nexusbench.endpoint.status import Status as ReplayStatus
    from nexusbench.metrics.run_events import RunEvents
    from nexusbench.results.reader import RunReader
    from nexusbench.results.store import RunWriter
    from nexusbench.serving.endpoint import Connected

# What metrics need of the facts that an assembly resolved.
RESOLVED_FACTS = (
    "slo", "warmup_ns", "gpus", "price_per_hour", "watts", "work", "pools", "homes", "device",
)  # fmt: skip
INVARIANTS = ("I1", "I2", "I3", "I4", "I5", "I7", "I10", "I11")

AnyProgress = Callable[["Engine | ReplayStatus"], object]


class RunResult(msgspec.Struct):
    """What came out of a run.

    ``summary`` is docs/metrics.md as JSON-ready values, ``event_digest`` the SHA-256 of the event
    log (equal for equal runs, I6), ``folder`` where everything was kept (None if nowhere),
    ``resolved`` what the config became on this device and model. ``fault`` says what of it could
    not be written (a full disk); the run itself came to its own end.
    """

    config: RunConfig | EndpointConfig
    summary: dict[str, Any]
    events: RunEvents
    event_digest: str
    folder: Path | None
    notes: list[str]
    resolved: dict[str, Any] = {}
    fault: str = ""

    def __repr__(self) -> str:
        """One line, whatever a run holds: its events are arrays of millions."""
        ended = self.events.num_requests
        parts = [
            type(self.config).__name__,
            f"{ended:,} requests",
            f"digest {self.event_digest[:12]}",
        ]
        parts.append(f"folder {str(self.folder)!r}" if self.folder else "not kept")
        return f"RunResult({', '.join(parts)}{', FAULT' if self.fault else ''})"


def run(
    config: RunConfig | EndpointConfig,
    *,
    results: Path | None = None,
    progress: AnyProgress | None = None,
) -> RunResult:
    """Serve ``config.trace`` and return what happened; with ``results``, keep it in a new folder
    there.

    An EndpointConfig's trace is served by somebody else's server. ``progress`` is called about ten
    times a second with the engine, or with a replay's status. Raises UsageError (or
    InputError) for what cannot be run, Interrupted after Ctrl-C, and other NexusbenchErrors for a
    run that failed; in the last two cases the folder keeps every event up to that moment and its
    manifest says why it ends.
    """
    if isinstance(config, EndpointConfig):
        try:
            from nexusbench.serving.endpoint import run_endpoint
        except ModuleNotFoundError as error:
            if error.name != "httptools":
                raise
            raise UsageError(
                "--endpoint needs httptools: pip install 'nexusbench[endpoint]'"
            ) from None
        return run_endpoint(config, results=results, progress=progress)
    assembly = assemble(config)
    try:
        return serve(assembly, results, progress)
    finally:
        assembly.device.close()


def serve(
    assembly: Assembly,
    results: Path | None = None,
    progress: Progress | None = None,
    watch: Progress | None = None,
) -> RunResult:
    """:func:`run` for objects that are assembled already; the caller closes the device.

    ``watch`` is called after every CHECK_STEPS steps, the same ones in each simulated run, and may
    raise to stop the run; :func:`events_so_far` then says what had happened.
    """
    from nexusbench.metrics.summary import summarise

    device = assembly.device
    with stop_flag(device.interrupt) as interrupted:
        # Not before: a Ctrl-C in between would leave a folder that nobody accounts for.
        writer = _open_writer(assembly, results) if results is not None else None
        saver = None
        if writer is not None and not device.spec.simulated:
            saver = Saver(writer, device.interrupt)
        # On a real clock a step takes long enough to look around after each.
        every = CHECK_STEPS if device.spec.simulated else 0
        recorder = Recorder(writer, progress, interrupted, every, watch, saver)
        engine = _begin(assembly, recorder, writer)
        recorder.show(engine)  # the first step may take long
        try:
            engine.run()
        except BaseException as error:
            blame = blamed(error, _parts(assembly))
            recorder.give_up(engine, blame or error)
            if blame is not None:
                raise blame from error
            raise
        if saver is not None:
            saver.stop()
        if progress is not None:
            progress(engine)
        decisions, digest = _decision_times(engine), engine.log.digest()
        fault = ""
        if writer is None:
            events = events_so_far(assembly, engine)
        else:
            fault = _store(writer, engine)
            events = _read_back(writer, assembly, engine)
            # A million requests are a third of a GiB: let them go before metrics need room.
            del engine
            assembly.requests = []
        summary = summarise(events)
        summary["decision_us"] = decisions
        if writer is not None:
            fault = _finish(writer, summary, digest, device.host_gaps(), fault)
    folder = writer.path if writer is not None else None
    notes, facts = assembly.trace.notes, assembly.facts
    return RunResult(assembly.config, summary, events, digest, folder, notes, facts, fault)


def _store(writer: RunWriter, engine: Engine) -> str:
    """Write what is left to write. What a full disk refuses is returned, not raised: the run was
    served, and what was measured can still be shown.
    """
    try:
        writer.flush(engine.log, splits_of(engine))
        writer.write_tokens(engine.device.generated())
    except NexusbenchError as error:
        return str(error)
    return ""


def _joined(reader: RunReader, log: EventLog) -> dict[str, dict[str, Any]]:
    """The event tables: the rows that are stored, then those that the log still holds."""
    import numpy as np

    return {
        name: {
            key: np.concatenate((stored[key], np.array(column)))
            for key, column in table.columns.items()
        }
        for name, table in log.tables.items()
        for stored in (reader.table(name),)
    }


def _read_back(writer: RunWriter, assembly: Assembly, engine: Engine) -> RunEvents:
    """The run's events: from its folder, and from the log what could not be written."""
    from nexusbench.metrics.run_events import Facts, RunEvents
    from nexusbench.results.reader import RunReader

    if len(engine.log) and not writer.sealed:
        return events_so_far(assembly, engine)
    reader = RunReader(writer.path)
    if len(engine.log):
        facts = _facts(assembly, engine) | {"strings": engine.log.strings}
        sealed = reader.first_parts(len(writer.sealed))
        joined = _joined(sealed, engine.log)
        return RunEvents(joined, sealed.requests(), msgspec.convert(facts, Facts))
    events = RunEvents.from_reader(reader)
    # Known only now, and in the manifest only when it is finished.
    events.facts = msgspec.structs.replace(events.facts, host_gaps=assembly.device.host_gaps())
    return events


def _finish(
    writer: RunWriter,
    summary: dict[str, Any],
    digest: str,
    host_gaps: Mapping[str, HostGap],
    fault: str,
) -> str:
    """The run came to its own end: decision times are real ones, and so no part of its summary.
    Returns what could not be written, now or before.
    """
    kept = {key: value for key, value in summary.items() if key != "decision_us"}
    resolved: dict[str, Any] = {"decision_us": summary["decision_us"]}
    if host_gaps:
        resolved["host_gaps"] = msgspec.to_builtins(host_gaps)
    held = dict.fromkeys(INVARIANTS, "held")
    if fault:
        with suppress(NexusbenchError):  # the first one is the one to tell
            writer.finish("failed", None, fault, invariants=held, resolved=resolved)
        return fault
    try:
        writer.finish("complete", kept, event_digest=digest, invariants=held, resolved=resolved)
    except NexusbenchError as error:
        return str(error)
    return ""


def _begin(assembly: Assembly, recorder: Recorder, writer: RunWriter | None) -> Engine:
    """The engine, made; where a part of it cannot begin, the folder says so."""
    try:
        return _engine(assembly, recorder)
    except BaseException as error:
        fault = blamed(error, _parts(assembly))
        if writer is not None:
            writer.finish("failed", None, str(fault or error) or type(error).__name__)
        if fault is not None:
            raise fault from error
        raise


def _parts(assembly: Assembly) -> dict[str, object]:
    """What served, by what it is called."""
    scheduler, partitioner = assembly.scheduler, assembly.partitioner
    found: dict[str, object] = {
        f"scheduler '{scheduler.name}'": scheduler,
        f"partitioner '{partitioner.name}'": partitioner,
        f"device '{assembly.device.spec.name}'": assembly.device,
    }
    for belief in (partitioner.belief, scheduler.belief):
        if belief is not None:
            found[f"cost model '{belief.name}'"] = belief
    return found


def _engine(assembly: Assembly, recorder: Recorder) -> Engine:
    device = assembly.device
    stops = device.spec.stop_tokens if assembly.config.stop_at_eos else ()
    return Engine(
        device,
        assembly.scheduler,
        assembly.partitioner,
        assembly.kv,
        assembly.requests,
        EngineConfig(
            assembly.limits,
            concurrency=assembly.trace.concurrency,
            stop_tokens=frozenset(stops),
            block_bytes=assembly.model.kv_bytes_on(device.spec.tensor_parallel)
            * assembly.kv.block_size,
        ),
        stopwatch=now_ns,
        observer=recorder.after_step,
        others=assembly.other_pools,
    )


def events_so_far(assembly: Assembly, engine: Engine) -> RunEvents:
    """What has happened in a run that is not kept in a folder, also while it goes on."""
    from nexusbench.metrics.run_events import RunEvents

    return RunEvents.from_log(engine.log, _request_columns(assembly), _facts(assembly, engine))


def _open_writer(assembly: Assembly, results: Path) -> RunWriter:
    from nexusbench.results.manifest import new_manifest
    from nexusbench.results.store import RunWriter

    created = utc_now()
    config, spec = assembly.config, assembly.device.spec
    name = "-".join(
        [
            created.strftime("%Y%m%d-%H%M%S"),
            folder_name(assembly.trace.name),
            folder_name(assembly.scheduler.name),
            folder_name(spec.name),
            f"s{config.seed}",
        ]
    )
    manifest = new_manifest(
        name,
        created.isoformat(timespec="seconds"),
        simulated=spec.simulated,
        config=msgspec.to_builtins(config),
        resolved=assembly.facts,
        partitions=assembly.scheduler.partitions,
    )
    return RunWriter(results, manifest, _request_columns(assembly))


def _request_columns(assembly: Assembly | Connected) -> dict[str, list[Any]]:
    requests, closed = assembly.requests, assembly.trace.concurrency > 0
    return {
        "request": [r.index for r in requests],
        "id": [r.id for r in requests],
        "tenant": [r.tenant for r in requests],
        # -1: it arrives when another one has ended; the event log says when that was.
        "arrival": [-1 if closed or r.after >= 0 else r.arrival_ns for r in requests],
        "prompt_tokens": [r.num_prompt_tokens for r in requests],
        "output_tokens": [r.stop_len - r.num_prompt_tokens for r in requests],
        "max_tokens": [r.max_tokens for r in requests],
    }


def _facts(assembly: Assembly, engine: Engine) -> dict[str, Any]:
    return {
        "simulated": assembly.device.spec.simulated,
        "num_sms": assembly.device.spec.num_sms,
        "kv_blocks": assembly.facts["kv_blocks"],
        "block_size": assembly.kv.block_size,
        "partitions": assembly.scheduler.partitions,
        "splits": splits_of(engine),
        "host_gaps": assembly.device.host_gaps(),
        **{key: assembly.facts[key] for key in RESOLVED_FACTS},
    }


def _decision_times(engine: Engine) -> dict[str, float]:
    """Real microseconds per scheduling decision (policy and partitioner), outside the event log."""
    import numpy as np

    if not engine.decision_ns:
        return {}
    values = np.asarray(engine.decision_ns) / 1e3
    return {
        "mean": round(float(values.mean()), 2),
        "p50": round(float(np.percentile(values, 50)), 2),
        "p99": round(float(np.percentile(values, 99)), 2),
        "n": len(values),
    }
