"""Launching on a GPU from one thread: work in pieces, decodes first, ends found by looking.

The thread that runs the engine also launches; between two pieces it looks for what has ended. So a
decode is launched the moment it is submitted and never waits for the host to finish launching a
prompt (MuxWise, arXiv 2504.14489: without layer-wise launching its TBT grows by about 10 ms,
without polling by hundreds), and there are no locks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from nexusbench.core.batch import Batch, StepOutput
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.units import NS_PER_S, NS_PER_US
from nexusbench.core.work import HostGap
from nexusbench.devices._cuda_partitions import Side
from nexusbench.devices._cuda_runtime import Mark, Runtime
from nexusbench.devices._cuda_steps import AHEAD, Piece, PieceMaker

# Far above any piece: 8,192 tokens after 128,000 on 8 SMs of an H200 take about a second a piece.
TIMEOUT_NS = 120 * NS_PER_S
# A nap is a fiftieth of what was waited so far, so that an end is heard of at most 2 % late, and
# within these bounds: shorter ones would not spare the core, longer ones would be felt.
SHORTEST_NAP_NS, LONGEST_NAP_NS, NAPS = 20 * NS_PER_US, 200 * NS_PER_US, 50


@dataclass(slots=True)
class QueuedLaunch:
    """A batch on its way: what is left to launch, and what was launched and has not ended.

    ``began`` is the mark before its first piece; ``after`` the end of the launch before, if the
    engine submitted this one as soon as it had heard of that end.
    """

    step: int
    batch: Batch
    side: Side
    pieces: Iterator[Piece] | None  # None: all are launched
    since: int  # host time of its last sign of life
    after: Mark | None = None
    began: Mark | None = None
    waiting: deque[Piece] = field(default_factory=deque)
    num_launched: int = 0  # repetitions
    num_ended: int = 0

    @property
    def where(self) -> str:
        """For errors."""
        return f"step {self.step} on partition '{self.batch.partition}' ({self.side.sms} SMs)"


class LaunchQueue:
    """At most one launch per partition (depth 1), and everything between submission and end.

    ``hung`` is set when the watchdog gave up: whoever waits for the GPU then waits for ever.
    """

    def __init__(self, runtime: Runtime, maker: PieceMaker, timeout_ns: int = TIMEOUT_NS) -> None:
        self._runtime, self._maker, self._timeout_ns = runtime, maker, timeout_ns
        self._launches: dict[str, QueuedLaunch] = {}
        # partition -> (the end of its last launch, in which turn of the engine it was told)
        self._told: dict[str, tuple[Mark, int]] = {}
        self._turn = 0
        self.gaps: dict[str, HostGap] = {}
        self.hung = False

    def __len__(self) -> int:
        return len(self._launches)

    def turn(self) -> None:
        """The engine waits: what it submits from now on may answer what it hears now."""
        self._turn += 1

    def busy(self, partition: str) -> bool:
        """Whether the partition has a launch on its way."""
        return partition in self._launches

    def add(self, step: int, batch: Batch, side: Side) -> None:
        """Take a batch. Decodes are launched at once; what holds a prompt waits for
        :meth:`advance`, and so for the decodes submitted after it.
        """
        launch = QueuedLaunch(
            step, batch, side, self._maker.pieces(batch, side), self._runtime.now(),
            self._follows(batch.partition),
        )  # fmt: skip
        self._launches[batch.partition] = launch
        if not batch.chunks:
            self._launch_piece(launch)

    def advance(self) -> bool:
        """Launch one more piece of each launch, decodes first; False if there is nothing to launch
        or enough is on its way.

        One of each, so that decode steps that end at once cannot hold up a prompt for ever.
        """
        moved = False
        for launch in sorted(self._launches.values(), key=lambda each: bool(each.batch.chunks)):
            if launch.pieces is not None and len(launch.waiting) < AHEAD:
                self._launch_piece(launch)
                moved = True
        return moved

    def collect(self) -> list[StepOutput]:
        """What has ended, without waiting. Raises NexusbenchError for work that failed."""
        outputs: list[StepOutput] = []
        for launch in list(self._launches.values()):
            try:
                while launch.waiting and launch.waiting[0].mark.reached():
                    launch.since = self._runtime.now()
                    output = self._end(launch, launch.waiting.popleft())
                    if output is not None:
                        outputs.append(output)
            except Exception as error:
                raise _failed(launch, error) from error
        return outputs

    def watch(self) -> None:
        """Raise NexusbenchError if a piece has been on the GPU for longer than any should be."""
        now = self._runtime.now()
        for launch in self._launches.values():
            if now - launch.since > self._timeout_ns:
                self.hung = True
                raise NexusbenchError(
                    f"{launch.where} has not ended in {self._timeout_ns / NS_PER_S:.0f} s: the GPU "
                    "hangs, or another process computes on it. Look at nvidia-smi; --no-graphs "
                    "tells whether it is CUDA graphs"
                )

    def nap(self, waited_ns: int, most_ns: int | None) -> None:
        """Leave the core to others for a moment, at most ``most_ns``."""
        nap = min(max(waited_ns // NAPS, SHORTEST_NAP_NS), LONGEST_NAP_NS)
        self._runtime.rest(nap if most_ns is None else min(nap, most_ns))

    def clear(self) -> None:
        """Give up what is not launched yet."""
        self._launches.clear()
        self._told.clear()

    def _follows(self, partition: str) -> Mark | None:
        """The end that this launch answers to, if the engine has not waited in between."""
        mark, turn = self._told.get(partition, (None, -1))
        return mark if turn == self._turn else None

    def _launch_piece(self, launch: QueuedLaunch) -> None:
        runtime = self._runtime
        assert launch.pieces is not None
        try:
            with runtime.on(launch.side):
                if launch.began is None:
                    launch.began = runtime.mark(launch.side)
                piece = next(launch.pieces)
        except Exception as error:
            raise _failed(launch, error) from error
        if not launch.waiting:
            launch.since = runtime.now()
        launch.waiting.append(piece)
        launch.num_launched += piece.planned is not None
        if launch.num_launched == launch.batch.repeat:
            launch.pieces = None

    def _end(self, launch: QueuedLaunch, piece: Piece) -> StepOutput | None:
        """Book a piece whose mark was reached."""
        if piece.planned is None:
            return None
        tokens: list[int] = [] if piece.host is None else piece.host.tolist()
        if tokens:
            self._maker.planner.finish(piece.planned, tokens)
        launch.num_ended += 1
        last = launch.num_ended == launch.batch.repeat
        if last:
            del self._launches[launch.batch.partition]
            self._note_gap(launch, piece.mark)
        return StepOutput(launch.step, self._runtime.now(), -1, last, tokens)

    def _note_gap(self, launch: QueuedLaunch, end: Mark) -> None:
        """How long the partition stood still before this launch although there was work."""
        partition = launch.batch.partition
        self._told[partition] = end, self._turn
        if launch.after is None or launch.began is None:
            return
        gap = max(0, launch.began.ns_since(launch.after))
        known = self.gaps.get(partition, HostGap(0, 0, 0))
        self.gaps[partition] = HostGap(
            known.count + 1, known.total_ns + gap, max(known.longest_ns, gap)
        )


def _failed(launch: QueuedLaunch, error: Exception) -> NexusbenchError:
    text = (str(error).splitlines() or [""])[0]
    return NexusbenchError(f"{launch.where} failed: {type(error).__name__}: {text}")
