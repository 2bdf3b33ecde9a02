"""A run as arrays: event tables, request columns, facts, and quantities derived from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.events import OUTCOMES, SCHEMA, EventLog, RunFacts, StoredEvents
from nexusbench.core.registry import did_you_mean
from nexusbench.metrics.arrays import (
    MANY,
    BoolArray,
    IntArray,
    Intervals,
    Misfit,
    Tokens,
    apart,
    check_indices,
    check_requests,
    check_tables,
    gap_owners,
    own_column,
    pick,
    read_tokens,
    union,
)
from nexusbench.metrics.overlap import PrefillLaunches

Columns = Mapping[str, Any]

SLO_KEYS = ("ttft", "tbt", "tpot", "e2e")
SLO_ALIASES = {"itl": "tbt", "e2el": "e2e"}


def check_slo(slo: Mapping[str, float]) -> dict[str, float]:
    """SLO bounds in ms under their own names (itl is tbt, e2el is e2e). Raises UsageError."""
    checked: dict[str, float] = {}
    for name, bound in slo.items():
        key = SLO_ALIASES.get(name, name)
        if key not in SLO_KEYS:
            raise UsageError(f"no SLO called '{name}'. {did_you_mean(name, list(SLO_KEYS))}")
        if not (math.isfinite(bound) and bound > 0):
            raise UsageError(f"SLO '{name}' is {bound}; give a bound in ms above 0")
        if key in checked:
            raise UsageError(f"SLO '{key}' is given twice")
        checked[key] = float(bound)
    return {key: checked[key] for key in SLO_KEYS if key in checked}


class EventSource(Protocol):
    """A stored run."""

    def events(self) -> StoredEvents:
        """The run's arrays and facts."""


class Iterations(NamedTuple):
    """Completed forward passes, one per row of ``step_done``; times in ns, ``solo`` -1 where
    unknown.
    """

    launch: IntArray  # its row in ``submitted``
    start: IntArray
    end: IntArray
    solo: IntArray


class Launches(NamedTuple):
    """Completed launches; times in ns, ``solo`` -1 where unknown."""

    row: IntArray  # in ``submitted``
    start: IntArray
    end: IntArray
    solo: IntArray


