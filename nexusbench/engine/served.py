"""What is seen of a run from outside while it is served: by one engine, or by a fleet of them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from nexusbench.core.batch import Split
from nexusbench.core.events import EventLog
from nexusbench.core.request import Request
from nexusbench.engine.executor import Executor
from nexusbench.engine.shared import SharedState


class Served:
    """Counts over all engines of a run. ``decision_ns`` has one entry per call of a policy, if a
    stopwatch was given.
    """

    log: EventLog
    requests: Sequence[Request]
    shared: SharedState
    executors: Sequence[Executor]
    decision_ns: array[int]

    @property
    def now_ns(self) -> int:
        """The run's clock."""
        return max(state.now for state in self.shared.states)

    @property
    def simulated(self) -> bool:
        """Whether the clock is a virtual one."""
        return self.shared.states[0].device.simulated

    @property
    def num_arrived(self) -> int:
        """Requests that have been offered so far."""
        return len(self.requests) - self.shared.arrivals.num_left

    @property
    def num_steps(self) -> int:
        """Launches so far."""
        return self.shared.num_steps

    @property
    def num_ended(self) -> int:
        """Requests that have ended."""
        return sum(executor.num_ended for executor in self.executors)

    @property
    def num_tokens(self) -> int:
        """Tokens generated so far."""
        return sum(executor.num_tokens for executor in self.executors)

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return sum(state.num_running for state in self.shared.states)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for KV blocks."""
        return sum(len(state.waiting) for state in self.shared.states)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use: of (first) pools, the mean over the engines."""
        states = self.shared.states
        return sum(state.kv.usage for state in states) / len(states)

    @property
    def split(self) -> Split:
        """In force now, of the first engine."""
        return self.shared.states[0].split

    @property
    def splits(self) -> Sequence[Split]:
        """Those that the log's codes stand for."""
        return self.shared.splits
