"""How much a run computed and moved, counted from its event log and the model's sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nexusbench.core.work import Work
from nexusbench.metrics.pieces import later_layers

if TYPE_CHECKING:
    from nexusbench.metrics.run_events import RunEvents


class Counts(NamedTuple):
    """FLOPs and bytes of the measured launches."""

    flops: float
    bytes: float


def count_work(run: RunEvents, work: Work) -> Counts | None:
    """The work of every forward pass that began after the warm-up; None if prompts were computed
    layer by layer, where the log does not say how many layers a launch had.

    Weights count once a pass, keys and values once for each request that reads or writes them;
    activations are left out, they stay in the caches.
    """
    if later_layers(run).any():
        return None
    passes, submitted = run.iterations, run.tables["submitted"]
    keep = passes.start >= run.facts.warmup_ns
    launch = passes.launch[keep]
    made = run.tables["step_done"]["tokens"][keep].astype(np.float64)
    decodes = submitted["decodes"][launch].astype(np.float64)
    # Each repetition of a decode launch sees one more token of each request.
    keys = submitted["decode_context"][launch] + decodes * (1 + _turn(launch))
    queries = decodes + submitted["prefill_tokens"][launch]
    pairs, read = _chunk_work(run)
    pairs, read = keys + pairs[launch], keys + read[launch]
    flops = work.token_flops * queries + work.head_flops * made + work.pair_flops * pairs
    moved = work.weight_bytes + work.head_bytes * (made > 0) + work.kv_bytes * (read + queries)
    return Counts(float(flops.sum()), float(moved.sum()))


def _turn(launch: np.ndarray) -> np.ndarray:
    """For each pass, how many of its launch came before it; passes are in order of their ends."""
    order = np.argsort(launch, kind="stable")
    ordered = launch[order]
    new = np.flatnonzero(np.diff(ordered, prepend=-1))
    turn = np.empty(len(launch), dtype=np.int64)
    turn[order] = np.arange(len(launch)) - np.repeat(new, np.diff(np.append(new, len(launch))))
    return turn


def _chunk_work(run: RunEvents) -> tuple[np.ndarray, np.ndarray]:
    """(query, key) pairs and keys read by the chunks of each launch, by its row."""
    chunk, submitted = run.tables["chunk"], run.tables["submitted"]
    count = len(submitted["step"])
    if not len(chunk["step"]):
        return np.zeros(count), np.zeros(count)
    order = np.argsort(submitted["step"], kind="stable")
    row = order[np.searchsorted(submitted["step"], chunk["step"], sorter=order)]
    tokens, context = chunk["tokens"].astype(np.float64), chunk["context"]
    pairs = tokens * (context + (tokens + 1) / 2)
    return (
        np.bincount(row, weights=pairs, minlength=count),
        np.bincount(row, weights=context + tokens, minlength=count),
    )
