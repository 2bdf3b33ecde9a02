"""What ``nexusbench trace`` does: files in, files and figures out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from nexusbench import __version__
from nexusbench.cli._console import counted, results_console, say
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.workloads.convert import convert
from nexusbench.workloads.generate import make_trace
from nexusbench.workloads.source import check_not_input, write_atomic
from nexusbench.workloads.spec import load_spec
from nexusbench.workloads.statistics import (
    ArrivalFigures,
    LengthFigures,
    PatienceFigures,
    SessionFigures,
    TraceFigures,
    describe_trace,
    histogram,
)
from nexusbench.workloads.trace import load_trace, span_text, write_trace

if TYPE_CHECKING:
    from rich.console import Console

    from nexusbench.workloads.base import Trace

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_STEPS = "▁▂▃▄▅▆▇█"
_BAR = 40
_TIME_BINS = 60
_MOST_TENANTS = 6


def make_file(spec_file: Path, output: Path, seed: int | None) -> None:
    """Write the trace of a spec. Raises InputError and UsageError."""
    spec = load_spec(spec_file)
    check_not_input(output, spec_file, *spec.tables)
    if seed is not None:
        workload = msgspec.structs.replace(spec.workload, seed=seed)
        spec = msgspec.structs.replace(spec, workload=workload)
    trace = make_trace(spec)
    write_trace(trace, output)
    print(f"{output}: {'; '.join(trace.notes)}", file=sys.stderr)


def convert_file(source: Path, target: Path, format: str) -> None:
    """Write a trace in another format. Raises InputError and UsageError."""
    check_not_input(target, source)
    trace = load_trace(source)
    content, changes = convert(trace, format)
    write_atomic(target, content)
    told = f"{target}: {counted(len(trace.requests), 'request')}, format {format}"
    print("; ".join([told, *trace.notes[1:], *changes]), file=sys.stderr)


def show_file(path: Path, *, as_json: bool) -> None:
    """Print what is in a trace. Raises InputError."""
    trace = load_trace(path)
    facts = describe_trace(trace)
    if as_json:
        document = {
            "schema": JSON_SCHEMA,
            "command": "trace show",
            "nexusbench": __version__,
            **msgspec.to_builtins(facts),
        }
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    console = results_console()
    console.print(f"nexusbench trace show  {trace.name}", style="bold")
    for name, text in _lines(facts):
        say(console, f"{name:<14}{text}", indent=14)
    _show_histograms(console, trace)


def _lines(facts: TraceFigures) -> Iterator[tuple[str, str]]:
    """Name and text of each line above the histograms."""
    yield "file", "; ".join(facts.notes)
    yield "requests", f"{facts.requests:,}"
    if facts.arrivals is None:
        yield "arrivals", f"closed loop of {facts.concurrency:,} users"
    else:
        yield "arrivals", _arrivals_text(facts.arrivals)
    for side, lengths in (("input", facts.input_tokens), ("output", facts.output_tokens)):
        yield f"{side} tok", _quantiles_text(lengths)
    yield "input/output", f"{facts.input_per_output:.2f} tokens per token"
    found = facts.prefixes
    yield (
        "prefixes",
        (
            "no hash ids: nothing is known to be shared"
            if found is None
            else f"a cache without limits would hit {found.blocks:.1f} % of the blocks of "
            f"{found.hash_block} tokens, {found.tokens:.1f} % of the prompt tokens "
            "where all requests are served (a run that rejects some counts the others only)"
        ),
    )
    if facts.token_ids:
        largest = facts.token_ids.largest
        yield "prompts", f"token ids for every request, the largest {largest:,}"
    if facts.sessions:
        yield "sessions", _sessions_text(facts.sessions)
    if facts.patience:
        yield "patience", _patience_text(facts.patience, facts.requests)
    if facts.tenants:
        yield "tenants", _tenants_text(facts.tenants, facts.requests)


def _arrivals_text(found: ArrivalFigures) -> str:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    dispersion = " / ".join(number(value) for value in found.dispersion.values())
    windows = " / ".join(name.removesuffix("s") for name in found.dispersion)
    text = (
        f"{found.n:,} in {span_text(round(found.span_s * 1e9))}, mean "
        f"{number(found.rate)} per s; CV of the gaps {number(found.gap_cv)}; index of "
        f"dispersion at {windows} s {dispersion} (Poisson: 1)"
    )
    return text + (f"; {100 * found.tied / found.n:.2g} % tie" if found.tied else "")


def _quantiles_text(found: LengthFigures) -> str:
    return ", ".join(
        f"{name} {value:,.0f}" for name, value in msgspec.structs.asdict(found).items()
    )


def _sessions_text(found: SessionFigures) -> str:
    text = f"{found.sessions:,}, turns mean {found.turns_mean:.2f}, max {found.turns_max:,}; "
    if not found.following:
        return text + "all turns at their own times (open loop)"
    return text + (
        f"{found.following:,} turns follow the end of the turn before, after "
        f"{found.think_s_mean:.3g} s of thought on average"
    )


def _patience_text(found: PatienceFigures, count: int) -> str:
    parts = []
    for what, number, mean in (
        ("timeouts", found.timeouts, found.timeout_s_mean),
        ("cancellations", found.cancellations, found.cancel_after_s_mean),
    ):
        if number:
            parts.append(f"{100 * number / count:.3g} % {what}, after {mean:.3g} s on average")
    return "; ".join(parts)


def _tenants_text(tenants: dict[str, int], count: int) -> str:
    names = list(tenants)
    shown = [f"{name} {100 * tenants[name] / count:.3g} %" for name in names[:_MOST_TENANTS]]
    rest = len(names) - len(shown)
    return ", ".join([*shown, f"{rest:,} more"] if rest else shown)


def _show_histograms(console: Console, trace: Trace) -> None:
    requests = trace.requests
    for title, values in (
        ("input tokens", [request.prompt_tokens for request in requests]),
        ("output tokens", [request.output_tokens for request in requests]),
    ):
        console.print()
        console.print(title, style="bold")
        bins = histogram(values)
        most = max(count for _, _, count in bins)
        width = max(len(f"{high:,}") for _, high, _ in bins)
        for low, high, count in bins:
            share = 100 * count / len(values)
            console.print(
                f"{low:>{width},} to {high:>{width},} {share:5.1f} % {_bar(count / most)}",
                soft_wrap=True,
            )
    times = [] if trace.concurrency else [r.arrival_ns for r in requests if not r.follows]
    if times and times[-1]:
        console.print()
        console.print("arrivals over time", style="bold")
        counts = [0] * _TIME_BINS
        for time in times:
            counts[min(_TIME_BINS - 1, time * _TIME_BINS // times[-1])] += 1
        seconds = times[-1] / 1e9 / _TIME_BINS
        console.print(_sparkline(counts), soft_wrap=True)
        console.print(
            f"{_TIME_BINS} spans of {seconds:.3g} s, {min(counts) / seconds:.3g} to "
            f"{max(counts) / seconds:.3g} per s",
            style="dim",
        )


def _bar(share: float) -> str:
    """A bar of up to _BAR characters, in eighths; what is not zero is seen."""
    eighths = max(round(share * _BAR * 8), 1 if share else 0)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _sparkline(counts: Sequence[int]) -> str:
    most = max(counts)
    return "".join(_STEPS[round(count / most * (len(_STEPS) - 1))] for count in counts)
