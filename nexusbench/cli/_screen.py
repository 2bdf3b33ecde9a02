"""What a person reads: header, table, footnotes, verdict, where the runs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nexusbench.cli._console import counted, print_folded, say
from nexusbench.cli._endpoint_screen import CLIENT_DEFINITIONS, endpoint_lines
from nexusbench.cli._groups import show_groups
from nexusbench.cli._rejections import rejection_lines
from nexusbench.cli._seeds import seeds_lines, show_seeds
from nexusbench.cli._table import Row, make_rows, render_rows
from nexusbench.cli._verdict import verdict
from nexusbench.cli._view import Column, RunView
from nexusbench.core.units import NS_PER_S

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_INDENT = 10
_DEFINITIONS = (
    "TTFT: scheduled arrival to first token = queueing (to first admission) + service.",
    "TBT: every gap between a request's tokens, pooled. TPOT: (end to end - TTFT) / (tokens - 1).",
)
_SLO_DEFINITION = (
    "goodput: requests that kept every bound, per second. Attainment: their share of the requests "
    "offered; what was rejected, failed or did not finish is a miss."
)


def show_columns(console: Console, columns: Sequence[Column], *, formulas: bool = False) -> None:
    """The table with its footnotes, paired differences if there are seeds, and the verdict."""
    rows = make_rows(columns)
    print_folded(console, len(columns), lambda block: render_rows(columns, rows, block))
    show_groups(console, columns)
    for line in _footnotes(columns, rows):
        say(console, line, "dim")
    if formulas:
        _show_formulas(console, columns)
    if any(len(column.views) > 1 for column in columns):
        console.print()
        if len(columns) > 1:
            show_seeds(console, columns)
        for line in seeds_lines(columns):
            say(console, line, "dim")
    for line in rejection_lines(columns):
        say(console, f"WARNING: {line}", "bold red")
    sentences = verdict(columns)
    if sentences:
        simulated = any(column.first.simulated for column in columns)
        console.print()
        say(console, ("Simulated: " if simulated else "") + " ".join(sentences), "bold")


TIGHT_BETA = 1.3
_TIGHT_BETA = (
    "nexus allows decode only a few percent over its time without a neighbour; a fitted belief "
    "knows that contention alone takes more, and leaves prefill few SMs. Compare "
    "--partitioner nexus:beta=2 (docs/cost-models.md)"
)


def header(console: Console, columns: Sequence[Column], title: str) -> None:
    """What ran on what; the same for all columns of one call of serve-trace."""
    from rich.text import Text

    view = columns[0].first
    console.print(Text.assemble((title, "bold"), "  ", badge(view.simulated)))
    lines = header_lines(view, view.resolved)
    lines += [("policies", _policies(columns))] if view.resolved["scheduler"] else []
    lines += [("note", _TIGHT_BETA)] if any(map(_is_tight, columns)) else []
    for name, text in lines:
        say(console, f"{name:<{_INDENT}}{text}", indent=_INDENT)


def _is_tight(column: Column) -> bool:
    """Nexus's published slack with a belief that knows contention."""
    resolved = column.first.resolved
    belief, options = resolved["belief"], resolved.get("partitioner_options", {})
    fitted = belief is not None and belief.get("profile")
    return bool(fitted) and options.get("beta", TIGHT_BETA) < TIGHT_BETA


def badge(simulated: bool) -> Text:
    """Simulated or measured; unmistakable without colour too."""
    from rich.text import Text

    if simulated:
        return Text("[SIMULATED: no GPU was used]", style="bold black on yellow")
    return Text("[MEASURED]", style="bold white on green")


