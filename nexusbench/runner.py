"""Run a config: assemble, serve, record, summarise. The stable Python API is ``nexusbench.run``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec

from nexusbench.assembly import Assembly, assemble
from nexusbench.config import EndpointConfig, RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError, UsageError
from nexusbench.core.faults import blamed
from nexusbench.core.units import NS_PER_MS
from nexusbench.devices._stopwatch import stopwatch_ns, utc_now
from nexusbench.engine.engine import Engine, EngineConfig

if TYPE_CHECKING:
    from nexusbench.endpoint.status import Status as ReplayStatus
    from nexusbench.endpoint_runner import Connected
    from nexusbench.metrics._work import HostGap
    from nexusbench.metrics.run_events import RunEvents
    from nexusbench.results.manifest import Status
    from nexusbench.results.store import RunWriter

FLUSH_ROWS = 400_000  # event rows held before they are written to disk (a few MB)
CHECK_STEPS = 64  # engine steps between looks at the flag, the log's size and the stopwatch
PROGRESS_NS = 100 * NS_PER_MS
# What metrics need of the facts that an assembly resolved.
RESOLVED_FACTS = (
    "slo", "warmup_ns", "gpus", "price_per_hour", "watts", "work", "pools", "homes", "device",
)  # fmt: skip
INVARIANTS = ("I1", "I2", "I3", "I4", "I5", "I7", "I10", "I11")

Progress = Callable[[Engine], None]
AnyProgress = Callable[["Engine | ReplayStatus"], None]


class RunResult(msgspec.Struct):
    """What came out of a run.

    ``summary`` is docs/metrics.md as JSON-ready values, ``event_digest`` the SHA-256 of the event
    log (equal for equal runs, I6), ``folder`` where everything was kept (None if nowhere),
    ``resolved`` what the config became on this device and model.
    """

    config: RunConfig | EndpointConfig
    summary: dict[str, Any]
    events: RunEvents
    event_digest: str
    folder: Path | None
    notes: list[str]
    resolved: dict[str, Any] = {}


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
            from nexusbench.endpoint_runner import run_endpoint
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
    from nexusbench.metrics.run_events import RunEvents
    from nexusbench.metrics.summary import summarise

    device = assembly.device
    with _sigint_flag(device.interrupt) as interrupted:
        # Not before: a Ctrl-C in between would leave a folder that nobody accounts for.
        writer = _open_writer(assembly, results) if results is not None else None
        # On a real clock a step takes long enough to look around after each.
        every = CHECK_STEPS if device.spec.simulated else 0
        recorder = Recorder(writer, progress, interrupted, every, watch)
        engine = _begin(assembly, recorder, writer)
        if progress is not None and not device.spec.simulated:
            progress(engine)  # the first step may take long
        try:
            engine.run()
        except BaseException as error:
            fault = blamed(error, _parts(assembly))
            recorder.give_up(engine, fault or error)
            if fault is not None:
                raise fault from error
            raise
        if progress is not None:
            progress(engine)
        decisions, digest = _decision_times(engine), engine.log.digest()
        if writer is None:
            events = events_so_far(assembly, engine)
        else:
            from nexusbench.results.reader import RunReader

            writer.flush(engine.log, _splits(engine))
            writer.write_tokens(device.generated())
            # A million requests are a third of a GiB: let them go before metrics need room.
            del engine
            assembly.requests = []
            events = RunEvents.from_reader(RunReader(writer.path))
            # Known only now, and in the manifest only when it is finished.
            events.facts = msgspec.structs.replace(events.facts, host_gaps=device.host_gaps())
        summary = summarise(events)
        summary["decision_us"] = decisions
        if writer is not None:
            _finish(writer, summary, digest, device.host_gaps())
    folder = writer.path if writer is not None else None
    return RunResult(
        assembly.config, summary, events, digest, folder, assembly.trace.notes, assembly.facts
    )


def _finish(
    writer: RunWriter, summary: dict[str, Any], digest: str, host_gaps: Mapping[str, HostGap]
) -> None:
    """The run came to its own end: decision times are real ones, and so no part of its summary."""
    kept = {key: value for key, value in summary.items() if key != "decision_us"}
    resolved: dict[str, Any] = {"decision_us": summary["decision_us"]}
    if host_gaps:
        resolved["host_gaps"] = msgspec.to_builtins(host_gaps)
    writer.finish(
        "complete",
        kept,
        event_digest=digest,
        invariants=dict.fromkeys(INVARIANTS, "held"),
        resolved=resolved,
    )


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
        stopwatch=stopwatch_ns,
        observer=recorder.after_step,
        others=assembly.other_pools,
    )


def events_so_far(assembly: Assembly, engine: Engine) -> RunEvents:
    """What has happened in a run that is not kept in a folder, also while it goes on."""
    from nexusbench.metrics.run_events import RunEvents

    return RunEvents.from_log(engine.log, _request_columns(assembly), _facts(assembly, engine))


class Recorder:
    """The engine's observer: stops on Ctrl-C between steps, writes full buffers, shows progress."""

    def __init__(
        self,
        writer: RunWriter | None,
        progress: Progress | None,
        interrupted: threading.Event,
        every: int = CHECK_STEPS,
        watch: Progress | None = None,
    ) -> None:
        self._writer, self._progress, self._interrupted = writer, progress, interrupted
        self._watch = watch
        self._every = self._next_check = every
        self._next_progress = stopwatch_ns()

    def after_step(self, engine: Engine) -> None:
        """Cheap unless a check is due."""
        if engine.executor.num_steps < self._next_check:
            return
        self._next_check = engine.executor.num_steps + self._every
        if self._interrupted.is_set():
            raise Interrupted(
                f"interrupted at {engine.state.now / 1e9:.1f} s of the run, "
                f"{engine.executor.num_ended} of {len(engine.requests)} requests ended"
            )
        if self._watch is not None:
            self._watch(engine)
        if self._progress is not None and stopwatch_ns() >= self._next_progress:
            self._progress(engine)
            self._next_progress = stopwatch_ns() + PROGRESS_NS
        if self._writer is not None and len(engine.log) >= FLUSH_ROWS:
            self._writer.flush(engine.log, _splits(engine))

    def give_up(self, engine: Engine, error: BaseException) -> None:
        """Keep what there is, and say in the manifest why it ends."""
        if self._writer is None:
            return
        with suppress(NexusbenchError):  # e.g. a full disk: the first error is the one to tell
            self._writer.flush(engine.log, _splits(engine))
            self._writer.write_tokens(engine.device.generated())
        status: Status = (
            "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
        )
        message = str(error) or type(error).__name__
        self._writer.finish(status, None, message, event_digest=engine.log.digest())
        if isinstance(error, NexusbenchError):
            error.args = (f"{error}. Kept: {self._writer.path}",)


