"""One cell of a sweep: run, summarise, never raise for the run's own faults."""

from __future__ import annotations

import msgspec

from nexusbench.core.clock import now_ns
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError
from nexusbench.core.units import NS_PER_S
from nexusbench.experiments.store import Store
from nexusbench.metrics.summary import Summary
from nexusbench.serving.runner import run

CELL_SUFFIX = ".json"
_SCHEMA = 2


class SweepCell(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one run. ``wall_s``: real seconds that it took, for estimates only."""

    config: RunConfig
    status: str  # ok or failed
    error: str = ""
    digest: str = ""
    simulated: bool | None = None
    summary: Summary | None = None
    wall_s: float = 0.0
    schema: int = _SCHEMA

    @property
    def ok(self) -> bool:
        """It ran to its end."""
        return self.status == "ok"

    def value(self, tag: str, statistic: str = "value") -> float | None:
        """One statistic of one metric; None where the run has none."""
        return None if self.summary is None else self.summary.value(tag, statistic)


def run_cell(config: RunConfig) -> SweepCell:
    """Run ``config`` and keep nothing but its summary. Raises nothing but Interrupted and
    KeyboardInterrupt.
    """
    began = now_ns()
    try:
        result = run(config)
    except (Interrupted, KeyboardInterrupt):
        raise
    except NexusbenchError as error:
        return failed(config, str(error))
    except Exception as error:
        # A plug-in may raise anything: that is its cell's result.
        return failed(config, f"unexpected {type(error).__name__}: {error}")
    return SweepCell(
        config=config,
        status="ok",
        digest=result.event_digest,
        simulated=result.summary.simulated,
        summary=kept_of(result.summary),
        wall_s=round((now_ns() - began) / NS_PER_S, 3),
    )


def failed(config: RunConfig, error: str) -> SweepCell:
    """The cell of a run that failed."""
    text = " ".join(error.split())
    return SweepCell(config=config, status="failed", error=text)


def kept_of(summary: Summary) -> Summary:
    """``summary`` without formulas, which are the same in every cell, and without what statistics
    are without a part of the run, which is for verdicts.
    """
    return msgspec.structs.replace(summary, formulas={}, left_out={})


def read_cell(store: Store, key: str) -> SweepCell | None:
    """The kept cell of ``key``; None if there is none that this version can read."""
    content = store.get(key)
    try:
        cell = None if content is None else msgspec.json.decode(content, type=SweepCell)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return cell if cell is not None and cell.schema == _SCHEMA and cell.ok else None


def keep_cell(store: Store, key: str, cell: SweepCell) -> None:
    """Keep a cell that ran to its end; one that failed is tried again next time."""
    if cell.ok:
        store.put(key, msgspec.json.format(msgspec.json.encode(cell), indent=1))