def header_lines(view: RunView, resolved: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each header line."""
    if resolved.get("observed") == "client":
        trace_line = _trace_line(view, resolved["trace"])
        return endpoint_lines(view, resolved, trace_line) + _judged_lines(view)
    gpu, limits, trace = resolved["gpu"], resolved["limits"], resolved["trace"]
    asked = view.config.get("device")
    device = f"{resolved['device']}: {gpu['name']}, {resolved['num_sms']} SMs"
    if asked == "auto":
        device += f" (--device auto{_why_simulated() if view.simulated else ''})"
    tokens = resolved["kv_blocks"] * resolved["block_size"]
    caching = "on" if view.config.get("prefix_caching") else "off"
    lines = [
        ("device", device),
        ("model", _model_line(view, resolved)),
        ("trace", _trace_line(view, trace)),
        (
            "KV pool",
            f"{resolved['kv_blocks']:,} blocks of {resolved['block_size']} tokens "
            f"= {tokens:,} tokens; prefix caching {caching}",
        ),
        (
            "limits",
            f"max_num_seqs {limits['max_num_seqs']:,}, max_num_batched_tokens "
            f"{limits['max_num_batched_tokens']:,}, max_model_len {limits['max_model_len']:,}",
        ),
    ]
    return lines + _judged_lines(view)


def _judged_lines(view: RunView) -> list[tuple[str, str]]:
    """By what the run is judged, where it is said."""
    lines = []
    if view.summary["slo"]:
        bounds = ", ".join(f"{key} {bound:g} ms" for key, bound in view.summary["slo"].items())
        lines.append(("SLO", bounds + (" (tbt: p99 of each request)" if "tbt" in bounds else "")))
    warmup = view.summary["warmup"]
    if warmup["seconds"]:
        left_out = counted(warmup["requests"], "request")
        lines.append(("warm-up", f"{left_out} of the first {warmup['seconds']:g} s out"))
    return lines


def _why_simulated() -> str:
    """Why ``--device auto`` took no GPU."""
    from nexusbench.devices.base import devices

    known = "cuda" in devices.names()
    return "; no usable CUDA GPU here" if known else ": this version runs simulated devices only"


def _model_line(view: RunView, resolved: dict[str, Any]) -> str:
    model = resolved["model"]
    dtypes = model["dtypes"]
    text = f"{model['name']}, weights {dtypes['weights']}, KV {dtypes['kv']}"
    degree = view.config.get("tensor_parallel_size", 1)
    return text + (f", tensor parallel over {degree} GPUs" if degree > 1 else "")


def _trace_line(view: RunView, trace: dict[str, Any]) -> str:
    span, count = view.span_ns / NS_PER_S, trace["requests"]
    following, users = trace.get("following", 0), trace.get("concurrency", 0)
    text = f"{trace['name']}: {counted(count, 'request')}"
    if users:
        text += f" of {users:,} users in a closed loop"
    elif span:
        what = "first turns/s" if following else "req/s"
        text += f" in {span:,.1f} s, mean {(count - following - 1) / span:.3g} {what}"
    # The first note is about the file as it is, the others about what was made of it.
    return f"{text}. File: {'; '.join(trace['notes'])}"


def _policies(columns: Sequence[Column]) -> str:
    """Scheduler, partitioner and belief of each column."""
    texts = []
    for column in columns:
        resolved = column.first.resolved
        belief = resolved["belief"]
        asks = f" asking {_belief(belief)}" if belief else ""
        texts.append(f"{column.label} (partitioner {resolved['partitioner']}{asks})")
    return ", ".join(texts)


def _belief(facts: dict[str, Any]) -> str:
    """What a partitioner asks, and what that was fitted to."""
    text = str(facts["cost_model"])
    profile = facts.get("profile")
    if profile:
        text += f" fitted to a profile of {profile['of']}"
        text += " (forced)" if profile["forced"] else ""
    return text + (", recalibrated" if facts.get("recalibrate") else "")


def _footnotes(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    cells = [cell for row in rows for cell in row.cells]
    notes = []
    if any(cell.best for cell in cells):
        notes.append("* best of its row; equal values share it")
    if any(cell.weak for cell in cells):
        notes.append("~ fewer than 10 samples beyond this percentile: weak")
    if any(len(column.views) > 1 for column in columns):
        notes.append("± half a 95 % interval over seeds")
    lines = ["; ".join(notes)] if notes else []
    of_client = all(c.first.resolved.get("observed") == "client" for c in columns)
    lines += CLIENT_DEFINITIONS if of_client else _DEFINITIONS
    if columns[0].first.summary["slo"]:
        lines.append(_SLO_DEFINITION)
    return lines


def _show_formulas(console: Console, columns: Sequence[Column]) -> None:
    from rich.table import Table

    console.print()
    table = Table.grid(padding=(0, 2))
    for tag, formula in columns[0].first.summary["formulas"].items():
        table.add_row(tag, columns[0].entry(tag)["unit"], formula)
    console.print(table)
    console.print("Symbols: docs/metrics.md", style="dim")


def kept_lines(views: Sequence[RunView]) -> list[str]:
    """Where each run is, and how to look further."""
    kept = [view for view in views if view.folder is not None]
    if not kept:
        return ["Nothing was kept (--no-save)."]
    width = max(len(_who(view, kept)) for view in kept)
    lines = [f"kept  {_who(view, kept):<{width}}  {view.folder}" for view in kept]
    lines.append(f"next  nexusbench explain {kept[0].folder}    (the slowest requests, and why)")
    return lines


def _who(view: RunView, views: Sequence[RunView]) -> str:
    seeds = {other.config.get("seed") for other in views}
    return view.label + (f" seed {view.config.get('seed')}" if len(seeds) > 1 else "")
