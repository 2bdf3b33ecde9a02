"""Timelines of stored runs, and of runs as they end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from nexusbench.cli._console import progress_console, results_console
from nexusbench.comparison.alike import label_apart
from nexusbench.comparison.view import view_of_reader
from nexusbench.core.errors import Interrupted, NexusbenchError, UsageError
from nexusbench.core.outputs import check_writable
from nexusbench.core.units import MIB
from nexusbench.metrics.run_events import RunEvents
from nexusbench.report.timeline import TimelineWriter, timeline_file
from nexusbench.results.reader import RunReader
from nexusbench.workloads.transform import parse_window

_LARGE = 256 * MIB


def write_stored(runs: Sequence[str], results: Path, output: Path, window: str | None) -> None:
    """One process per run. Raises UsageError for a bad window or place, InputError for a damaged
    run.
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
    """``A:B`` in seconds; everything where it is not given. Raises UsageError."""
    try:
        return (0.0, None) if window is None else parse_window(window)
    except UsageError as error:
        raise UsageError(f"--window: {error}") from None


class Following:
    """The timeline of the runs of one call, if one was asked for. What goes wrong with it is kept
    in ``fault`` and costs the timeline, never the runs.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises UsageError, before anything is run, for a place that cannot be written."""
        self.path, self.fault = path, ""
        self._file: AbstractContextManager[TimelineWriter] | None = None
        self._writer: TimelineWriter | None = None
        if path is not None:
            check_writable(path)
            self._file = timeline_file(path)
            self._writer = self._file.__enter__()

    def add(self, run: RunEvents, label: str) -> None:
        """Append a run, as long as nothing has gone wrong."""
        if self._writer is None:
            return
        try:
            self._writer.add(run, label, (0.0, None))
        except (OSError, NexusbenchError) as error:
            self._end(error)

    def close(self) -> None:
        """Put the file into its place."""
        self._end(None)

    def abandon(self) -> None:
        """Leave nothing."""
        self._end(Interrupted())
        self.fault = ""

    def _end(self, cause: Exception | None) -> None:
        file, self._file, self._writer = self._file, None, None
        if file is None:
            return
        try:
            file.__exit__(type(cause) if cause else None, cause, None)
        except (OSError, NexusbenchError) as error:
            cause = error
        self.fault = "" if cause is None else str(cause)
