"""What becomes of a run's events while it goes on: kept in time, and whatever ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from nexusbench.core.clock import now_ns
from nexusbench.core.errors import Interrupted, NexusbenchError, Terminated
from nexusbench.core.units import NS_PER_MS
from nexusbench.engine.engine import Engine

if TYPE_CHECKING:
    from nexusbench.results.manifest import Status
    from nexusbench.results.store import RunWriter, Snapshot

FLUSH_ROWS = 400_000  # event rows of a simulated run held before they are written (a few MB)
SEAL_ROWS = 100_000  # the same on a real clock, where all of them are written again each time
SAVE_S = 1.0  # on a real clock, from one writing to the next: nothing older than 2 s is lost
CHECK_STEPS = 64  # engine steps between looks at the flag, the log's size and the stopwatch
PROGRESS_NS = 100 * NS_PER_MS
# What asks a process to end; SIGHUP is not everywhere.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

Progress = Callable[[Engine], object]  # one that returns False is only called again at the end


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

    def look(self, engine: Engine) -> None:
        """Begin to write what is new, where it is time to."""
        if not self._due.is_set() or not self._idle.is_set():
            return
        self._due.clear()
        if len(engine.log) != self._rows or self.blocked:
            self._rows = len(engine.log)
            snapshot = self._writer.snapshot(engine.log, splits_of(engine))
            self._idle.clear()
            threading.Thread(target=self._save, args=(snapshot,), daemon=True).start()

    def seal(self, engine: Engine) -> None:
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

    def _save(self, snapshot: Snapshot) -> None:
        try:
            self._writer.save(snapshot)
            self.blocked = False
        except NexusbenchError:
            self.blocked = True
        finally:
            self._idle.set()


class Recorder:
    """The engine's observer: stops on a signal between steps, writes the log, shows progress."""

    def __init__(
        self,
        writer: RunWriter | None,
        progress: Progress | None,
        interrupted: StopFlag,
        every: int = CHECK_STEPS,
        watch: Progress | None = None,
        saver: Saver | None = None,
    ) -> None:
        self._writer, self._progress, self._interrupted = writer, progress, interrupted
        self._watch, self._saver = watch, saver
        self._most = FLUSH_ROWS if saver is None else SEAL_ROWS
        self._every = self._next_check = every
        self._next_progress = 0
        self._marks: dict[str, int] = {}  # rows held when all tables last fitted together

    def after_step(self, engine: Engine) -> None:
        """Cheap unless a check is due."""
        if engine.executor.num_steps < self._next_check:
            return
        self._next_check = engine.executor.num_steps + self._every
        if self._interrupted.is_set():
            raise Interrupted(
                f"{self._interrupted.cause} at {engine.state.now / 1e9:.1f} s of the run, "
                f"{engine.executor.num_ended} of {len(engine.requests)} requests ended"
            )
        if self._watch is not None:
            self._watch(engine)
        if self._progress is not None and now_ns() >= self._next_progress:
            self.show(engine)
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

    def show(self, engine: Engine) -> None:
        """Tell the progress callback, and no more of them where nothing shows what it is told."""
        if self._progress is not None and self._progress(engine) is False:
            self._progress = None
        self._next_progress = now_ns() + PROGRESS_NS

    def give_up(self, engine: Engine, error: BaseException) -> None:
        """Keep what there is, and say in the manifest why it ends."""
        if self._writer is None:
            return
        if self._saver is not None:
            self._saver.stop()
        if isinstance(error, KeyboardInterrupt) or not engine.log.whole():
            engine.log.cut(self._marks)  # it came in the middle of a step
        status: Status = (
            "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
        )
        message = str(error) or type(error).__name__
        # What a full disk refuses: the first error is the one to tell.
        with suppress(NexusbenchError):
            self._writer.flush(engine.log, splits_of(engine))
        with suppress(NexusbenchError):
            self._writer.write_tokens(engine.device.generated())
        with suppress(NexusbenchError):
            self._writer.finish(status, None, message, event_digest=engine.log.digest())
        if isinstance(error, NexusbenchError):
            error.args = (f"{error}. Kept: {self._writer.path}",)


def splits_of(engine: Engine) -> Sequence[Sequence[int]]:
    """The SMs of each split that the log's codes stand for."""
    return [split.sms for split in engine.executor.splits]