class RunEvents:
    """All facts of one run. Arrays over requests are indexed by request; times are ns, -1 for
    "never".

    Works on the log of a killed run too: requests without an end count as unfinished. "Measured" is
    what began at or after ``warmup_ns``: requests by arrival, launches by start.
    """

    def __init__(self, tables: Mapping[str, Columns], requests: Columns, facts: RunFacts) -> None:
        """Take equally long columns per table of SCHEMA. Raises InputError if they do not fit
        together.
        """
        self.facts = msgspec.structs.replace(facts, slo=check_slo(facts.slo))
        self.requests: dict[str, npt.NDArray[Any]] = {
            name: np.asarray(column, dtype=object if name in ("id", "tenant") else np.int64)
            for name, column in requests.items()
        }
        self.tables: dict[str, dict[str, npt.NDArray[Any]]] = {}
        for name, columns in SCHEMA.items():
            if name != "token":
                table = tables[name]
                self.tables[name] = {c: own_column(table[c], np.int64) for c in columns}
        # The one long table: kept only if it is held anyway, else read again when it is needed.
        self._token_source = tables
        self.num_requests = len(self.requests["request"])
        self._check()

    @classmethod
    def from_log(cls, log: EventLog, requests: Columns, facts: RunFacts) -> RunEvents:
        """The run of a log that was never drained; the log's strings are added to the facts."""
        facts = msgspec.structs.replace(facts, strings=tuple(log.strings))
        return cls({name: table.columns for name, table in log.tables.items()}, requests, facts)

    @classmethod
    def from_reader(
        cls,
        reader: EventSource,
        *,
        slo: Mapping[str, float] | None = None,
        warmup_ns: int | None = None,
        price_per_hour: float | None = None,
        watts: float | None = None,
    ) -> RunEvents:
        """A stored run, optionally judged by another SLO, warm-up, price or power than its own."""
        stored = reader.events()
        asked = {
            "slo": slo if slo is None else dict(slo),
            "warmup_ns": warmup_ns,
            "price_per_hour": price_per_hour,
            "watts": watts,
        }
        changes = {key: value for key, value in asked.items() if value is not None}
        facts = msgspec.structs.replace(stored.facts, **changes)
        try:
            run = cls(stored.tables, stored.requests, facts)
            check_tables(run.tables, run.requests, facts)
        except Misfit as error:
            raise error.located(stored.tables.locate) from None
        return run

    def _check(self) -> None:
        check_requests(self.requests)
        for name, columns in self.tables.items():
            if "request" in columns:
                check_indices(name, columns["request"], self.num_requests)
        self._check_tokens()

    # Requests -------------------------------------------------------------------------------------

    @cached_property
    def arrival(self) -> IntArray:
        """Scheduled arrival; -1 for what waits for a request that has not ended."""
        arrival = self.requests["arrival"].copy()
        arrival[self.tables["arrived"]["request"]] = self.tables["arrived"]["time"]
        return arrival

    @cached_property
    def offered(self) -> BoolArray:
        """It arrived; in an interrupted run the rest of the trace never did."""
        offered = np.zeros(self.num_requests, dtype=np.bool_)
        offered[self.tables["arrived"]["request"]] = True
        return offered

    @cached_property
    def measured(self) -> BoolArray:
        """Offered, and not in the warm-up."""
        late: BoolArray = self.arrival >= self.facts.warmup_ns
        return self.offered & late

    @cached_property
    def first_admission(self) -> IntArray:
        """Row of ``admitted`` where a request first left the queue."""
        requests = self.tables["admitted"]["request"]
        rows = np.full(self.num_requests, -1, dtype=np.int64)
        # The last assignment to an index wins, so going backwards leaves the first.
        rows[requests[::-1]] = np.arange(len(requests))[::-1]
        return rows

    @cached_property
    def first_admitted(self) -> IntArray:
        """When a request first left the queue; to a client, when it was sent."""
        return pick(self.tables["admitted"]["time"], self.first_admission)

    @cached_property
    def outcome(self) -> IntArray:
        """Index into OUTCOMES, -1 for unfinished."""
        outcome = np.full(self.num_requests, -1, dtype=np.int64)
        outcome[self.tables["ended"]["request"]] = self.tables["ended"]["outcome"]
        return outcome

    @cached_property
    def ended(self) -> IntArray:
        """When a request ended, however it did."""
        ended = np.full(self.num_requests, -1, dtype=np.int64)
        ended[self.tables["ended"]["request"]] = self.tables["ended"]["time"]
        return ended

    @cached_property
    def finished(self) -> BoolArray:
        """Measured requests that finished."""
        finished: BoolArray = self.outcome == OUTCOMES.index("finished")
        return self.measured & finished

    @cached_property
    def answered(self) -> BoolArray:
        """Measured requests that got a first token, whatever became of them."""
        begun: BoolArray = self.num_output_tokens > 0
        return self.measured & begun

    # Tokens ---------------------------------------------------------------------------------------

    def token_parts(self) -> Iterator[npt.NDArray[np.int32]]:
        """The request of each token, in the order of the log, in pieces."""
        source = self._token_source
        pieces = source.parts("token") if hasattr(source, "parts") else [source["token"]]
        for piece in pieces:
            yield own_column(piece["request"], np.int32)

    def _check_tokens(self) -> None:
        total = 0
        for part in self.token_parts():
            check_indices("token", part, self.num_requests, total)
            total += len(part)
        if total != self.tables["step_done"]["tokens"].sum():
            raise InputError(
                "event tables 'token' and 'step_done' do not agree; the run is damaged"
            )

    def _read_tokens(self) -> Tokens:
        done, client = self.tables["step_done"], self.facts.observed == "client"
        tokens = read_tokens(self.token_parts, done["time"], done["tokens"], self.num_requests)
        return apart(tokens, self.token_parts) if client else tokens

    @cached_property
    def _tokens(self) -> Tokens:
        tokens = self._read_tokens()
        few = tokens.gaps is not None and len(tokens.gaps) <= MANY
        return tokens if few else tokens._replace(gaps=None)

    @property
    def num_output_tokens(self) -> IntArray:
        """Tokens that a request got."""
        return self._tokens.number

    @property
    def first_token(self) -> IntArray:
        """When a request got its first token."""
        return self._tokens.first

    @property
    def last_token(self) -> IntArray:
        """When a request got its last token so far."""
        return self._tokens.last

    @cached_property
    def num_gaps(self) -> IntArray:
        """A request's tokens after the first."""
        return np.maximum(self.num_output_tokens - 1, 0)

    @property
    def gaps(self) -> npt.NDArray[Any]:
        """Every gap between consecutive tokens of a request, in order of the later token;
        preemptions included.

        Tokens that came to a client together have none.
        More than MANY are not kept: each call reads them again, and the caller may overwrite them.
        """
        kept = self._tokens.gaps
        if kept is not None:
            return kept
        read = self._read_tokens().gaps
        assert read is not None
        return read

    @cached_property
    def gap_request(self) -> npt.NDArray[np.int32]:
        """The request of each of ``gaps``."""
        owners = self._tokens.owners
        return gap_owners(self.token_parts, self.num_requests) if owners is None else owners

    @cached_property
    def stalled(self) -> BoolArray:
        """For each of ``gaps`` of an engine's log, whether it overlaps another's prefill."""
        prefills = PrefillLaunches(
            self.all_launches, self.tables["submitted"], self.tables["chunk"], self.first_token
        )
        done = self.tables["step_done"]
        return prefills.overlapped_gaps(self.token_parts, done["time"], done["tokens"])

    # Window ---------------------------------------------------------------------------------------

    @cached_property
    def window(self) -> tuple[int, int]:
        """First measured arrival, and the last end or token of a measured request; ns."""
        if not self.measured.any():
            return 0, 0
        start = int(self.arrival[self.measured].min())
        last = np.maximum(self.ended, self.last_token)[self.measured].max()
        return start, max(start, int(last))

    @property
    def makespan(self) -> int:
        """Length of the window, ns."""
        return self.window[1] - self.window[0]

    # Steps ----------------------------------------------------------------------------------------

    @cached_property
    def iterations(self) -> Iterations:
        """Completed forward passes, in order of their ends.

        A pass begins when it was launched, or when its partition ended the pass before if that is
        later: a device with a queue of depth 2 takes a batch before it can start it.
        """
        if self.facts.observed == "client":  # sees deliveries, no passes
            return Iterations(*[np.empty(0, dtype=np.int64)] * 4)
        done, submitted = self.tables["step_done"], self.tables["submitted"]
        order = np.argsort(submitted["step"], kind="stable")
        launch = np.searchsorted(submitted["step"], done["step"], sorter=order)
        if len(launch) and launch.max() >= len(order):
            raise InputError("event table 'step_done' names a step that was never submitted")
        launch = order[launch] if len(launch) else launch
        if not np.array_equal(submitted["step"][launch], done["step"]):
            raise InputError("event table 'step_done' names a step that was never submitted")
        start, partition = submitted["time"][launch], submitted["partition"][launch]
        for code in np.unique(partition):
            rows = np.flatnonzero(partition == code)
            start[rows[1:]] = np.maximum(start[rows[1:]], done["time"][rows[:-1]])
        return Iterations(launch, start, done["time"], done["solo"])

    @cached_property
    def all_launches(self) -> Launches:
        """Completed launches, those of the warm-up too; one of several passes lasts from first to
        last.
        """
        passes, count = self.iterations, len(self.tables["submitted"]["step"])
        start, end, solo = (np.full(count, -1, dtype=np.int64) for _ in range(3))
        start[passes.launch[::-1]] = passes.start[::-1]
        end[passes.launch] = passes.end
        solo[passes.launch] = 0
        np.add.at(solo, passes.launch, passes.solo)
        solo[passes.launch[passes.solo < 0]] = -1
        rows = np.flatnonzero(end >= 0)
        return Launches(rows, start[rows], end[rows], solo[rows])

    @cached_property
    def launches(self) -> Launches:
        """Those of ``all_launches`` that began after the warm-up."""
        late = self.all_launches.start >= self.facts.warmup_ns
        return Launches(*(column[late] for column in self.all_launches))

    def of_launches(self, column: str) -> IntArray:
        """A column of ``submitted`` for each of ``launches``."""
        return self.tables["submitted"][column][self.launches.row]

    @cached_property
    def busy(self) -> Intervals:
        """When at least one partition computed, within the window."""
        return self.busy_of(None)

    def busy_of(self, partition: int | None) -> Intervals:
        """When a partition (index into the facts' partitions; None for any) computed, within the
        window.
        """
        launches = self.launches
        keep = slice(None) if partition is None else self.of_launches("partition") == partition
        start, end = self.window
        return union(
            np.clip(launches.start[keep], start, end), np.clip(launches.end[keep], start, end)
        )
