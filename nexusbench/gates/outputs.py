"""A report for machines and for CI pages: JSON, Markdown, JUnit XML, github-action-benchmark."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec

from nexusbench import __version__
from nexusbench.core.documents import JsonObject
from nexusbench.core.outputs import not_written
from nexusbench.gates.check import SCHEMA, Report
from nexusbench.gates.verdicts import RANKING, GateFinding, number

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
# GitHub drops a step's summary as a whole above 1 MiB; rows that pass go first.
_SUMMARY_BYTES = 1_000_000
_SIGNS = {
    "pass": "✅", "warn": "⚠️", "inconclusive": "❔", "missing": "❔", "incompatible-env": "🚫",
    "fail": "❌",
}  # fmt: skip
# Everything that Markdown or HTML could take for more than text.
_MARKED = re.compile(r"[\\`*\[\]<>|&~@$]")
# What XML 1.0 has no way to write (https://www.w3.org/TR/xml/#charsets).
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def plain(text: str) -> str:
    """One line without control characters, for any output."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(shown.split())


def change(finding: GateFinding) -> str:
    """The relative change in percent, signed; a dash where the baseline is 0 or missing."""
    return "-" if finding.change is None else f"{100 * finding.change:+.2f} %"


def sentence(report: Report) -> str:
    """The check in one sentence."""
    counts = ", ".join(
        f"{report.count(verdict)} {verdict}"
        for verdict in reversed(RANKING)
        if report.count(verdict)
    )
    better = sum(finding.improved for finding in report.findings)
    counts += f" ({better} improved)" if better else ""
    return f"gate: {report.verdict} ({counts or 'nothing to judge'})"


def worst_first(findings: Sequence[GateFinding]) -> list[GateFinding]:
    """Findings by verdict, worst first, otherwise in their order."""
    return sorted(findings, key=lambda finding: -RANKING.index(finding.verdict))


def told_and_rest(findings: Sequence[GateFinding]) -> tuple[list[GateFinding], list[GateFinding]]:
    """What a reader must see, worst first, and what only passes.

    Where all metrics of a series share a verdict and its reason, such as a missing baseline, one
    entry stands for them.
    """
    told = [f for f in worst_first(findings) if f.verdict != "pass" or f.improved]
    rest = [f for f in findings if f.verdict == "pass" and not f.improved]
    shown: list[GateFinding] = []
    merged: set[str] = set()
    for finding in told:
        alike = [f for f in findings if f.series == finding.series]
        whole = len(alike) > 1 and not finding.tier and all(
            (f.verdict, f.reason) == (finding.verdict, finding.reason) for f in alike
        )  # fmt: skip
        if not whole:
            shown.append(finding)
        elif finding.series not in merged:
            merged.add(finding.series)
            shown.append(
                GateFinding(
                    series=finding.series, metric=f"all {len(alike)} metrics",
                    verdict=finding.verdict, reason=finding.reason,
                )
            )  # fmt: skip
    return shown, rest


def as_json(report: Report) -> JsonObject:
    """The report as one JSON document."""
    return {
        "schema": SCHEMA,
        "command": "gate check",
        "nexusbench": __version__,
        **msgspec.to_builtins(report),
    }


def as_markdown(report: Report, limit: int = _SUMMARY_BYTES) -> str:
    """The report as a page of at most ``limit`` bytes: what is no pass, then the rest, folded."""
    badge = " · **simulated**" if report.simulated else ""
    head = [f"### {_SIGNS[report.verdict]} {_md(sentence(report))}{badge}", ""]
    head += [f"Baseline: {_md(report.baseline)}", ""] if report.baseline else []
    told, rest = told_and_rest(report.findings)
    notes = [f"- {_md(note)}" for note in report.notes]
    foot = ["", *notes] if notes else []
    folded = [
        "", "<details><summary>Unchanged</summary>", "", *_md_table(rest), "", "</details>",
    ] if rest else []  # fmt: skip
    page = "\n".join([*head, *_md_table(told), *folded, *foot]) + "\n"
    if len(page.encode()) <= limit:
        return page
    kept, used = [*head], len("\n".join(head).encode()) + 400
    for line in _md_table(told):
        used += len(line.encode()) + 1
        if used > limit:
            break
        kept.append(line)
    return "\n".join([*kept, "", "Cut here: the summary has its limit. See the JSON."]) + "\n"


