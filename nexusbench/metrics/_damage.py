"""Whether the event tables of a run fit together: order, indices, ends; the first row that does not
is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nexusbench.core.errors import InputError
from nexusbench.core.events import OUTCOMES, PREEMPTION_KINDS

if TYPE_CHECKING:
    from nexusbench.core.events import RunFacts

Tables = Mapping[str, Mapping[str, npt.NDArray[Any]]]
Where = Callable[[str, int], tuple[Path, int]]

_CHANGED = "The file was changed after the run: restore it, or run again"
# What happened when the engine's clock stood there: rows follow each other in time.
_ORDERED = (
    "admitted", "kv_blocked", "submitted", "step_done", "repartitioned", "preempted", "ended",
)  # fmt: skip
# Of columns that may be -1: unknown to the writer of the log.
_UNKNOWN = ("predicted", "solo", "cached_tokens")
_ONCE = ("arrived", "ended")


def check_requests(requests: Mapping[str, npt.NDArray[Any]]) -> None:
    """The requests are numbered. Raises InputError."""
    if not np.array_equal(requests["request"], np.arange(len(requests["request"]))):
        raise InputError("the requests of the run are not numbered 0..n-1; it is damaged")


def check_indices(table: str, request: npt.NDArray[Any], count: int, row: int = 0) -> None:
    """All name one of ``count`` requests; ``row`` is that of the first. Raises InputError."""
    if len(request) and (request.min() < 0 or request.max() >= count):
        bad = int(np.flatnonzero((request < 0) | (request >= count))[0])
        raise Misfit(
            table, row + bad, "request",
            f"names a request that does not exist: {request[bad]} of {count}",
        )  # fmt: skip


class Misfit(InputError):
    """A row that cannot be, by table and row; the reader of the file adds its name."""

    def __init__(
        self, table: str, row: int, column: str, problem: str, file: Path | None = None
    ) -> None:
        super().__init__(
            f"event table '{table}', row {row}: {problem}", file=file, field=column, hint=_CHANGED
        )
        self.table, self.row, self.column, self.what = table, row, column, problem

    def located(self, where: Where) -> Misfit:
        """The same with its file, and its row there."""
        file, row = where(self.table, self.row)
        return Misfit(self.table, row, self.column, self.what, file)


def check_tables(tables: Tables, requests: Mapping[str, npt.NDArray[Any]], facts: RunFacts) -> None:
    """Everything that metrics take for granted of a stored log. Raises Misfit for the first row
    that breaks it.
    """
    for table, column, highest in _codes(facts):
        _check_range(table, column, tables[table][column], 0, highest)
    for table, columns in tables.items():
        for column, values in columns.items():
            _check_range(table, column, values, -1 if column in _UNKNOWN else 0, None)
    for column in ("prompt_tokens", "output_tokens", "max_tokens"):
        _check_range("requests", column, requests[column], 0, None)
    # A client's rows are in the order of what it heard, which each metric sorts for itself.
    for table in _ORDERED if facts.observed == "engine" else ():
        _check_order(table, "time", tables[table]["time"])
    for table in _ONCE:
        _check_once(table, "request", tables[table]["request"])
    _check_known(tables, "ended", "request", tables["arrived"]["request"])
    if facts.observed == "engine":
        _check_once("submitted", "step", tables["submitted"]["step"])
        _check_known(tables, "step_done", "step", tables["submitted"]["step"])
        _check_known(tables, "chunk", "step", tables["submitted"]["step"])


def _codes(facts: RunFacts) -> Iterator[tuple[str, str, int]]:
    """Columns that are indices, and the highest value of each."""
    yield "ended", "outcome", len(OUTCOMES) - 1
    yield "preempted", "kind", len(PREEMPTION_KINDS) - 1
    yield "moved", "source", len(facts.pools) - 1
    yield "moved", "target", len(facts.pools) - 1
    yield "submitted", "partition", len(facts.partitions) - 1
    if facts.strings:
        yield "ended", "reason", len(facts.strings) - 1
        yield "repartitioned", "reason", len(facts.strings) - 1
    if facts.splits:
        yield "submitted", "split", len(facts.splits) - 1
        yield "repartitioned", "split", len(facts.splits) - 1


def _check_range(
    table: str, column: str, values: npt.NDArray[Any], low: int, high: int | None
) -> None:
    if not len(values):
        return
    if values.min() < low or (high is not None and values.max() > high):
        bad = values < low if high is None else (values < low) | (values > high)
        row = int(np.flatnonzero(bad)[0])
        within = f"{low} or more" if high is None else f"within {low}..{high}"
        raise Misfit(table, row, column, f"{values[row]} is not {within}")


def _check_order(table: str, column: str, values: npt.NDArray[Any]) -> None:
    back = np.flatnonzero(values[1:] < values[:-1])
    if len(back):
        row = int(back[0]) + 1
        raise Misfit(table, row, column, f"{values[row]} comes after {values[row - 1]}")


def _check_once(table: str, column: str, values: npt.NDArray[Any]) -> None:
    order = np.argsort(values, kind="stable")
    again = np.flatnonzero(values[order][1:] == values[order][:-1])
    if len(again):
        row = int(order[again + 1].min())
        raise Misfit(table, row, column, f"{values[row]} is there a second time")


def _check_known(tables: Tables, table: str, column: str, known: npt.NDArray[Any]) -> None:
    values = tables[table][column]
    strange = np.flatnonzero(~np.isin(values, known))
    if len(strange):
        row = int(strange[0])
        other = "arrived" if column == "request" else "submitted"
        raise Misfit(table, row, column, f"{values[row]} is not in event table '{other}'")
