"""Timelines of stored runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nexusbench.cli._console import progress_console, results_console
from nexusbench.comparison.alike import label_apart
from nexusbench.comparison.view import view_of_reader
from nexusbench.core.errors import UsageError
from nexusbench.core.outputs import check_writable
from nexusbench.core.units import MIB
from nexusbench.metrics.run_events import RunEvents
from nexusbench.report.timeline import timeline_file
from nexusbench.results.reader import RunReader
from nexusbench.workloads.transform import parse_window

_LARGE = 256 * MIB


def write_stored(runs: Sequence[str], results: Path, output: Path, window: str | None) -> None:
    """One process of the timeline per run. Raises UsageError for a bad window or path, InputError
    for a damaged run.
    """
    check_writable(output)
    seconds = parse_seconds(window)
    readers = [RunReader(run, results) for run in runs]
    views = [view_of_reader(reader) for reader in readers]
    label_apart(views)
    with timeline_file(output) as writer:
        for reader, view in zip(readers, views, strict=True):
            writer.add(RunEvents.from_reader(reader), view.label, seconds)
    size = output.stat().st_size
    results_console().print(f"timeline  {output} ({size / MIB:.1f} MiB)", soft_wrap=True)
    if size > _LARGE:
        hint = "A viewer may refuse so large a file: cut it with --window A:B (seconds)"
        progress_console().print(hint, soft_wrap=True)


def parse_seconds(window: str | None) -> tuple[float, float | None]:
    """``A:B`` as seconds, the whole run for None. Raises UsageError."""
    try:
        return (0.0, None) if window is None else parse_window(window)
    except UsageError as error:
        raise UsageError(f"--window: {error}") from None