def _md_table(findings: Sequence[GateFinding]) -> list[str]:
    if not findings:
        return []
    lines = [
        "| verdict | series | metric | baseline | now | change | rule | why |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    for f in findings:
        cells = [
            f"{_SIGNS[f.verdict]} {f.verdict}", _md(f.series), _md(f.metric),
            _md(_with_unit(f.baseline, f.unit)), _md(_with_unit(f.current, f.unit)), change(f),
            _md(f.rule),
            _md(f.reason),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _with_unit(value: float | None, unit: str) -> str:
    return number(value) if value is None or not unit else f"{number(value)} {unit}"


def _md(text: str) -> str:
    return _MARKED.sub(lambda found: f"&#{ord(found[0])};", plain(text))


def as_junit(report: Report) -> bytes:
    """One test case per metric: fail is a failure, no usable baseline an error, what could not be
    told a skip.
    """
    suites = ET.Element("testsuites", name="nexusbench gate")
    by_series: dict[str, list[GateFinding]] = {}
    for finding in report.findings:
        by_series.setdefault(finding.series, []).append(finding)
    for series, findings in by_series.items():
        kinds = [_junit_kind(finding) for finding in findings]
        suite = ET.SubElement(
            suites, "testsuite", name=_xml(series), tests=str(len(findings)),
            failures=str(kinds.count("failure")), errors=str(kinds.count("error")),
            skipped=str(kinds.count("skipped")),
        )  # fmt: skip
        for finding, kind in zip(findings, kinds, strict=True):
            case = ET.SubElement(
                suite, "testcase", name=_xml(finding.metric), classname=_xml(series)
            )
            text = _xml(f"{finding.verdict}: {finding.reason}")
            if kind:
                ET.SubElement(case, kind, message=text, type=finding.verdict)
            else:
                ET.SubElement(case, "system-out").text = text
    ET.indent(suites)
    data: bytes = ET.tostring(suites, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _junit_kind(finding: GateFinding) -> str:
    if finding.verdict == "fail":
        return "failure"
    if finding.verdict == "incompatible-env" or (
        finding.verdict == "missing" and not finding.stored
    ):
        return "error"
    return "skipped" if finding.verdict in ("inconclusive", "missing") else ""


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def as_action_benchmark(report: Report) -> dict[str, list[JsonObject]]:
    """Entries for github-action-benchmark: ``customSmallerIsBetter`` and ``customBiggerIsBetter``,
    each a file of its own, as one step of that action takes one direction.
    """
    found: dict[str, list[JsonObject]] = {
        "customSmallerIsBetter": [], "customBiggerIsBetter": [],
    }  # fmt: skip
    for f in report.findings:
        if f.current is None:
            continue
        tool = "customBiggerIsBetter" if f.better == "higher" else "customSmallerIsBetter"
        entry: JsonObject = {
            "name": plain(f"{f.series}: {f.metric}"), "unit": f.unit, "value": f.current,
        }  # fmt: skip
        if len(f.values) > 1:
            entry["range"] = f"{number(min(f.values))} to {number(max(f.values))}"
        entry["extra"] = plain(f"{f.verdict}: {f.reason}")
        found[tool].append(entry)
    return found


def write_outputs(
    report: Report,
    *,
    markdown: Path | None = None,
    junit: Path | None = None,
    action_benchmark: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> list[Path]:
    """Write what is asked for, and the step summary where CI names a file; returns the files.

    ``action_benchmark`` is a folder for the two files. Raises UsageError for a file that cannot be
    written.
    """
    written: list[Path] = []
    if markdown is not None:
        written.append(_write(markdown, as_markdown(report).encode()))
    if junit is not None:
        written.append(_write(junit, as_junit(report)))
    if action_benchmark is not None:
        for tool, entries in as_action_benchmark(report).items():
            data = json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False).encode()
            written.append(_write(action_benchmark / f"{tool}.json", data + b"\n"))
    if summary := environment.get(SUMMARY_VARIABLE):
        _write(Path(summary), as_markdown(report).encode(), append=True)
    return written


def _write(path: Path, data: bytes, *, append: bool = False) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if append else "wb") as file:
            file.write(data)
    except OSError as error:
        raise not_written(path, error, "Choose another file") from None
    return path
