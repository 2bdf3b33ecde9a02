"""Where one request's time went: parts that add up to its end-to-end latency, to the nanosecond."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import zip_longest

import msgspec
import numpy as np

from nexusbench.core.errors import UsageError
from nexusbench.core.events import OUTCOMES
from nexusbench.metrics.arrays import IntArray
from nexusbench.metrics.launches import later_layers
from nexusbench.metrics.run_events import RunEvents

# Part -> what it means; in the order in which it is shown.
PARTS = {
    "queue": "from arrival to the first admission, other than for want of KV blocks",
    "kv_wait": "waiting for KV blocks, before the first admission or after a preemption",
    "requeue": "waiting again after a preemption, other than for want of KV blocks",
    "compute": "in running steps, as long as they would have taken without a neighbour",
    "contention": "in running steps, what a neighbour on the GPU added",
    "kv_copy": "while its KV blocks were copied: to another GPU, to the host or back",
    "between_steps": "admitted, in no running step",
}
# The same of a request that a client sent.
CLIENT_PARTS = {
    "unsent": "from arrival to when it was sent: the client's own lateness",
    "first": "sent, until its first token came: the network, the server's queue and its prefill",
    "tokens": "from its first token to its last",
    "end": "after its last token, or without any, until its end was known",
}


class Explanation(msgspec.Struct, frozen=True):
    """Where a request's time went. Times are ns; ``parts`` has the keys of PARTS (of CLIENT_PARTS
    where a client ``observed`` it) and sums to ``total_ns``.

    ``total_ns`` is the end-to-end latency, or the time to the end of the log for an unfinished
    request. Where the device does not know solo times, ``contention_known`` is False and contention
    is in compute.
    """

    id: str
    index: int
    tenant: str
    simulated: bool
    outcome: str
    reason: str
    arrival_ns: int
    total_ns: int
    ttft_ns: int | None
    parts: dict[str, int]
    prompt_tokens: int
    cached_tokens: int  # at the first admission
    output_tokens: int
    steps: int
    chunks: int
    preemptions: int
    lost_tokens: int
    mean_batch: float | None  # requests per step it took part in
    contention_known: bool
    observed: str = "engine"


def find_request(run: RunEvents, request: str) -> int:
    """Index of the request with this id, or with this index if no id matches. Raises UsageError."""
    ids = run.requests["id"].tolist()
    if request in ids:
        return int(ids.index(request))
    if request.isdecimal() and int(request) < run.num_requests:
        return int(request)
    if not ids:
        raise UsageError(f"no request '{request}': this run has none")
    text = f"no request '{request}' among the {len(ids):,} of this run, '{ids[0]}' to '{ids[-1]}'"
    # Numbers are all alike: only of a name a near miss is likely to be a slip.
    near = [] if request.isdecimal() else get_close_matches(request, ids[:1000], n=1)
    raise UsageError(f"{text}. Did you mean '{near[0]}'?" if near else text)


def explain(run: RunEvents, request: int) -> Explanation:
    """Where the time of request ``request`` (its index) went. Raises UsageError if it is not in the
    run.
    """
    if not 0 <= request < run.num_requests or not run.offered[request]:
        raise UsageError(
            f"request {request} never arrived in this run ({run.num_requests} requests)"
        )
    arrival = int(run.arrival[request])
    end = _end(run, request)
    rows, known = np.empty(0, dtype=np.int64), True
    if run.facts.observed == "client":
        parts = _client_parts(run, request, end)
    else:
        parts = dict.fromkeys(PARTS, 0)
        copies = _copies(run, request)
        _add_waits(run, request, end, copies, parts)
        rows = _iterations_of(run, request)
        known = _add_steps(run, rows, (arrival, end), parts)
        parts["kv_copy"] = _within(copies, arrival, end)
        parts["between_steps"] = end - arrival - sum(parts.values())
    launches, submitted = run.iterations.launch[rows], run.tables["submitted"]
    sizes = submitted["decodes"][launches] + submitted["chunks"][launches]
    preempted = run.tables["preempted"]["request"] == request
    admission = int(run.first_admission[request])
    return Explanation(
        id=str(run.requests["id"][request]),
        index=request,
        tenant=str(run.requests["tenant"][request]),
        simulated=run.facts.simulated,
        outcome=OUTCOMES[run.outcome[request]] if run.outcome[request] >= 0 else "unfinished",
        reason=_reason(run, request),
        arrival_ns=arrival,
        total_ns=end - arrival,
        ttft_ns=int(run.first_token[request]) - arrival if run.num_output_tokens[request] else None,
        parts=parts,
        prompt_tokens=int(run.requests["prompt_tokens"][request]),
        cached_tokens=(
            max(0, int(run.tables["admitted"]["cached_tokens"][admission])) if admission >= 0 else 0
        ),
        output_tokens=int(run.num_output_tokens[request]),
        steps=len(rows),
        chunks=int((run.tables["chunk"]["request"][~later_layers(run)] == request).sum()),
        preemptions=int(preempted.sum()),
        lost_tokens=int(run.tables["preempted"]["lost_tokens"][preempted].sum()),
        mean_batch=float(sizes.mean()) if len(sizes) else None,
        contention_known=known,
        observed=run.facts.observed,
    )


def _client_parts(run: RunEvents, request: int, end: int) -> dict[str, int]:
    """The parts that a client can observe: sending, first token, last token, end."""
    marks = [int(run.arrival[request])]
    for time in (
        run.first_admitted[request],
        run.first_token[request],
        run.last_token[request],
    ):
        marks.append(int(time) if time >= 0 else -1)
    marks.append(end)
    parts, since = dict.fromkeys(CLIENT_PARTS, 0), marks[0]
    for part, mark in zip(CLIENT_PARTS, marks[1:], strict=True):
        if mark >= 0:
            parts[part], since = mark - since, mark
    return parts


def _end(run: RunEvents, request: int) -> int:
    """When the request ended; for an unfinished one the last time in the log, not before its
    arrival.
    """
    if run.ended[request] >= 0:
        return int(run.ended[request])
    last = [
        columns["time"].max() for columns in run.tables.values() if len(columns.get("time", ()))
    ]
    return max(int(run.arrival[request]), *map(int, last))


def _reason(run: RunEvents, request: int) -> str:
    ended = run.tables["ended"]
    codes = ended["reason"][ended["request"] == request]
    known = len(codes) and 0 <= codes[0] < len(run.facts.strings)
    return run.facts.strings[int(codes[0])] if known else ""


def _copies(run: RunEvents, request: int) -> list[tuple[int, int]]:
    """When its blocks were under way, ns; one copy at a time, and never in a running step (I11)."""
    moved = run.tables["moved"]
    mine = moved["request"] == request
    return list(zip(moved["time"][mine].tolist(), moved["end"][mine].tolist(), strict=True))


def _within(spans: Sequence[tuple[int, int]], begin: int, end: int) -> int:
    """How much of ``spans`` lies between two moments."""
    return sum(max(0, min(end, until) - max(begin, since)) for since, until in spans)


def _add_waits(
    run: RunEvents,
    request: int,
    end: int,
    copies: Sequence[tuple[int, int]],
    parts: dict[str, int],
) -> None:
    """Add the time in the waiting queue, less that of copies: a request that is swapped out
    waits for its copies too. Each wait ends with an admission, or with the request.
    """
    admitted = _times(run, "admitted", request)
    blocked = _times(run, "kv_blocked", request)
    begins = [int(run.arrival[request]), *_times(run, "preempted", request)]
    waits = zip_longest(begins, admitted[: len(begins)], fillvalue=end)
    for number, (begin, until) in enumerate(waits):
        since = next((time for time in blocked if begin <= time <= until), until)
        first = "queue" if number == 0 else "requeue"
        parts[first] += since - begin - _within(copies, begin, since)
        parts["kv_wait"] += until - since - _within(copies, since, until)


def _times(run: RunEvents, table: str, request: int) -> list[int]:
    columns = run.tables[table]
    times: list[int] = columns["time"][columns["request"] == request].tolist()
    return times


def _iterations_of(run: RunEvents, request: int) -> IntArray:
    """The completed forward passes a request took part in: with a chunk, or by getting a token."""
    passes, chunk, done = run.iterations, run.tables["chunk"], run.tables["step_done"]
    steps = chunk["step"][chunk["request"] == request]
    with_chunk = np.flatnonzero(np.isin(done["step"], steps))
    its = [np.empty(0, dtype=np.bool_), *(part == request for part in run.token_parts())]
    tokens = np.flatnonzero(np.concatenate(its))
    with_token = np.searchsorted(np.cumsum(done["tokens"]), tokens, side="right")
    rows = np.union1d(with_chunk, with_token)
    return rows[np.argsort(passes.start[rows], kind="stable")]


def _add_steps(
    run: RunEvents, rows: IntArray, life: tuple[int, int], parts: dict[str, int]
) -> bool:
    """Add the time in running steps; False if a step's solo time is unknown."""
    passes = run.iterations
    starts, ends = np.clip(passes.start[rows], *life), np.clip(passes.end[rows], *life)
    if len(rows):
        # A request is in one step at a time; should two overlap, no moment is counted twice.
        starts[1:] = np.maximum(starts[1:], np.maximum.accumulate(ends)[:-1])
    actual = np.maximum(ends - starts, 0)
    solo = passes.solo[rows]
    compute = np.where(solo >= 0, np.minimum(solo, actual), actual)
    parts["compute"] += int(compute.sum())
    parts["contention"] += int((actual - compute).sum())
    return bool((solo >= 0).all())
