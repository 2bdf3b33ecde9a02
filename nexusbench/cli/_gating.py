"""What ``gate`` does: runs from folders or a spec, a baseline, the report on screen, in files."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nexusbench import __version__
from nexusbench.cli._console import counted, print_whole, progress_console, results_console, say
from nexusbench.cli._live import follow
from nexusbench.cli._screen import badge
from nexusbench.cli.outlet import beside_results
from nexusbench.core.errors import BaselineError, NexusbenchError, UsageError
from nexusbench.core.printable import shell_words
from nexusbench.gates.baseline import (
    appended,
    encode_baseline,
    load_baseline,
    merged,
    save_baseline,
)
from nexusbench.gates.check import Report, check, no_baseline
from nexusbench.gates.measure import Follow, load_notes, make_points, read_points, rerunner
from nexusbench.gates.outputs import (
    as_json,
    change,
    plain,
    sentence,
    told_and_rest,
    write_outputs,
)
from nexusbench.gates.rules import DEFAULT_RULES, Measure, Rule, parse_rules, run_measures
from nexusbench.gates.series import RunPoint, make_series
from nexusbench.gates.spec import GateSpec, load_spec
from nexusbench.gates.verdicts import number

if TYPE_CHECKING:
    from nexusbench.gates.verdicts import GateFinding
    from nexusbench.serving.runner import AnyProgress

JSON_SCHEMA = 1
_STYLES = {
    "pass": "green", "warn": "yellow", "inconclusive": "yellow", "missing": "bold red",
    "incompatible-env": "bold red", "fail": "bold red",
}  # fmt: skip
# Not kept unless a rule names them: extremes of a run are mostly chance.
_EXTREMES = (".min", ".max")


class GateSource(msgspec.Struct, frozen=True):
    """The runs to judge: stored ones by folder, or new ones made from a spec (kept in ``keep``)."""

    runs: list[str]
    spec: Path | None
    results: Path
    keep: Path | None = None
    quiet: bool = False


class Outputs(msgspec.Struct, frozen=True):
    """Where a report is written in addition to the screen."""

    as_json: bool = False
    markdown: Path | None = None
    junit: Path | None = None
    action_benchmark: Path | None = None


def save_file(
    source: GateSource,
    output: Path | None,
    rules: list[str] | None,
    *,
    update: bool,
    append: bool,
    as_json: bool,
) -> None:
    """Write a baseline, or update or extend one and list the changes. Raises UsageError if the file
    exists and neither was requested.
    """
    spec, measures = _spec(source), run_measures()
    path = output or (spec.baseline if spec else None)
    if path is None:
        raise UsageError("where to? Give -o FILE, or name a baseline in the spec")
    if update and append:
        raise UsageError("--update replaces runs and --append keeps them. Choose one")
    if path.exists() and not (update or append):
        raise UsageError(f"{path} exists. Add --update to replace in it what is run, or --append")
    old = load_baseline(path) if path.exists() else {}
    chosen = _rules(rules, spec, measures)
    if chosen is not None:
        wanted = [rule.metric for rule in chosen]
    else:
        wanted = [name for name in measures if not name.endswith(_EXTREMES)]
    points = _points(source, spec)
    series, warnings = make_series(points, measures, wanted), load_notes(points)
    # A spec lists all runs of a baseline; folders named on the command line are some of them.
    if append:
        document, lines = appended(old, series)
    else:
        document, lines = merged(old, series, keep_others=spec is None)
    changed = save_baseline(path, document)
    console = results_console()
    if as_json:
        text = {
            "schema": JSON_SCHEMA, "command": "gate baseline save", "nexusbench": __version__,
            "file": str(path), "changed": changed, "changes": lines, "warnings": warnings,
            "baseline": json.loads(encode_baseline(document)),
        }  # fmt: skip
        print(json.dumps(text, indent=2, allow_nan=False))
        return
    for warning in warnings:
        say(console, f"WARNING: {plain(warning)}", "bold red")
    for line in lines:
        console.print(plain(line) if not line.startswith(" ") else f"  {plain(line)}",
                      soft_wrap=True)  # fmt: skip
    runs = sum(len(one.runs) for one in document.values())
    state = "written" if changed else "unchanged"
    say(console, f"{path} {state}: {len(document)} series, {counted(runs, 'run')}", "bold")


def check_runs(
    source: GateSource,
    baseline: Path | None,
    rules: list[str] | None,
    outputs: Outputs,
    *,
    confirm: bool,
    alpha: float | None,
) -> None:
    """Judge the runs, show and write the report, and exit with its code."""
    if alpha is not None and alpha >= 1:
        raise UsageError(f"--alpha {alpha:g}: a chance of false alarm is below 1")
    spec, measures = _spec(source), run_measures()
    path = baseline or (spec.baseline if spec else None)
    if path is None:
        hint = "Give --baseline FILE, or name one in the spec"
        raise BaselineError("no baseline was named", file=source.spec, hint=hint)
    # First: a broken baseline is reported before runs of minutes, in every output that CI reads.
    try:
        stored = load_baseline(path)
    except BaselineError as error:
        _write(no_baseline(str(path), str(error)), outputs)
        raise
    chosen = _rules(rules, spec, measures) or parse_rules(DEFAULT_RULES, measures)
    wanted = [rule.metric for rule in chosen]
    points = _points(source, spec)
    current = make_series(points, measures, wanted)
    confirm = confirm or (spec is not None and spec.confirm)
    again = rerunner(points, measures, wanted, source.keep, _follower(source)) if confirm else None
    report = check(stored, current, chosen, source=str(path), alpha=alpha, rerun=again)
    report.notes = [*load_notes(points), *report.notes, *_advice(report, source, path)]
    faults: list[NexusbenchError] = []
    with beside_results(faults):
        _write(report, outputs)
    if not outputs.as_json:
        _show(report)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    code = report.exit_code or (faults[0].exit_code if faults else 0)
    if report.exit_code:
        progress_console().print(f"{sentence(report)}; exit code {report.exit_code}",
                                 style="bold red", soft_wrap=True)  # fmt: skip
    if code:
        raise SystemExit(code)


def _write(report: Report, outputs: Outputs) -> None:
    if outputs.as_json:
        print(json.dumps(as_json(report), indent=2, allow_nan=False))
        sys.stdout.flush()
    write_outputs(
        report,
        markdown=outputs.markdown,
        junit=outputs.junit,
        action_benchmark=outputs.action_benchmark,
    )


def _spec(source: GateSource) -> GateSpec | None:
    if bool(source.runs) == (source.spec is not None):
        raise UsageError("give either RUN... or --spec FILE.toml")
    return load_spec(source.spec) if source.spec is not None else None


def _rules(
    texts: list[str] | None, spec: GateSpec | None, measures: dict[str, Measure]
) -> list[Rule] | None:
    """The rules given as texts, else the spec's; None if there are none."""
    if texts:
        return parse_rules(texts, measures)
    return spec.rules if spec is not None else None


