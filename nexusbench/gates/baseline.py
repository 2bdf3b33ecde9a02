"""The baseline file: versioned JSON that reads well in a diff, one line per metric."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from nexusbench.core.documents import JsonObject, convert, decode_json, read_document
from nexusbench.core.errors import BaselineError, UsageError
from nexusbench.core.outputs import atomic_file, check_replaceable, not_written
from nexusbench.core.printable import shell_words
from nexusbench.gates.environment import differences
from nexusbench.gates.rules import is_guard
from nexusbench.gates.series import RunSeries, Samples

KIND = "nexusbench gate baseline"
SCHEMA = 1
# Values are kept to so many significant digits: 1e-6 is judged equal (TOLERANCE of verdicts.py).
DIGITS = 8
MOST_BYTES = 64 * 2**20


class _Written(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a baseline file holds: series by name."""

    kind: str
    schema: int
    series: JsonObject


class _Head(msgspec.Struct):
    kind: str = ""
    schema: int = 0


def load_baseline(path: Path) -> dict[str, RunSeries]:
    """The series of a baseline file. Raises BaselineError naming file and field: none there, not
    JSON, not a baseline, a newer schema, a wrong or missing entry.
    """
    if not path.exists():
        hint = f"Make it: nexusbench gate baseline save RUN... -o {shell_words(path)}"
        raise BaselineError("there is no such baseline", file=path, hint=hint)
    data = read_document(path, most=MOST_BYTES, error=BaselineError)
    hint = "Restore it from version control, or save it again"
    head = decode_json(data, _Head, path, what="a baseline", hint=hint, error=BaselineError)
    if head.kind != KIND:
        raise BaselineError(
            f"not a baseline: it is {head.kind!r}, not {KIND!r}", file=path, field="kind", hint=hint
        )
    if head.schema > SCHEMA:
        raise BaselineError(
            f"made by a newer nexusbench (schema {head.schema}, this one reads {SCHEMA})",
            file=path, field="schema", hint="Upgrade nexusbench, or save it again with this one",
        )  # fmt: skip
    if head.schema < SCHEMA:
        problem = f"not a baseline: its schema is {head.schema}"
        raise BaselineError(problem, file=path, field="schema", hint=hint)
    written = decode_json(data, _Written, path, hint=hint, error=BaselineError).series
    series = {name: _series(one, f"series.{name}", path, hint) for name, one in written.items()}
    _check(series, path, hint)
    return series


def _series(written: Any, at: str, path: Path, hint: str) -> RunSeries:
    """One series; a fault is located down to the metric, which a whole file's types would not."""
    if isinstance(written, dict) and isinstance(written.get("metrics"), dict):
        for name, samples in written["metrics"].items():
            where = f"{at}.metrics.{name}"
            convert(samples, Samples, path, at=where, hint=hint, error=BaselineError)
    return convert(written, RunSeries, path, at=at, hint=hint, error=BaselineError)


def _check(series: Mapping[str, RunSeries], path: Path, hint: str) -> None:
    """Every series has a run, every metric has a value per run."""
    for name, one in series.items():
        if not one.runs:
            raise BaselineError("is empty", file=path, field=f"series.{name}.runs", hint=hint)
        for metric, samples in one.metrics.items():
            if len(samples.values) != len(one.runs):
                raise BaselineError(
                    f"{len(samples.values)} values for {len(one.runs)} runs",
                    file=path, field=f"series.{name}.metrics.{metric}.values", hint=hint,
                )  # fmt: skip


def save_baseline(path: Path, series: Mapping[str, RunSeries]) -> bool:
    """Write ``path``; False if it holds exactly this already. Raises UsageError if it cannot be
    written.
    """
    data = encode_baseline(series)
    check_replaceable(path)
    try:
        if path.is_file() and path.read_bytes() == data:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(path, error, "Choose another file") from None
    with atomic_file(path) as file:
        file.write(data)
    return True


def encode_baseline(series: Mapping[str, RunSeries]) -> bytes:
    """The file's bytes: keys sorted, values rounded, and a line each for what changes together."""
    document = {
        "kind": KIND,
        "schema": SCHEMA,
        "series": {name: rounded(series[name]) for name in sorted(series)},
    }
    return (_indented(msgspec.to_builtins(document), 0) + "\n").encode(errors="replace")


