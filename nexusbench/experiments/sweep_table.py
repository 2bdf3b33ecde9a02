"""A sweep as one table: a row per cell with its config, every metric, digest, status and error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import nexusbench
from nexusbench.core.config import RunConfig
from nexusbench.core.options import declared
from nexusbench.core.outputs import atomic_file
from nexusbench.experiments.cells import SweepCell
from nexusbench.experiments.keys import code_version, file_sha256
from nexusbench.experiments.sweep_spec import Sweep
from nexusbench.metrics.base import Metric, load_metrics
from nexusbench.metrics.summary import STATISTICS

# The config's own ``goodput`` are bounds; the metric of that name is the rate that keeps them.
_SLO = "slo"
_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def sweep_table(sweep: Sweep, keys: Sequence[str], cells: Mapping[int, SweepCell]) -> pa.Table:
    """One row per cell in the sweep's order, the same bytes whenever and wherever it was run.

    Columns: ``cell``, ``key``, ``status``, ``error``, ``digest``, ``simulated``, ``trace_sha256``,
    every field of RunConfig (its ``goodput`` as ``slo``), and every metric: ``ttft.p99`` and so on
    for a distribution, ``goodput`` for a single value. Units and directions are in the fields'
    metadata.
    """
    order = sorted(cells)
    rows = [cells[index] for index in order]
    columns: dict[str, pa.Array] = {
        "cell": pa.array(order, pa.int64()),
        "key": pa.array([keys[index] for index in order], pa.string()),
        "status": pa.array([cell.status for cell in rows], pa.string()),
        "error": pa.array([cell.error for cell in rows], pa.string()),
        "digest": pa.array([cell.digest for cell in rows], pa.string()),
        "simulated": pa.array([cell.simulated for cell in rows], pa.bool_()),
        "trace_sha256": pa.array(
            [file_sha256(Path(cell.config.trace)) for cell in rows], pa.string()
        ),
    }
    configs = [sweep.configs[index] for index in order]
    for name in RunConfig.__struct_fields__:
        columns[_SLO if name == "goodput" else name] = _config_column(name, configs)
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    for metric in load_metrics().values():
        for name, statistic in _names(metric):
            values = [_value(cell, metric.tag, statistic) for cell in rows]
            label = f"metric.{name}" if name in columns else name
            columns[label] = pa.array(values, pa.float64())
            about = {"unit": metric.unit, "better": metric.direction, "title": metric.title}
            fields.append(pa.field(label, pa.float64(), metadata=about))
    about = {
        "sweep": sweep.name, "spec_sha256": sweep.sha256, "nexusbench": nexusbench.__version__,
        "code": code_version(), "axes": ",".join(sweep.axes),
    }  # fmt: skip
    return pa.table(list(columns.values()), schema=pa.schema(fields, metadata=about))


def _config_column(name: str, configs: Sequence[RunConfig]) -> pa.Array:
    values = [getattr(config, name) for config in configs]
    if name == "goodput":
        texts = [",".join(f"{key}:{bound:g}" for key, bound in slo.items()) for slo in values]
        return pa.array(texts, pa.string())
    return pa.array(values, _TYPES.get(declared(RunConfig)[name].kind, pa.string()))


def _names(metric: Metric) -> list[tuple[str, str]]:
    """(column, statistic) of a metric."""
    if metric.kind == "scalar":
        return [(metric.tag, "value")]
    return [(f"{metric.tag}.{statistic}", statistic) for statistic in (*STATISTICS, "n")]


def _value(cell: SweepCell, tag: str, statistic: str) -> float | None:
    found = cell.value(tag, statistic)
    return None if found is None else float(found)


def write_sweep(table: pa.Table, path: Path) -> None:
    """Write the table, all of it or nothing. Raises UsageError if it cannot be written there,
    NexusbenchError if the disk is full or broken.
    """
    with atomic_file(path, "The cells are kept: choose another -o and call again") as file:
        pq.write_table(table, file)