@contextmanager
def _sigint_flag(wake: Callable[[], None]) -> Iterator[threading.Event]:
    """Turn Ctrl-C into a flag, so that a run stops between two steps with its books in order;
    ``wake`` lets a device that waits for a step or for an arrival look up at once.

    A second Ctrl-C raises KeyboardInterrupt as usual. Outside the main thread signals are not ours
    to handle.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = signal.getsignal(signal.SIGINT)

    def on_sigint(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()
        wake()

    signal.signal(signal.SIGINT, on_sigint)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
    if flag.is_set():
        raise KeyboardInterrupt  # too late to stop this run, but it was meant


def _open_writer(assembly: Assembly, results: Path) -> RunWriter:
    from nexusbench.results.manifest import new_manifest
    from nexusbench.results.store import RunWriter

    created = utc_now()
    config, spec = assembly.config, assembly.device.spec
    name = "-".join(
        [
            created.strftime("%Y%m%d-%H%M%S"),
            assembly.trace.name,
            assembly.scheduler.name,
            spec.name.replace(":", "-").replace(" ", "-"),
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
        "splits": _splits(engine),
        "host_gaps": assembly.device.host_gaps(),
        **{key: assembly.facts[key] for key in RESOLVED_FACTS},
    }


def _splits(engine: Engine) -> list[tuple[int, ...]]:
    return [split.sms for split in engine.executor.splits]


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
