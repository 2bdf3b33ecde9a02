"""What becomes of a run's events while it goes on: kept in time, and whatever ends it."""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from nexusbench.core.clock import now_ns, utc_now
from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError, Terminated
from nexusbench.core.events import EventLog
from nexusbench.core.units import NS_PER_MS, NS_PER_S
from nexusbench.core.work import HostGap
from nexusbench.engine.served import Served
from nexusbench.results.resolved import Resolved, facts_for_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from nexusbench.metrics.run_events import Columns, RunEvents
    from nexusbench.metrics.summary import Summary
    from nexusbench.results.reader import RunReader
    from nexusbench.results.store import LogSnapshot, RunWriter

SAVE_S = 1.0  # on a real clock, from one writing to the next: nothing older than 2 s is lost
PROGRESS_NS = 100 * NS_PER_MS
# What asks a process to end; SIGHUP is not everywhere.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class StopFlag(threading.Event):
    """Set by a signal that asks for the end of the run; ``number`` says by which."""

    number = signal.SIGINT

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, as shells have it for every signal."""
        return 128 + int(self.number)

    @property
    def cause(self) -> str:
        """``interrupted``, or by what."""
        by = signal.Signals(self.number).name
        return "interrupted" if self.number == signal.SIGINT else f"interrupted by {by}"


@contextmanager
def stop_flag(wake: Callable[[], None]) -> Iterator[StopFlag]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into a flag, so that a run stops between two steps with its
    books in order; ``wake`` lets a device that waits for a step or for an arrival look up at once.

    A second signal raises KeyboardInterrupt. What is ignored stays ignored (nohup), and outside the
    main thread signals are not ours to handle.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    # None: installed by something other than Python, which could not be put back.
    previous = {n: was for n, was in handlers.items() if was not in (signal.SIG_IGN, None)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)
        flag.number = signal.Signals(number)
        flag.set()
        wake()

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield flag
    except Interrupted as error:
        error.exit_code = flag.exit_code
        raise
    finally:
        for number, was in previous.items():
            signal.signal(number, was)
    if flag.is_set():
        signal.raise_signal(flag.number)  # too late to stop this run, but it was meant


class Saver:
    """Writes what an engine's log holds to the disk every second, in a thread of its own: a step
    that ends meanwhile is neither late nor measured late.

    ``blocked``: the last writing failed, as on a full disk. The run goes on, the log keeps its
    rows, and every second it is tried again: what is still missing at the end is told there.
    """

    def __init__(self, writer: RunWriter, wake: Callable[[], None]) -> None:
        self._writer, self._wake = writer, wake
        self._due, self._idle, self._over = threading.Event(), threading.Event(), threading.Event()
        self._idle.set()
        self._rows = -1
        self.blocked = False
        self._clock = threading.Thread(target=self._tick, name="nexusbench-saving", daemon=True)
        self._clock.start()

    def look(self, engine: Served) -> None:
        """Begin to write what is new, where it is time to."""
        if not self._due.is_set() or not self._idle.is_set():
            return
        self._due.clear()
        if len(engine.log) != self._rows or self.blocked:
            self._rows = len(engine.log)
            snapshot = self._writer.snapshot(engine.log, splits_of(engine))
            self._idle.clear()
            threading.Thread(target=self._save, args=(snapshot,), daemon=True).start()

    def seal(self, engine: Served) -> None:
        """Write what the log holds for good, and let go of it."""
        self.rest()
        try:
            self._writer.flush(engine.log, splits_of(engine))
        except NexusbenchError:
            self.blocked = True

    def rest(self) -> None:
        """Wait for a writing that is under way: the writer is the caller's then."""
        self._idle.wait()
        self._rows = -1

    def stop(self) -> None:
        """The run is over."""
        self._over.set()
        self.rest()

    def _tick(self) -> None:
        """A device that waits for a step, or an hour for an arrival, is woken to look around."""
        while not self._over.wait(SAVE_S):
            self._due.set()
            self._wake()

    def _save(self, snapshot: LogSnapshot) -> None:
        try:
            self._writer.save(snapshot)
            self.blocked = False
        except NexusbenchError:
            self.blocked = True
        finally:
            self._idle.set()


