"""One call of ``serve-trace``: the runs it asks for, one after the other, and what is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nexusbench import __version__
from nexusbench.cli._argv import STATISTIC_BOUND
from nexusbench.cli._console import results_console
from nexusbench.cli._live import Follower, follow
from nexusbench.cli._policies import check_policies, pair_policies, split_policies
from nexusbench.cli._screen import header, kept_lines, show_columns
from nexusbench.cli._seeds import paired_differences
from nexusbench.cli._timelines import Following
from nexusbench.cli._view import view_of_result
from nexusbench.comparison.heading import nothing_measured
from nexusbench.comparison.headline import answers
from nexusbench.comparison.view import RunView, by_label
from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError, UsageError
from nexusbench.core.printable import shell_words
from nexusbench.core.registry import did_you_mean
from nexusbench.metrics.run_events import check_slo
from nexusbench.metrics.summary import over_seeds
from nexusbench.serving.runner import RunResult, run
from nexusbench.workloads.transform import parse_window

JSON_SCHEMA = 1
# What would stop the runs that follow too, or is meant to.
_STOPPING = (UsageError, Interrupted, KeyboardInterrupt)
_BY_SIGNAL = 128  # exit codes from here on are of runs that a signal ended


class Job(msgspec.Struct, frozen=True):
    """One run to make: ``label`` heads its column, ``title`` names it in progress and errors."""

    label: str
    title: str
    config: RunConfig | EndpointConfig


class Output(msgspec.Struct, frozen=True):
    """Where results go: ``results`` is the folder of runs, None to keep none."""

    results: Path | None
    as_json: bool = False
    quiet: bool = False
    formulas: bool = False
    by: tuple[str, ...] = ()
    timeline: Path | None = None


class Failure(msgspec.Struct, frozen=True):
    """A run that did not come to its end."""

    label: str
    seed: int
    error: str
    exit_code: int
    title: str = ""
    folder: str | None = None  # what was kept of it


def plan_jobs(flags: Mapping[str, Any]) -> list[Job]:
    """The runs that the flags of ``serve-trace`` ask for. Raises UsageError naming the flag."""
    schedulers = split_policies(flags["scheduler"], "--scheduler")
    partitioners = split_policies(flags["partitioner"] or [], "--partitioner")
    pairs = pair_policies(schedulers, partitioners)
    check_texts(flags)
    check_policies(pairs, flags["cost_model"])
    names = set(RunConfig.__struct_fields__) & set(flags)
    fields = {name: flags[name] for name in names}
    fields |= {"trace": str(flags["trace"]), "goodput": parse_goodput(flags["goodput"] or [])}
    seeds = range(flags["seed"], flags["seed"] + flags["seeds"])
    labels = policy_labels(pairs)
    many = len(labels) * len(seeds)
    jobs: list[Job] = []
    for label, (scheduler, partitioner) in zip(labels, pairs, strict=True):
        for seed in seeds:
            own = {"scheduler": scheduler, "partitioner": partitioner, "seed": seed}
            title = label + (f", seed {seed}" if len(seeds) > 1 else "")
            title += f" ({len(jobs) + 1} of {many})" if many > 1 else ""
            jobs.append(Job(label, title, RunConfig(**{**fields, **own})))
    return jobs


def policy_labels(pairs: Sequence[tuple[str, str | None]]) -> list[str]:
    """The schedulers as typed; with the partitioner where that tells them apart, else a number."""
    several = len({partitioner for _, partitioner in pairs}) > 1
    labels: list[str] = []
    for scheduler, partitioner in pairs:
        label = f"{scheduler} + {partitioner}" if several and partitioner else scheduler
        again = labels.count(label)
        labels.append(f"{label} #{again + 1}" if again else label)
    return labels


def check_texts(flags: Mapping[str, Any]) -> None:
    """Flags that are texts, and those that exclude each other. Raises UsageError naming one."""
    if len(split_policies([flags["cost_model"] or "-"], "--cost-model")) > 1:
        raise UsageError(
            f"--cost-model {flags['cost_model']}: a run asks one belief. nexusbench regret "
            "compares several on one trace"
        )
    if flags["force_profile"] and flags["profile"] is None:
        raise UsageError("--force-profile goes with --profile, which is not given")
    if flags["window"] is not None:
        try:
            parse_window(flags["window"])
        except UsageError as error:
            raise UsageError(f"--window: {error}") from None
    if flags["burstiness"] is not None and flags["request_rate"] is None:
        raise UsageError("--burstiness redraws arrivals and needs --rate")
    if flags["concurrency"] is not None:
        for name, flag in (
            ("request_rate", "--rate"),
            ("speed", "--speed"),
            ("quantize_arrivals", "--quantize-arrivals"),
        ):
            if flags[name] is not None:
                raise UsageError(
                    f"--concurrency gives up the timestamps that {flag} changes. Choose one"
                )


def parse_goodput(values: Sequence[str]) -> dict[str, float]:
    """``ttft:500,tbt:50`` in any number of values as bounds in ms. Raises UsageError."""
    bounds: dict[str, float] = {}
    for text in (piece for value in values for piece in value.replace(",", " ").split()):
        key, colon, number = text.partition(":")
        try:
            bound = float(number)
        except ValueError:
            colon, bound = "", 0.0
        if not colon and STATISTIC_BOUND.fullmatch(text):
            raise UsageError(
                f"--goodput '{text}' bounds a statistic of a run, which nexusbench capacity and "
                "advise judge by. Here each request is judged: write KEY:MS, as in ttft:500 tbt:50"
            )
        if not colon:
            raise UsageError(
                f"--goodput '{text}' is not KEY:MS. Write milliseconds, as in ttft:500 tbt:50"
            )
        if key in bounds:
            raise UsageError(f"--goodput: '{key}' is given twice")
        bounds[key] = bound
    try:
        return check_slo(bounds)
    except UsageError as error:
        raise UsageError(f"--goodput: {error}") from None


def parse_by(values: Sequence[str]) -> tuple[str, ...]:
    """``prompt-length,tenant`` in any number of values, as names. Raises UsageError."""
    from nexusbench.metrics.groups import GROUPINGS

    names = [name.strip() for value in values for name in value.split(",")]
    for name in names:
        if name not in GROUPINGS:
            raise UsageError(f"--by '{name}' is unknown. {did_you_mean(name, list(GROUPINGS))}")
    return tuple(dict.fromkeys(names))


class Outcome(msgspec.Struct):
    """What came of the runs of one call: those that ended, those that did not or could not be
    stored, those that were never begun, and the error of the first that failed.
    """

    views: list[RunView] = []
    failures: list[Failure] = []
    missing: Sequence[Job] = ()
    cause: BaseException | None = None


def serve(jobs: Sequence[Job], output: Output) -> None:
    """Run all jobs, show those that ended; exits with the code of the first that did not.

    A run that fails does not stop the others, for they may not share its fault; a usage error and
    Ctrl-C do. Runs that measured nothing are an error, though they are shown and kept. A timeline
    that cannot be written is told at the end: the runs are shown without it.
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


def _run_all(jobs: Sequence[Job], output: Output, timeline: Following) -> Outcome:
    """Run one after the other, as long as nothing stops those that follow too."""
    made = Outcome()
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


def _fail(made: Outcome, failure: Failure, error: BaseException) -> None:
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


def _failure(job: Job, error: BaseException) -> Failure:
    """A policy that is being written may raise anything: it fails its own run only."""
    if isinstance(error, NexusbenchError):
        text, code = str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        text, code = "interrupted", getattr(error, "exit_code", Interrupted.exit_code)
    else:
        text, code = f"unexpected {type(error).__name__}: {error}", NexusbenchError.exit_code
    # Where the runner says what it kept; it has no other way to tell.
    _, found, kept = text.rpartition(". Kept: ")
    folder = kept if found else None
    return Failure(job.label, job.config.seed, " ".join(text.split()), code, job.title, folder)


def _stopped_lines(made: Outcome) -> list[str]:
    """What Ctrl-C, or an error that concerns all runs, kept from running, and what was kept."""
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


def _document(made: Outcome, timeline: Following) -> dict[str, Any]:
    views = made.views
    columns = by_label(views)
    document: dict[str, Any] = {
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
