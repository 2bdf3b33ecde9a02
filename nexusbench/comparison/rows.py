"""The side-by-side table: which rows, which value is best, which is weak."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from nexusbench.comparison.level import rivals_in
from nexusbench.comparison.view import Column, Estimate, gpus_differ
from nexusbench.core.parts import unit_of

STATISTICS = ("mean", "p50", "p95", "p99")
LATENCIES = (
    ("TTFT", "ttft"),
    ("  queueing", "ttft_queueing"),
    ("  service", "ttft_service"),
    ("TBT (ITL)", "tbt"),
    ("TPOT", "tpot"),
    ("end to end", "e2e"),
)
# Title, unit, tag, statistic; a row that no run has a value for is left out.
SCALARS = (
    (
        ("requests finished", "", "finished", "value"),
        ("  by an end token", "", "finished_stop", "value"),
        ("rejected", "", "rejected", "value"),
        ("failed", "", "failed", "value"),
        ("cancelled", "", "cancelled", "value"),
        ("unfinished", "", "unfinished", "value"),
        ("request throughput", "req/s", "request_throughput", "value"),
        ("output throughput", "tok/s", "output_throughput", "value"),
        ("goodput", "req/s", "goodput", "value"),
        ("SLO attainment", "% of offered", "attainment", "value"),
        ("cost", "$/M output tok", "cost_per_mtok", "value"),
        ("energy", "J/output token", "joules_per_token", "value"),
    ),
    (
        ("preemptions", "", "preemptions", "value"),
        ("KV use, mean", "%", "kv_use_mean", "value"),
        ("KV use, peak", "%", "kv_use_peak", "value"),
        ("prefix hit rate", "%", "prefix_hit_rate", "value"),
    ),
    (
        ("SMs of prefill, mean", "", "sms_prefill", "value"),
        ("SMs of decode, mean", "", "sms_decode", "value"),
        ("SMs undivided, mean", "", "sms_all", "value"),
        ("split in force", "% of busy", "split_in_force", "value"),
        ("re-partitions", "", "repartitions", "value"),
        ("contention", "% of compute", "contention", "value"),
        ("MFU", "% of GEMM rate", "mfu", "value"),
        ("MBU", "% of read rate", "mbu", "value"),
        ("belief error, MAPE", "%", "belief_error", "mean"),
        ("belief bias", "%", "belief_bias", "mean"),
    ),
    (
        ("decision time, mean", "µs, real", "decision_us", "mean"),
        ("host gap, mean", "µs", "host_gap", "value"),
        ("send lag, p50", "ms", "send_lag", "p50"),
        ("send lag, p99", "ms", "send_lag", "p99"),
        ("send lag, max", "ms", "send_lag", "max"),
    ),
)
# Shown where runs on different numbers of GPUs stand side by side.
PER_GPU = (
    ("  per GPU", "req/s", "request_throughput"),
    ("  per GPU", "tok/s", "output_throughput"),
    ("  per GPU", "req/s", "goodput"),
)
# Shown only where they are not zero in every column: their absence is no news.
_ONLY_IF_ANY = ("finished_stop", "rejected", "failed", "cancelled", "unfinished")
_SECONDS_FROM_MS = 1000.0
# What runs one batch at a time has no contention: that is no merit.
_DIRECTIONS = {"decision_us": "lower", "contention": "none"}


class Cell(msgspec.Struct):
    """One value: ``text`` without marks; ``best`` of its row, ``weak`` for want of samples."""

    text: str
    best: bool = False
    weak: bool = False

    @property
    def marked(self) -> str:
        """The text with its marks."""
        return self.text + ("~" if self.weak else "") + ("*" if self.best else "")


class Row(msgspec.Struct):
    """A row: ``title`` is empty where it goes on with the metric above; ``last`` of its section."""

    title: str
    name: str
    cells: list[Cell]
    last: bool = False


def make_rows(columns: Sequence[Column]) -> list[Row]:
    """All rows that have a value."""
    rows: list[Row] = []
    in_seconds = {tag: _slow(columns, tag) for _, tag in LATENCIES}
    # The parts of TTFT are shown in its unit, so that they add up before the reader's eyes.
    in_seconds["ttft_queueing"] = in_seconds["ttft_service"] = in_seconds["ttft"]
    for position, (title, tag) in enumerate(LATENCIES):
        unit, scale = ("s", 1e-3) if in_seconds[tag] else ("ms", 1.0)
        for name in STATISTICS:
            row = _row(columns, f"{title}, {unit}" if name == "mean" else "", name, tag, scale)
            if row is not None:
                rows.append(row)
        following = LATENCIES[position + 1][0] if position + 1 < len(LATENCIES) else ""
        if rows and not following.startswith("  "):
            rows[-1].last = True
    per_gpu = gpus_differ(columns)
    for section in SCALARS:
        made = []
        for declared in section:
            made.append(_scalar_row(columns, *declared))
            if per_gpu:
                made += [_row_per_gpu(columns, *row) for row in PER_GPU if row[2] == declared[2]]
        if per_gpu and section is SCALARS[0]:
            made.insert(0, Row("GPUs", "", [Cell(str(column.gpus)) for column in columns]))
        if section[0][2] == "sms_prefill":
            made.append(_split_row(columns))
            made = [_in_units(columns, row) for row in made]
        rows += [row for row in made if row is not None]
        if rows:
            rows[-1].last = True
    return rows


def _slow(columns: Sequence[Column], tag: str) -> bool:
    means = [column.statistic(tag, "mean") for column in columns]
    return any(mean is not None and mean.value >= _SECONDS_FROM_MS for mean in means)


def _scalar_row(
    columns: Sequence[Column], title: str, unit: str, tag: str, name: str
) -> Row | None:
    if tag in _ONLY_IF_ANY:
        values = [column.statistic(tag, name) for column in columns]
        if not any(value is not None and value.value for value in values):
            return None
    return _row(columns, title, unit, tag, 1.0, name)


def _row(
    columns: Sequence[Column],
    title: str,
    second: str,
    tag: str,
    scale: float,
    name: str | None = None,
) -> Row | None:
    """A row of one statistic of one metric; None where no column has it."""
    name = name or second
    found = [column.statistic(tag, name) for column in columns]
    return _row_of(columns, title, second, tag, scale, name, found)


def _row_per_gpu(columns: Sequence[Column], title: str, second: str, tag: str) -> Row | None:
    """A rate, divided by the GPUs that each column uses."""
    found = [column.per_gpu(tag) for column in columns]
    return _row_of(columns, title, second, tag, 1.0, "value", found)


def _row_of(
    columns: Sequence[Column],
    title: str,
    second: str,
    tag: str,
    scale: float,
    name: str,
    found: Sequence[Estimate | None],
) -> Row | None:
    """The row of values that were found; None where there are none."""
    if all(estimate is None for estimate in found):
        return None
    values = [None if e is None else e.value * scale for e in found]
    known = [value for value in values if value is not None]
    places = min(1, decimals(known)) if second.startswith("%") else decimals(known)
    cells = [
        Cell("-" if e is None else _text(e, scale, places), weak=column.weak(tag, name))
        for column, e in zip(columns, found, strict=True)
    ]
    entries = [entry for column in columns if (entry := column.entry(tag)) is not None]
    direction = _DIRECTIONS.get(tag, entries[0].direction if entries else "none")
    _mark_best(
        rivals_in(columns, tag, found, less=direction == "lower"), columns, cells, values, direction
    )
    return Row(title, second, cells)


def _in_units(columns: Sequence[Column], row: Row | None) -> Row | None:
    """The row with its ``SMs`` called what they are on this device, if all columns agree."""
    units = {unit_of(column.first.resolved.device) for column in columns}
    if row is not None and len(units) == 1:
        row.title = row.title.replace("SMs", units.pop())
    return row


def _split_row(columns: Sequence[Column]) -> Row | None:
    found = [column.split_share() for column in columns]
    if not any(share is not None and "/" in share[0] for share in found):
        return None
    texts = ["-" if share is None else f"{share[0]}: {share[1]:.3g} %" for share in found]
    return Row("split used longest", "% of launched", [Cell(text) for text in texts])


def decimals(values: Sequence[float]) -> int:
    """Decimal places that give the smallest value three digits, and the largest not too many."""
    sizes = [abs(value) for value in values if value]
    if all(value == int(value) for value in values):
        return 0
    places = min(3, max(0, 2 - math.floor(math.log10(min(sizes)))))
    return min(places, 1 if max(sizes) >= 1000 else 2 if max(sizes) >= 10 else 3)


def _text(estimate: Estimate, scale: float, places: int) -> str:
    text = f"{estimate.value * scale:,.{places}f}"
    if estimate.half is not None:
        text += f" ±{estimate.half * scale:,.{places}f}"
    return text


def _mark_best(
    allowed: Sequence[Column],
    columns: Sequence[Column],
    cells: list[Cell],
    values: list[float | None],
    direction: str,
) -> None:
    """Mark the best of a row and what reads the same; where all read the same there is no best.

    A run that was cut short is never best, nor, where that flatters, one that turned more requests
    away: its numbers are of another set of requests.
    """
    rivals = [
        (value, cell)
        for column, value, cell in zip(columns, values, cells, strict=True)
        if value is not None and column.complete and column in allowed
    ]
    if direction == "none" or len(rivals) < 2:
        return
    choose = min if direction == "lower" else max
    _, best = choose(rivals, key=lambda rival: rival[0])
    shown = best.text.split(" ")[0]
    same = [cell for _, cell in rivals if cell.text.split(" ")[0] == shown]
    if len(same) < len(rivals):
        for cell in same:
            cell.best = True