class Recorder(ABC):
    """Observes what serves, an engine or a replay: stops it on a signal, shows progress, stores its
    log in time and at the end.
    """

    invariants: ClassVar[Mapping[str, str]] = {}  # that held, of a run that ended as it should
    simulated = False
    partitions: Sequence[str] = ()

    def __init__(
        self,
        log: EventLog,
        resolved: Resolved,
        writer: RunWriter | None,
        progress: Callable[[Any], object] | None,
        stop: StopFlag,
    ) -> None:
        self.log, self._resolved = log, resolved
        self._writer, self._progress, self._interrupted = writer, progress, stop
        self._shows, self._next_progress = progress is not None, 0

    @abstractmethod
    def status(self) -> Any:
        """What progress is shown of: the engine, or a replay's status."""

    @abstractmethod
    def position(self) -> tuple[int, int, int]:
        """Nanoseconds of the run, requests that have ended, requests."""

    @abstractmethod
    def columns(self) -> dict[str, list[Any]]:
        """The offered requests, see :func:`request_columns`."""

    @abstractmethod
    def at_the_end(self, *, whole: bool) -> Resolved:
        """What was resolved, with what is measured until the end; ``whole``: no request was cut
        off.
        """

    @abstractmethod
    def settle(self, error: BaseException | None = None) -> None:
        """Nothing is served any more: let no thread write, and bring into the log what lies beside
        it. ``error`` is what ended the run before its own end.
        """

    @property
    def folder(self) -> Path | None:
        """Where the run is kept; None if nowhere."""
        return None if self._writer is None else self._writer.path

    def splits(self) -> Sequence[Sequence[int]]:
        """The SMs of each split that the log's codes stand for."""
        return ()

    def generated(self) -> Mapping[int, Sequence[int]]:
        """Token ids that each ended request got, by index."""
        return {}

    def host_gaps(self) -> Mapping[str, HostGap]:
        """How long each partition stood still, of a device that measures it."""
        return {}

    def release(self) -> None:  # noqa: B027 - most hold little
        """Everything is stored: let go of what needs much room."""

    def look(self) -> None:
        """Raise Interrupted after a signal; show progress about ten times a second."""
        if self._interrupted.is_set():
            now, ended, requests = self.position()
            raise Interrupted(
                f"{self._interrupted.cause} at {now / NS_PER_S:.1f} s of the run, "
                f"{ended} of {requests} requests ended"
            )
        if self._shows and now_ns() >= self._next_progress:
            self.show()

    def show(self) -> None:
        """Tell the progress callback, and until the end no more where nothing shows what it is
        told, which it says by returning False.
        """
        if self._progress is not None:
            self._shows = self._progress(self.status()) is not False
        self._next_progress = now_ns() + PROGRESS_NS

    def give_up(self, error: BaseException) -> None:
        """Keep what there is, and say in the manifest why it ends."""
        writer = self._writer
        if writer is None:
            return
        self.settle(error)
        stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
        digest, message = self.log.digest(), str(error) or type(error).__name__
        # What a full disk refuses: the first error is the one to tell.
        with suppress(NexusbenchError):
            writer.flush(self.log, self.splits())
        with suppress(NexusbenchError):
            writer.write_tokens(self.generated())
        with suppress(NexusbenchError):
            writer.finish(
                "interrupted" if stopped else "failed",
                None,
                message,
                event_digest=digest,
                resolved=self.at_the_end(whole=False),
            )
        if isinstance(error, NexusbenchError):
            error.args = (f"{error}. Kept: {writer.path}",)

    def store(self) -> str:
        """Store what is left. What a full disk refuses is returned, not raised: the requests were
        served, and what was measured can still be shown.
        """
        if self._writer is None:
            return ""
        try:
            self._writer.flush(self.log, self.splits())
            self._writer.write_tokens(self.generated())
        except NexusbenchError as error:
            return str(error)
        return ""

    def events(self) -> RunEvents:
        """What has happened: from the folder, and from the log what is not stored."""
        from nexusbench.metrics.run_events import RunEvents
        from nexusbench.results.reader import RunReader

        log, writer, gaps = self.log, self._writer, dict(self.host_gaps())
        if writer is not None and not len(log):
            events = RunEvents.from_reader(RunReader(writer.path))
            # Known only now, and in the manifest only when it is finished.
            events.facts = msgspec.structs.replace(events.facts, host_gaps=gaps)
            return events
        facts = facts_for_metrics(
            self._resolved, simulated=self.simulated, partitions=self.partitions,
            splits=self.splits(), strings=log.strings,
        )  # fmt: skip
        facts = msgspec.structs.replace(facts, host_gaps=gaps)
        if writer is None or not writer.sealed:
            return RunEvents.from_log(log, self.columns(), facts)
        sealed = RunReader(writer.path).first_parts(len(writer.sealed))
        return RunEvents(_joined(sealed, log), sealed.requests(), facts)

    def finish(self, summary: Summary, digest: str, resolved: Resolved, fault: str) -> str:
        """Every request has ended: close the manifest. Returns what could not be written, now
        or before (``fault``).
        """
        writer, held = self._writer, self.invariants
        if writer is None:
            return ""
        if fault:
            with suppress(NexusbenchError):  # the first one is the one to tell
                writer.finish("failed", None, fault, invariants=held, resolved=resolved)
            return fault
        try:
            writer.finish(
                "complete", summary, event_digest=digest, invariants=held, resolved=resolved
            )
        except NexusbenchError as error:
            return str(error)
        return ""


def open_writer(
    results: Path,
    name: Sequence[str],
    config: RunConfig | EndpointConfig,
    resolved: Resolved,
    requests: dict[str, list[Any]],
    *,
    simulated: bool,
    partitions: Sequence[str] = (),
) -> RunWriter:
    """A new run folder in ``results``, called after the time, ``name`` and the seed. Raises as
    :class:`RunWriter` does.
    """
    from nexusbench.results.manifest import new_manifest
    from nexusbench.results.store import RunWriter

    created = utc_now()
    manifest = new_manifest(
        "-".join([created.strftime("%Y%m%d-%H%M%S"), *name, f"s{config.seed}"]),
        created.isoformat(timespec="seconds"),
        simulated=simulated,
        config=config,
        resolved=resolved,
        partitions=partitions,
    )
    return RunWriter(results, manifest, requests)


def _joined(reader: RunReader, log: EventLog) -> dict[str, Columns]:
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


def splits_of(engine: Served) -> Sequence[Sequence[int]]:
    """The SMs of each split that the log's codes stand for."""
    return [split.sms for split in engine.splits]
