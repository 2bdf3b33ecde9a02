"""Run a config: assemble, serve, record, summarise. The stable Python API is ``nexusbench.run``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from nexusbench.core.clock import now_ns
from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.events import EventLog
from nexusbench.core.faults import blamed
from nexusbench.core.printable import folder_name
from nexusbench.core.work import HostGap
from nexusbench.engine.engine import Engine, EngineConfig
from nexusbench.engine.fleet import Fleet
from nexusbench.engine.served import Served
from nexusbench.engine.shared import SharedState
from nexusbench.results.resolved import Resolved, ResolvedEngineRun, facts_for_metrics
from nexusbench.serving.assembly import Assembly, assemble
from nexusbench.serving.opening import kv_pages
from nexusbench.serving.peers import EngineParts
from nexusbench.serving.recorder import (
    Recorder,
    Saver,
    StopFlag,
    open_writer,
    splits_of,
    stop_flag,
)

if TYPE_CHECKING:
    from nexusbench.endpoint.status import Status as ReplayStatus
    from nexusbench.metrics.run_events import RunEvents
    from nexusbench.metrics.summary import Summary
    from nexusbench.results.store import RunWriter

FLUSH_ROWS = 400_000  # event rows of a simulated run held before they are written (a few MB)
SEAL_ROWS = 100_000  # the same on a real clock, where all of them are written again each time
CHECK_STEPS = 64  # engine steps between looks at the flag, the log's size and the stopwatch

INVARIANTS = ("I1", "I2", "I3", "I4", "I5", "I7", "I10", "I11")

Progress = Callable[[Served], object]  # one that returns False is only called again at the end
AnyProgress = Callable[["Served | ReplayStatus"], object]


class RunResult(msgspec.Struct):
    """The result of a run.

    ``summary`` is docs/metrics.md as fields, ``event_digest`` the SHA-256 of the event log (equal
    for equal runs, I6), ``folder`` where everything was kept (None if nowhere), ``resolved`` what
    the config became on this device and model. ``fault`` says what of it could not be written (a
    full disk); the run itself ended as it should.
    """

    config: RunConfig | EndpointConfig
    summary: Summary
    events: RunEvents
    event_digest: str
    folder: Path | None
    notes: list[str]
    resolved: Resolved
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

    An EndpointConfig's trace is replayed against the server at its URL. ``progress`` is called
    about ten times a second with the engine, or with a replay's status. Raises UsageError (or
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


class EngineRecorder(Recorder):
    """The engine's observer: looks around after every ``CHECK_STEPS`` steps of a simulation, after
    each one on a real clock.
    """

    invariants: ClassVar[Mapping[str, str]] = dict.fromkeys(INVARIANTS, "held")
    engine: Engine | Fleet  # once it is made, with this observer and this log

    def __init__(
        self,
        assembly: Assembly,
        writer: RunWriter | None,
        progress: Progress | None,
        stop: StopFlag,
        watch: Progress | None = None,
    ) -> None:
        super().__init__(EventLog(), assembly.resolved, writer, progress, stop)
        self.simulated = assembly.device.spec.simulated
        self.partitions = assembly.partitions
        self._assembly, self._watch, self._saver = assembly, watch, None
        if writer is not None and not self.simulated:
            self._saver = Saver(writer, assembly.device.interrupt)
        self._most = FLUSH_ROWS if self._saver is None else SEAL_ROWS
        self._every = self._next_check = CHECK_STEPS if self.simulated else 0
        self._marks: dict[str, int] = {}  # rows held when all tables last fitted together

    def status(self) -> Served:
        """The engine."""
        return self.engine

    def position(self) -> tuple[int, int, int]:
        """On the device's clock."""
        engine = self.engine
        return engine.now_ns, engine.num_ended, len(engine.requests)

    def columns(self) -> dict[str, list[Any]]:
        """Those of the assembly."""
        return self._assembly.columns()

    def splits(self) -> Sequence[Sequence[int]]:
        """Those that the partitioner has chosen so far."""
        return splits_of(self.engine) if hasattr(self, "engine") else ()

    def generated(self) -> Mapping[int, Sequence[int]]:
        """By the device."""
        return self._assembly.device.generated()

    def host_gaps(self) -> Mapping[str, HostGap]:
        """Of the device."""
        return self._assembly.device.host_gaps()

    def after_step(self, engine: Served) -> None:
        """Cheap unless a check is due."""
        if engine.num_steps < self._next_check:
            return
        self._next_check = engine.num_steps + self._every
        self.look()
        if self._watch is not None:
            self._watch(engine)
        if self._writer is None:
            return
        full = len(engine.log) >= self._most
        if self._saver is None:
            if full:
                self._writer.flush(engine.log, splits_of(engine))
        elif full and not self._saver.blocked:
            self._saver.seal(engine)
        else:
            self._saver.look(engine)
        self._marks = engine.log.rows()

    def settle(self, error: BaseException | None = None) -> None:
        """A step that was struck in its middle is cut off."""
        if self._saver is not None:
            self._saver.stop()
        if error is not None and (isinstance(error, KeyboardInterrupt) or not self.log.whole()):
            self.log.cut(self._marks)

    def at_the_end(self, *, whole: bool) -> ResolvedEngineRun:
        """With decision times, which are real ones, and gaps between launches; of whole runs."""
        resolved = self._assembly.resolved
        if whole:
            resolved = msgspec.structs.replace(resolved, decision_us=_decision_times(self.engine))
            if gaps := dict(self.host_gaps()):
                resolved = msgspec.structs.replace(resolved, host_gaps=gaps)
        return resolved

    def release(self) -> None:
        """A million requests are a third of a GiB: they go before metrics need room."""
        if self._writer is not None:
            del self.engine
            self._assembly.requests = []


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
    spec, scheduler = assembly.device.spec, assembly.scheduler
    with stop_flag(assembly.device.interrupt) as interrupted:
        writer = None
        if results is not None:
            # Not before: a Ctrl-C in between would leave a folder that nothing accounts for.
            names = [folder_name(n) for n in (assembly.trace.name, scheduler.name, spec.name)]
            writer = open_writer(
                results, names, assembly.config, assembly.resolved, assembly.columns(),
                simulated=spec.simulated, partitions=assembly.partitions,
            )  # fmt: skip
        recorder = EngineRecorder(assembly, writer, progress, interrupted, watch)
        try:
            recorder.engine = engine_of(assembly, recorder.after_step, recorder.log)
            recorder.show()  # the first step may take long
            recorder.engine.run()
        except BaseException as error:
            fault = blamed(error, _parts(assembly))
            recorder.give_up(fault or error)
            if fault is not None:
                raise fault from error
            raise
        return conclude(recorder, assembly.config, assembly.trace.notes)


