"""What stands above and below a comparison: what ran on what, and what the marks mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nexusbench.comparison.belief_notes import belief_notes
from nexusbench.comparison.endpoint import CLIENT_DEFINITIONS, endpoint_lines
from nexusbench.comparison.rows import TableRow
from nexusbench.comparison.view import Column, RunView, gpus_differ
from nexusbench.core.parts import unit_of
from nexusbench.core.units import NS_PER_S, counted

_DEFINITIONS = (
    "TTFT: scheduled arrival to first token = queueing (to first admission) + service.",
    "TBT: every gap between a request's tokens, pooled. TPOT: (end to end - TTFT) / (tokens - 1).",
)
_SLO_DEFINITION = (
    "goodput: requests that kept every bound, per second. Attainment: their share of the requests "
    "offered; what was rejected, failed or did not finish is a miss."
)


TIGHT_BETA = 1.3
_TIGHT_BETA = (
    "nexus allows decode only a few percent over its time without a neighbour; a fitted belief "
    "knows that contention alone takes more, and leaves prefill few SMs. Compare "
    "--partitioner nexus:beta=2 (docs/cost-models.md)"
)


def header_lines(
    view: RunView, resolved: dict[str, Any], why_simulated: str = ""
) -> list[tuple[str, str]]:
    """Name and text of each header line; ``why_simulated`` says why ``auto`` took no GPU."""
    if resolved.get("observed") == "client":
        trace_line = _trace_line(view, resolved["trace"])
        return endpoint_lines(view, resolved, trace_line) + _judged_lines(view)
    limits, trace = resolved["limits"], resolved["trace"]
    asked = view.config.get("device")
    device = _device_text(resolved)
    if asked == "auto":
        device += f" (--device auto{why_simulated if view.simulated else ''})"
    elif asked and ("/" in asked or "\\" in asked):
        device += f" (--device {asked})"  # the name of a file does not say which one
    tokens = resolved["kv_blocks"] * resolved["block_size"]
    caching = "on" if view.config.get("prefix_caching") else "off"
    together = " on both GPUs together" if _is_pair(resolved) else ""
    lines = [
        ("device", device),
        ("model", _model_line(view, resolved)),
        *(("WARNING", text) for text in resolved.get("caveats", ())),
        ("trace", _trace_line(view, trace)),
        (
            "KV pool",
            f"{resolved['kv_blocks']:,} blocks of {resolved['block_size']} tokens "
            f"= {tokens:,} tokens{_per_side(view, resolved)}; prefix caching {caching}",
        ),
        (
            "limits",
            f"max_num_seqs {limits['max_num_seqs']:,}{together}, max_num_batched_tokens "
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


def _is_pair(resolved: dict[str, Any]) -> bool:
    """Two GPUs, or groups of them, with a KV pool each."""
    return "gpu1" in resolved.get("pools", ())


def _per_side(view: RunView, resolved: dict[str, Any]) -> str:
    """How a pair's KV blocks are divided: evenly."""
    if not _is_pair(resolved):
        return ""
    degree = view.config.get("tensor_parallel_size", 1)
    side = "GPU" if degree == 1 else f"group of {degree} GPUs"
    return f", {resolved['kv_blocks'] // 2:,} blocks on each {side}"


def _device_text(resolved: dict[str, Any]) -> str:
    """The device, what its partitions are made of, and whether they share it in time only."""
    name, unit = resolved["device"], unit_of(resolved["device"])
    cores = (resolved.get("environment") or {}).get("cores")
    if cores is None:
        gpus = resolved.get("gpus", 1)
        if gpus > 1:
            each = resolved["gpu"]["num_sms"]
            return f"{name}: {resolved['gpu']['name']}, {gpus} GPUs of {each} {unit} each"
        return f"{name}: {resolved['gpu']['name']}, {resolved['num_sms']} {unit}"
    text = f"{name}: {resolved['gpu']['name']}, {len(cores.split(','))} cores"
    if name.endswith(":shared"):
        text += ", TIME-SHARED: a split is a share of their time by thread priority, not of cores"
    return text


def _model_line(view: RunView, resolved: dict[str, Any]) -> str:
    model = resolved["model"]
    dtypes = model["dtypes"]
    text = f"{model['name']}, weights {dtypes['weights']}, KV {dtypes['kv']}"
    degree = view.config.get("tensor_parallel_size", 1)
    if resolved.get("random_weights"):
        text += ", RANDOM weights"
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


def policies_line(columns: Sequence[Column]) -> str:
    """Scheduler, partitioner and belief of each column, with the options that were typed."""
    texts = []
    for column in columns:
        resolved, config = column.first.resolved, column.first.config
        if resolved["scheduler"] is None:  # whatever a server has
            continue
        belief, partitioner = resolved["belief"], config.get("partitioner")
        asks = f" asking {_belief(belief, config.get('cost_model'))}" if belief else ""
        texts.append(f"{column.label} (partitioner {partitioner or resolved['partitioner']}{asks})")
    return ", ".join(texts)


def _belief(facts: dict[str, Any], asked: str | None) -> str:
    """What a partitioner asks, and what that was fitted to."""
    text = asked or str(facts["cost_model"])
    profile = facts.get("profile")
    if profile:
        text += f" fitted to a profile of {profile['of']}"
        text += " (forced)" if profile["forced"] else ""
    return text + (", recalibrated" if facts.get("recalibrate") else "")


def note_lines(columns: Sequence[Column]) -> list[tuple[str, str]]:
    """What must be known of these policies, as further header lines."""
    notes = [_TIGHT_BETA] if any(map(_is_tight, columns)) else []
    notes += _gpus_notes(columns)
    notes += _failed_notes(columns)
    notes += belief_notes(columns[0].first.config, [column.first.resolved for column in columns])
    return [("note", text) for text in notes]


def _gpus_notes(columns: Sequence[Column]) -> list[str]:
    """Who uses more GPUs than the header's first run."""
    if not gpus_differ(columns):
        return []
    named = [
        f"{c.label} {c.gpus} ({c.first.resolved['device']}, {c.first.resolved['kv_blocks']:,} KV "
        "blocks)"
        for c in columns
    ]
    return [f"not all use the same number of GPUs: {', '.join(named)}; rates stand per GPU too"]


def _failed_notes(columns: Sequence[Column]) -> list[str]:
    """Metrics and plug-ins that have no value here because they failed, each once."""
    faults: dict[str, str] = {}
    for column in columns:
        for view in column.views:
            faults |= view.summary.get("failed", {})
    return [f"metric {name} FAILED and has no value: {why}" for name, why in faults.items()]


def _is_tight(column: Column) -> bool:
    """Nexus's published slack with a belief that knows contention."""
    resolved = column.first.resolved
    belief, options = resolved["belief"], resolved.get("partitioner_options", {})
    fitted = belief is not None and belief.get("profile")
    return bool(fitted) and options.get("beta", TIGHT_BETA) < TIGHT_BETA


def footnotes(columns: Sequence[Column], rows: Sequence[TableRow]) -> list[str]:
    """What the marks of the table mean, and its words."""
    cells = [cell for row in rows for cell in row.cells]
    notes = []
    if any(cell.best for cell in cells):
        notes.append("* best of its row; equal values share it, and a lead may be within the noise")
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
