"""One page of runs that needs nothing else: template, style, script, plot library and data inline.

The page may load nothing (its content security policy says so, and lets only its own two scripts
run, by their hashes), so it can be mailed, archived, and opened without a network.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from nexusbench import __version__
from nexusbench.comparison.heading import (
    footnotes,
    header_lines,
    note_lines,
    policies_line,
    rejection_lines,
)
from nexusbench.comparison.headline import find_claims, headline, over_loads
from nexusbench.comparison.load import load_lines
from nexusbench.comparison.rows import make_rows
from nexusbench.comparison.verdict import reasons
from nexusbench.core.documents import JsonObject
from nexusbench.core.errors import UsageError
from nexusbench.core.printable import shell_words
from nexusbench.metrics.symbols import SYMBOLS
from nexusbench.report.charts import Group, groups_of, rate_group
from nexusbench.report.escape import plain, plain_lines, script_json
from nexusbench.report.figures import DASHES
from nexusbench.report.gather import LoadSection, PageColumn, Stored, overloaded_settings
from nexusbench.report.theme import variables
from nexusbench.report.tiles import make_tiles

_TEMPLATES = Path(__file__).parent / "template"
_UNIT = re.compile(r"(?<=\d) (?=(?:s|ms|%|tok/s|req/s)\b|%)")
_MOST_NAMED = 4  # labels in the title
_LONGEST = 4000  # characters of one text
# The dashes of the plot library as those of an SVG line.
_STROKES = {
    "solid": "none", "dash": "6 3", "dot": "2 2", "dashdot": "6 3 2 3", "longdash": "9 3",
    "longdashdot": "9 3 2 3",
}  # fmt: skip


def require_packages() -> None:
    """Raises UsageError if what makes pages is not installed."""
    missing = [name for name in ("jinja2", "plotly") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"report needs {' and '.join(missing)}, which this installation lacks. Install with: "
            'pip install "nexusbench[report]"'
        )


def runs_page(settings: Sequence[LoadSection]) -> str:
    """The page of stored runs."""
    shown: JsonObject = {}
    rates = rate_group(settings)
    groups = [groups_of(setting) for setting in settings]
    if rates is not None:
        _add_figures(shown, "all", [rates])
    for number, found in enumerate(groups):
        _add_figures(shown, str(number), found)
    overview = _overview(settings)
    stored = [run for setting in settings for entry in setting.entries for run in entry.runs]
    first = settings[0].columns[0].first
    labels = list(dict.fromkeys(c.label for s in settings for c in s.columns))
    compared = (
        " vs ".join(labels) if len(labels) <= _MOST_NAMED else f"{len(labels)} columns of runs"
    )
    content = {
        "title": f"{compared} on {first.resolved.trace.name}",
        "simulated": any(run.view.simulated for run in stored),
        "measured": any(not run.view.simulated for run in stored),
        "subtitle": _subtitle(settings),
        "legend": _legend(settings),
        "overview": overview,
        "over_loads": over_loads([claims for _, claims in overview]),
        "overloaded": overloaded_settings(settings) if overview else [],
        "rates": rates,
        "settings": [
            _setting(number, setting, found)
            for number, (setting, found) in enumerate(zip(settings, groups, strict=True))
        ],
        "runs": [_run(run) for run in stored],
        "formulas": _formulas(settings[0]),
        "symbols": SYMBOLS,
    }
    return render("runs.html.j2", content, shown)


def render(template: str, content: JsonObject, figures: JsonObject) -> str:
    """A page with everything in it. Raises UsageError without the extra ``report``."""
    require_packages()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return plain(value, _LONGEST) if type(value) is str else value

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    # A number and its unit stay on one line.
    environment.filters["units"] = lambda text: _UNIT.sub("\u00a0", text)
    library, script = _library(), (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        **content,
        version=__version__,
        strokes=[_STROKES.get(dash, "4 2") for dash in DASHES],
        style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
        light=Markup(variables(dark=False)),
        dark=Markup(variables(dark=True)),
        library=Markup(library),
        script=Markup(script),
        hashes=[_hash(library), _hash(script)],
        figures=Markup(script_json(figures)),
    )


def _library() -> str:
    """The plot library's script, from the package, without importing it."""
    found = find_spec("plotly")
    assert found is not None
    assert found.origin is not None
    file = Path(found.origin).parent / "package_data" / "plotly.min.js"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be read: {error.strerror}. Reinstall plotly: "
            'pip install --force-reinstall "nexusbench[report]"'
        ) from None
    return text.replace("</script", "<\\/script")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _add_figures(shown: JsonObject, where: str, groups: Sequence[Group]) -> None:
    for group in groups:
        for chart in group.charts:
            shown[f"{where}-{chart.name}"] = msgspec.to_builtins(chart.figure)


