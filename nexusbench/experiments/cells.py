"""One cell of a sweep: run, summarise, never raise for the run's own faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from nexusbench.core.clock import now_ns
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError
from nexusbench.core.units import NS_PER_S
from nexusbench.experiments.store import Store
from nexusbench.serving.runner import run

CELL_SUFFIX = ".json"
_SCHEMA = 1
# Formulas are the same in every cell, decision times are real time, and what statistics are without
# a part of the run is for verdicts: none is a result.
_LEFT_OUT = ("formulas", "decision_us", "left_out")


class SweepCell(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run. ``wall_s`` is what it took in real seconds, for estimates only."""

    config: RunConfig
    status: str  # ok or failed
    error: str = ""
    digest: str = ""
    simulated: bool | None = None
    summary: dict[str, Any] = {}
    wall_s: float = 0.0
    schema: int = _SCHEMA

    @property
    def ok(self) -> bool:
        """It ran to its end."""
        return self.status == "ok"


def run_cell(config: RunConfig) -> SweepCell:
    """Run ``config`` and keep nothing but its summary. Only Ctrl-C gets out of here."""
    began = now_ns()
    try:
        result = run(config)
    except (Interrupted, KeyboardInterrupt):
        raise
    except NexusbenchError as error:
        return failed(config, str(error))
    except Exception as error:
        # Somebody's policy may raise anything: that is its cell's result.
        return failed(config, f"unexpected {type(error).__name__}: {error}")
    kept = {key: value for key, value in result.summary.items() if key not in _LEFT_OUT}
    return SweepCell(
        config=config,
        status="ok",
        digest=result.event_digest,
        simulated=result.summary["simulated"],
        summary=kept,
        wall_s=round((now_ns() - began) / NS_PER_S, 3),
    )


def failed(config: RunConfig, error: str) -> SweepCell:
    """The cell of a run that did not come to its end."""
    text = " ".join(error.split())
    return SweepCell(config=config, status="failed", error=text)


class _Entry(msgspec.Struct):
    direction: str
    value: float | None = None
    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    min: float | None = None
    max: float | None = None


class _Measured(msgspec.Struct):
    """What tables and claims read of a cell's summary."""

    metrics: dict[str, _Entry]


def read_cell(store: Store, key: str) -> SweepCell | None:
    """The kept cell of ``key``; None if there is none that this version can read."""
    content = store.get(key)
    try:
        cell = None if content is None else msgspec.json.decode(content, type=SweepCell)
        if cell is not None:
            msgspec.convert(cell.summary, _Measured)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return cell if cell is not None and cell.schema == _SCHEMA and cell.ok else None


def keep_cell(store: Store, key: str, cell: SweepCell) -> None:
    """Keep a cell that ran to its end; one that failed is tried again next time."""
    if cell.ok:
        store.put(key, msgspec.json.format(msgspec.json.encode(cell), indent=1))


CellFunction = Callable[[RunConfig], SweepCell]