def _points(source: GateSource, spec: GateSpec | None) -> list[RunPoint]:
    if spec is None:
        return read_points(source.runs, source.results)
    return make_points(spec.configs, source.keep, _follower(source))


def _follower(source: GateSource) -> Follow:
    def following(title: str) -> AbstractContextManager[AnyProgress | None]:
        return follow(title, quiet=source.quiet)

    return following


def _advice(report: Report, source: GateSource, path: Path) -> list[str]:
    """How to make an intended change the new baseline, if the report fails."""
    if report.verdict not in ("fail", "missing", "incompatible-env"):
        return []
    named = ("--spec", source.spec) if source.spec is not None else source.runs[:3]
    made = shell_words(*named)
    made += " ..." if len(source.runs) > 3 else ""
    return [
        "if this is meant, make it the new baseline and commit it with its reason: "
        f"nexusbench gate baseline save {made} -o {shell_words(path)} --update"
    ]


def _show(report: Report) -> None:
    console = results_console()
    title = Text.assemble(("nexusbench gate check", "bold"), "  ", badge(report.simulated))
    console.print(title)
    console.print(f"baseline {report.baseline}", soft_wrap=True)
    told, rest = told_and_rest(report.findings)
    for series in dict.fromkeys(finding.series for finding in told):
        _show_series(console, series, [f for f in told if f.series == series])
    if rest:
        console.print()
        within = dict.fromkeys(finding.series for finding in rest)
        say(console, f"pass: {len(rest)} metrics in {len(within)} series", "green")
    console.print()
    for note in report.notes:
        say(console, plain(note), indent=2)
    say(console, sentence(report), _STYLES[report.verdict])


def _show_series(console: Console, series: str, findings: list[GateFinding]) -> None:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title_justify="left",
        title=Text(plain(series), style="bold"),
    )  # fmt: skip
    for name in ("verdict", "metric", "unit"):
        table.add_column(name, no_wrap=True)
    for name in ("baseline", "now", "change", "rule"):
        table.add_column(name, no_wrap=True, justify="right")
    for finding in findings:
        table.add_row(
            Text(finding.verdict, style=_STYLES[finding.verdict]), Text(plain(finding.metric)),
            Text(plain(finding.unit)), number(finding.baseline), number(finding.current),
            change(finding), Text(plain(finding.rule).removeprefix(f"{finding.metric}:")),
        )  # fmt: skip
    console.print()
    print_whole(console, table)
    for reason, metrics in _by_reason(findings).items():
        say(console, f"{', '.join(metrics)}: {reason}", "dim", 2)


def _by_reason(findings: list[GateFinding]) -> dict[str, list[str]]:
    """Metrics by reason; a reason that holds for a whole series is listed once."""
    found: dict[str, list[str]] = {}
    for finding in findings:
        found.setdefault(plain(finding.reason), []).append(plain(finding.metric))
    return found
