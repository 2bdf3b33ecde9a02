"""Who was there while a request waited and ran: the other half of why it took so long."""

from __future__ import annotations

import msgspec
import numpy as np

from nexusbench.metrics.arrays import BoolArray
from nexusbench.metrics.launches import chunk_numbers
from nexusbench.metrics.run_events import RunEvents

MOST_NAMED = 5


class Prompt(msgspec.Struct, frozen=True):
    """Another request, and how many of its prompt tokens were computed in the time looked at."""

    id: str
    tokens: int


class Neighbours(msgspec.Struct, frozen=True):
    """What others did between a request's arrival and its first token.

    ``overtook`` arrived later and were admitted earlier; ``admitted_before`` were admitted while it
    waited; ``prefills`` are the largest prompts computed in that time, ``prefill_tokens`` all of
    them.
    """

    waiting_at_arrival: int
    admitted_before: int
    overtook: int
    prefill_tokens: int
    prefills: list[Prompt]


def neighbours_of(run: RunEvents, request: int) -> Neighbours:
    """Who was there until the first token of ``request`` (or its end, or the log's)."""
    arrival = int(run.arrival[request])
    admitted = int(run.first_admitted[request])
    first = int(run.first_token[request])
    last = int(run.ended[request])
    if last < 0:
        last = max(int(c["time"].max()) for c in run.tables.values() if len(c.get("time", ())))
    waited_until = admitted if admitted >= 0 else last
    until = first if first >= 0 else last
    others: BoolArray = run.offered & (np.arange(run.num_requests) != request)
    was_admitted = others & (run.first_admitted >= 0)
    here = (run.first_admitted > arrival) & (run.first_admitted <= waited_until)
    before = was_admitted & here
    gone = (run.ended >= 0) & (run.ended <= arrival)
    queued = others & (run.arrival <= arrival) & ~gone
    queued &= (run.first_admitted < 0) | (run.first_admitted > arrival)
    tokens = _prefilled(run, arrival, until)
    tokens[request] = 0
    largest = np.argsort(-tokens, kind="stable")[:MOST_NAMED]
    return Neighbours(
        waiting_at_arrival=int(queued.sum()),
        admitted_before=int(before.sum()),
        overtook=int((before & (run.arrival > arrival)).sum()),
        prefill_tokens=int(tokens.sum()),
        prefills=[
            Prompt(str(run.requests["id"][index]), int(tokens[index]))
            for index in largest.tolist()
            if tokens[index]
        ],
    )


def _prefilled(run: RunEvents, begin: int, end: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Prompt tokens computed per request in passes that overlap (begin, end]; those of a chunk that
    went through its layers in several launches once.
    """
    chunk, passes = run.tables["chunk"], run.iterations
    steps = run.tables["submitted"]["step"][passes.launch]
    inside = steps[(passes.end > begin) & (passes.start < end)]
    rows = np.flatnonzero(np.isin(chunk["step"], inside))
    rows = rows[np.unique(chunk_numbers(run)[rows], return_index=True)[1]]
    counts = np.bincount(
        chunk["request"][rows], weights=chunk["tokens"][rows], minlength=run.num_requests
    )
    return counts.astype(np.int64)
