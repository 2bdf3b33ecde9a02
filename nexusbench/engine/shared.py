"""What all engines of a run share: its clients, the numbers of its steps, its splits."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.core.batch import Split
from nexusbench.core.host import EngineHost
from nexusbench.core.request import Request
from nexusbench.core.state import EngineState
from nexusbench.engine.arrivals import Patience, arrivals_at


class SharedState:
    """One clock, one event log: steps are numbered and splits are listed over all engines, and
    what a row says of KV blocks and queues counts all of them.
    """

    __slots__ = ("arrivals", "num_steps", "patience", "splits", "states")

    def __init__(
        self, requests: Sequence[Request], concurrency: int = 0, host: EngineHost | None = None
    ) -> None:
        self.arrivals = arrivals_at(host, requests, concurrency)
        self.patience = Patience(requests)
        self.num_steps = 0
        self.splits: list[Split] = []  # row = split code of the log
        self.states: list[EngineState] = []  # one for each engine, in their order

    def loads(self) -> tuple[int, int, int]:
        """KV blocks in use on all GPUs, requests that hold some, requests that wait for some."""
        used = running = waiting = 0
        for state in self.states:
            for kv in state.pools[: state.device.num_gpus]:
                used += kv.num_used
            running += state.num_running
            waiting += len(state.waiting)
        return used, running, waiting
