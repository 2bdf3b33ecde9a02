"""One call of ``serve-trace``: its runs, one after the other, and the output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from nexusbench import __version__
from nexusbench.cli._console import results_console
from nexusbench.cli._jobs import RunJob
from nexusbench.cli._live import Follower, follow
from nexusbench.cli._screen import header, kept_lines, show_columns
from nexusbench.cli._seeds import paired_differences
from nexusbench.comparison.heading import nothing_measured
from nexusbench.comparison.headline import answers
from nexusbench.comparison.view import RunView, by_label, count_reasons, span
from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError, UsageError
from nexusbench.core.outputs import check_writable
from nexusbench.core.printable import shell_words
from nexusbench.metrics.groups import group
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.summary import over_seeds
from nexusbench.report.timeline import TimelineWriter, timeline_file
from nexusbench.serving.runner import RunResult, run

JSON_SCHEMA = 1
# Errors that concern the following runs too.
_STOPPING = (UsageError, Interrupted, KeyboardInterrupt)
_BY_SIGNAL = 128  # exit codes from here on stand for a signal


class Output(msgspec.Struct, frozen=True):
    """Where results go: ``results`` is the folder of runs, None to keep none."""

    results: Path | None
    as_json: bool = False
    quiet: bool = False
    formulas: bool = False
    by: tuple[str, ...] = ()
    timeline: Path | None = None


class Failure(msgspec.Struct, frozen=True):
    """A run that did not complete."""

    label: str
    seed: int
    error: str
    exit_code: int
    title: str = ""
    folder: str | None = None  # of the part that was kept


class CallOutcome(msgspec.Struct):
    """The runs of one call: those that completed, those that failed or could not be stored, those
    that were not started, and the first error.
    """

    views: list[RunView] = []
    failures: list[Failure] = []
    missing: Sequence[RunJob] = ()
    cause: BaseException | None = None


class Following:
    """The timeline of the runs of one call, if one was requested. An error in it is kept in
    ``fault`` and does not affect the runs.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises UsageError, before the first run, for a path that cannot be written."""
        self.path, self.fault = path, ""
        self._file: AbstractContextManager[TimelineWriter] | None = None
        self._writer: TimelineWriter | None = None
        if path is not None:
            check_writable(path)
            self._file = timeline_file(path)
            self._writer = self._file.__enter__()

    def add(self, run: RunEvents, label: str) -> None:
        """Append a run, unless there has been an error."""
        if self._writer is None:
            return
        try:
            self._writer.add(run, label, (0.0, None))
        except (OSError, NexusbenchError) as error:
            self._end(error)

    def close(self) -> None:
        """Move the finished file to its path."""
        self._end(None)

    def abandon(self) -> None:
        """Remove the unfinished file."""
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


def serve(jobs: Sequence[RunJob], output: Output) -> None:
    """Run all jobs and show those that completed; exits with the code of the first failure.

    A failed run does not stop the others, which may not share its fault; a usage error and Ctrl-C
    do. Runs that measured nothing are shown and kept, and count as an error. A timeline that cannot
    be written is reported at the end.
    """
    timeline = Following(output.timeline)
    try:
        made = _run_all(jobs, output, timeline)
    except BaseException:
        timeline.abandon()
        raise
    timeline.close()
    if output.as_json:
        print(json.dumps(_document(made, timeline), indent=2, allow_nan=False))
    elif made.views:
        drawn = f"timeline  {output.timeline}    (open it in ui.perfetto.dev)"
        drawn_too = [drawn] if output.timeline and not timeline.fault else []
        _show(made.views, output, [*drawn_too, *_stopped_lines(made)])
    sys.stdout.flush()
    empty = nothing_measured(made.views)
    for line in [f"--timeline: {timeline.fault}"] if timeline.fault else []:
        print(f"error: {line}", file=sys.stderr)
    for line in empty:
        print(f"error: {line}", file=sys.stderr)
    if made.failures:
        raise SystemExit(made.failures[0].exit_code) from made.cause
    if empty or timeline.fault:
        raise SystemExit(NexusbenchError.exit_code)


def _run_all(jobs: Sequence[RunJob], output: Output, timeline: Following) -> CallOutcome:
    """Run one job after the other until an error that concerns the following ones too."""
    made = CallOutcome()
    for number, job in enumerate(jobs, 1):
        try:
            with follow(job.title, quiet=output.quiet) as progress:
                result = _run(job.config, output.results, progress)
        except (Exception, KeyboardInterrupt) as error:
            if not made.views and (len(jobs) == 1 or isinstance(error, _STOPPING)):
                raise
            _fail(made, _failure(job, error), error)
            if isinstance(error, _STOPPING):
                made.missing = jobs[number:]
                break
        else:
            made.views.append(view_of_result(result, job.label, output.by))
            timeline.add(result.events, job.title.partition(" (")[0])
            if result.fault:
                fault = NexusbenchError(f"{result.fault}. Kept: {result.folder}")
                _fail(made, _failure(job, fault), fault)
    return made


def view_of_result(result: RunResult, label: str, by: Sequence[str] = ()) -> RunView:
    """The view of a run that has just ended."""
    ended, strings = result.events.tables["ended"], result.events.facts.strings
    return RunView(
        label=label,
        status="complete",
        simulated=result.summary.simulated,
        config=result.config,
        resolved=result.resolved,
        summary=result.summary,
        folder=result.folder,
        event_digest=result.event_digest,
        span_ns=span(result.events.requests["arrival"]),
        groups={name: group(result.events, name) for name in by},
        rejections=count_reasons(ended, strings, "rejected"),
        failures=count_reasons(ended, strings, "failed"),
    )


def _fail(made: CallOutcome, failure: Failure, error: BaseException) -> None:
    made.failures.append(failure)
    made.cause = made.cause or error
    print(f"error: {failure.title}: {failure.error}", file=sys.stderr)


def _run(
    config: RunConfig | EndpointConfig, results: Path | None, progress: Follower | None
) -> RunResult:
    try:
        return run(config, results=results, progress=progress)
    except UsageError as error:
        if config.too_long == "error" and "exceed it" in str(error):
            raise UsageError(f"--too-long error: {error}") from None
        raise


def _failure(job: RunJob, error: BaseException) -> Failure:
    """Describe an error. A policy under development may raise anything: only its own run fails."""
    if isinstance(error, NexusbenchError):
        text, code = str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        text, code = "interrupted", getattr(error, "exit_code", Interrupted.exit_code)
    else:
        text, code = f"unexpected {type(error).__name__}: {error}", NexusbenchError.exit_code
    # The runner names the folder of a partial run in its message only.
    _, found, kept = text.rpartition(". Kept: ")
    folder = kept if found else None
    return Failure(job.label, job.config.seed, " ".join(text.split()), code, job.title, folder)


def _stopped_lines(made: CallOutcome) -> list[str]:
    """Warnings after an interruption: which runs were not started, and how to look at what was
    kept.
    """
    lines = []
    cut = [f for f in made.failures if f.exit_code >= _BY_SIGNAL]
    if cut:
        lines.append(f"WARNING: interrupted: {', '.join(f.title for f in cut)}")
    if made.missing:
        lines.append(f"WARNING: did not run: {', '.join(job.title for job in made.missing)}")
    folders = [str(view.folder) for view in made.views if view.folder is not None]
    partial = [failure.folder for failure in cut if failure.folder]
    if folders and partial:
        lines.append(f"next  {shell_words('nexusbench', 'compare', *folders, *partial)}")
    return lines


def _show(views: Sequence[RunView], output: Output, last: Sequence[str]) -> None:
    console = results_console()
    columns = by_label(views)
    header(console, columns, "nexusbench serve-trace")
    show_columns(console, columns, formulas=output.formulas)
    console.print()
    for line in [*kept_lines(views), *last]:
        console.print(line, soft_wrap=True)


def _document(made: CallOutcome, timeline: Following) -> dict[str, object]:
    views = made.views
    columns = by_label(views)
    document: dict[str, object] = {
        "schema": JSON_SCHEMA,
        "command": "serve-trace",
        "nexusbench": __version__,
        "simulated": any(view.simulated for view in views),
        **answers(columns),
        "runs": [view.as_json() for view in views],
        "failed": [msgspec.structs.asdict(failure) for failure in made.failures],
        "not_run": [{"label": job.label, "seed": job.config.seed} for job in made.missing],
    }
    if timeline.fault:
        document["not_written"] = {str(timeline.path): timeline.fault}
    if any(len(column.views) > 1 for column in columns):
        document["over_seeds"] = {
            column.label: msgspec.to_builtins(over_seeds([view.summary for view in column.views]))
            for column in columns
        }
        document["paired"] = {
            "base": columns[0].label,
            "differences": msgspec.to_builtins(paired_differences(columns)),
        }
    return document