def rounded(series: RunSeries) -> RunSeries:
    """The series as its file would give it back."""
    metrics = {
        name: msgspec.structs.replace(
            samples, values=[None if v is None else _round(v) for v in samples.values]
        )
        for name, samples in sorted(series.metrics.items())
    }
    return msgspec.structs.replace(series, metrics=metrics)


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _indented(value: Any, depth: int) -> str:
    """JSON; dictionaries of plain values and lists are one line, so that a diff shows metrics."""
    if not isinstance(value, dict) or not value or (depth > 3 and not _deep(value)):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    pad = "  " * (depth + 1)
    lines = [
        f"{pad}{json.dumps(key, ensure_ascii=False)}: {_indented(item, depth + 1)}"
        for key, item in value.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"


def _deep(value: Mapping[str, Any]) -> bool:
    return any(isinstance(item, dict) for item in value.values())


def merged(
    old: Mapping[str, RunSeries], new: Mapping[str, RunSeries], *, keep_others: bool
) -> tuple[dict[str, RunSeries], list[str]]:
    """``old`` with ``new`` in its place, and what that changes in words, a line per change.

    Without ``keep_others`` series that ``new`` lacks go.
    """
    lines = []
    for name in sorted(new):
        if name not in old:
            lines.append(f"new      {name}")
        elif rounded(new[name]) != rounded(old[name]):
            lines.append(f"changed  {name}")
            lines += [f"  {line}" for line in _changes(old[name], rounded(new[name]))]
    gone = [] if keep_others else [name for name in sorted(old) if name not in new]
    lines += [f"removed  {name}" for name in gone]
    kept = {name: series for name, series in old.items() if name not in gone}
    return kept | dict(new), lines


def appended(
    old: Mapping[str, RunSeries], new: Mapping[str, RunSeries]
) -> tuple[dict[str, RunSeries], list[str]]:
    """``old`` with the runs of ``new`` added to its series: so a baseline collects runs of several
    days, and its spread is that between days.

    A deterministic run that is there already is not added again. Raises UsageError if the series
    was made of something else, on another machine, with other metrics, or differs where it must
    not.
    """
    found, lines = dict(old), []
    for name in sorted(new):
        if name not in old:
            found[name] = new[name]
            lines.append(f"new      {name}")
            continue
        found[name] = joined = _joined(name, old[name], new[name])
        added = len(joined.runs) - len(old[name].runs)
        lines.append(f"added    {added} to {len(old[name].runs)} runs of {name}")
    return found, lines


def _joined(name: str, old: RunSeries, new: RunSeries) -> RunSeries:
    differ = differences(old.environment, new.environment) + differences(old.machine, new.machine)
    if extra := [name for name in new.metrics if name not in old.metrics and is_guard(name)]:
        # Kept since the baseline was begun: its earlier runs have no values of it.
        kept = {name: samples for name, samples in new.metrics.items() if name not in extra}
        new = msgspec.structs.replace(new, metrics=kept)
    if old.metrics.keys() != new.metrics.keys():
        differ.append(
            f"metrics: {', '.join(sorted(old.metrics))} -> {', '.join(sorted(new.metrics))}"
        )
    if differ:
        raise UsageError(f"cannot append to '{name}': {'; '.join(differ)}. Use --update instead")
    new = rounded(new)
    exact = all(samples.exact for samples in old.metrics.values())
    known = [(run, _exact_values(old, i)) for i, run in enumerate(old.runs)]
    added = []
    for i, run in enumerate(new.runs):
        same = [values for other, values in known if other.seed == run.seed]
        if any(values != _exact_values(new, i) for values in same):
            raise UsageError(
                f"cannot append to '{name}': its run of seed {run.seed} differs in deterministic "
                "metrics. Use --update instead"
            )
        if not (exact and same):
            added.append(i)
    metrics = {
        metric: msgspec.structs.replace(
            samples, values=[*samples.values, *(new.metrics[metric].values[i] for i in added)]
        )
        for metric, samples in old.metrics.items()
    }
    runs = [*old.runs, *(new.runs[i] for i in added)]
    return msgspec.structs.replace(old, runs=runs, metrics=metrics)


def _exact_values(series: RunSeries, run: int) -> list[float | None]:
    return [samples.values[run] for _, samples in sorted(series.metrics.items()) if samples.exact]


def _changes(old: RunSeries, new: RunSeries) -> list[str]:
    lines = []
    for metric in sorted(old.metrics.keys() | new.metrics.keys()):
        before, after = old.metrics.get(metric), new.metrics.get(metric)
        if before is None or after is None:
            lines.append(f"{metric}: {'added' if before is None else 'removed'}")
            continue
        was, now = _mean(before), _mean(after)
        if was is not None and now is not None and was != now:
            percent = f" ({100 * (now - was) / abs(was):+.2f} %)" if was else ""
            lines.append(f"{metric}: {was:.6g} -> {now:.6g} {after.unit}{percent}")
        elif was != now:
            lines.append(f"{metric}: {was} -> {now}")
    return lines or ["the same values; runs or environment changed"]


def _mean(samples: Samples) -> float | None:
    known = samples.known
    return sum(known) / len(known) if known else None