def conclude(recorder: Recorder, config: RunConfig | EndpointConfig, notes: list[str]) -> RunResult:
    """Every request has ended: store the rest of the log, summarise, close the manifest."""
    from nexusbench.metrics.summary import summarise

    recorder.settle()
    recorder.show()
    resolved, digest = recorder.at_the_end(whole=True), recorder.log.digest()
    fault = recorder.store()
    events = recorder.events()
    recorder.release()
    summary = summarise(events)
    fault = recorder.finish(summary, digest, resolved, fault)
    return RunResult(config, summary, events, digest, recorder.folder, notes, resolved, fault)


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


def engine_of(
    assembly: Assembly,
    observer: Callable[[Served], None] | None = None,
    log: EventLog | None = None,
) -> Engine | Fleet:
    """The engine, or the fleet of them, that serves what was assembled, ready to run."""
    device, model, requests = assembly.device, assembly.model, assembly.requests
    config = EngineConfig(
        assembly.limits,
        concurrency=assembly.trace.concurrency,
        stop_tokens=frozenset(device.spec.stop_tokens if assembly.config.stop_at_eos else ()),
        block_bytes=kv_pages(assembly.config, model, device).page_bytes,
        host=device.host,
    )
    if device.ranks is None:
        return Engine(
            device, assembly.scheduler, assembly.partitioner, assembly.kv, requests, config,
            log=log, stopwatch=now_ns, observer=observer, others=assembly.other_pools,
        )  # fmt: skip
    log = log if log is not None else EventLog()
    shared = SharedState(requests, config.concurrency, config.host)
    first = EngineParts(device, assembly.scheduler, assembly.partitioner, assembly.kv)
    engines = [
        Engine(
            one.device, one.scheduler, one.partitioner, one.kv, requests, config,
            log=log, stopwatch=now_ns, shared=shared,
        )
        for one in (first, *assembly.peers)
    ]  # fmt: skip
    return Fleet(engines, device.ranks, config.audit_every, observer)


def events_so_far(assembly: Assembly, engine: Served) -> RunEvents:
    """What has happened in a run that is not kept in a folder, also while it goes on."""
    from nexusbench.metrics.run_events import RunEvents

    facts = facts_for_metrics(
        assembly.resolved,
        simulated=assembly.device.spec.simulated,
        partitions=assembly.partitions,
        splits=splits_of(engine),
    )
    return RunEvents.from_log(engine.log, assembly.columns(), facts)


def _decision_times(engine: Served) -> dict[str, float]:
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