def _subtitle(settings: Sequence[LoadSection]) -> str:
    """What served what, for as much of it as all runs share."""
    views = [column.first for setting in settings for column in setting.columns]
    shared: list[str] = []
    for texts in (
        {f"{view.resolved.gpu.name} ({view.resolved.device})" for view in views},
        {view.resolved.model.name for view in views},
        {f"{view.resolved.trace.requests:,} requests" for view in views},
    ):
        if len(texts) == 1:
            shared += texts
    return " · ".join(shared)


def _legend(settings: Sequence[LoadSection]) -> list[tuple[int, str]]:
    """(tone, label) of all entries, each tone once."""
    found: dict[int, str] = {}
    for setting in settings:
        for entry in setting.entries:
            found.setdefault(entry.tone, entry.column.label)
    return sorted(found.items())


def _overview(settings: Sequence[LoadSection]) -> list[tuple[LoadSection, list[Any]]]:
    """What each column leads in under each load; empty if there is one load only."""
    if len(settings) < 2:
        return []
    return [(setting, find_claims(setting.columns)) for setting in settings]


def _setting(number: int, setting: LoadSection, groups: Sequence[Group]) -> JsonObject:
    columns = setting.columns
    rows = make_rows(columns)
    view = columns[0].first
    return {
        "number": number,
        "title": setting.title,
        "load": load_lines(columns),
        "headline": headline(columns),
        "alike": not any(line.startswith("the runs differ") for line in setting.warnings),
        "sentences": reasons(columns),
        "warnings": [*setting.warnings, *rejection_lines(columns), *_messages(setting.entries)],
        "tiles": make_tiles(setting.entries),
        "entries": setting.entries,
        "rows": rows,
        "footnotes": footnotes(columns, rows),
        "heading": [
            *header_lines(view),
            *([("policies", policies)] if (policies := policies_line(columns)) else []),
            *note_lines(columns),
        ],
        "groups": groups,
    }


def _messages(entries: Sequence[PageColumn]) -> list[str]:
    """Why runs were cut short."""
    return [
        f"{run.view.label}: {run.view.status}: {run.view.message}"
        for entry in entries
        for run in entry.runs
        if run.view.message and not run.view.complete
    ]


def _run(run: Stored) -> JsonObject:
    from markupsafe import escape

    manifest, view = run.manifest, run.view
    commit = manifest.git_commit or "not from a checkout"
    held = [name for name, state in manifest.invariants.items() if state == "held"]
    facts = [
        ("run", manifest.run_id),
        ("status", f"{view.status}{': ' + view.message if view.message else ''}"),
        ("made", f"{manifest.created_utc} with nexusbench {manifest.nexusbench}"),
        ("code", commit + (", with local changes" if manifest.git_dirty else "")),
        ("seed", str(view.config.seed)),
        ("event log", manifest.event_digest or "unfinished, so without a digest"),
        ("invariants", f"{', '.join(held)} held" if held else "not checked to the end"),
        ("python", f"{manifest.python}, numpy {manifest.numpy}, pyarrow {manifest.pyarrow}"),
        ("folder", str(view.folder)),
    ]
    document = msgspec.to_builtins(manifest)
    # One row per flush says nothing to a reader, and there may be thousands.
    document["parts"] = f"{len(manifest.parts)} parts"
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    return {
        "label": view.label,
        "seed": view.config.seed,
        "facts": facts,
        "again": shell_words("nexusbench", "rerun", view.folder),
        "json": escape(plain_lines(text)),
    }


def _formulas(setting: LoadSection) -> list[tuple[str, str, str, str]]:
    """(tag, unit, which way is better, formula) of every metric."""
    summary = setting.columns[0].first.summary
    return [
        (tag, entry.unit, entry.direction, summary.formulas[tag])
        for tag, entry in summary.metrics.items()
    ]
