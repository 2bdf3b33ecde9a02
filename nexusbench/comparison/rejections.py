"""Requests that were rejected or failed, and runs that measured nothing: why, and the remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nexusbench.comparison.view import Column, RunView
from nexusbench.core.units import counted
from nexusbench.results.resolved import Resolved

# How a reason begins -> what to do about it.
_REMEDIES = {
    "exceeds the KV pool": "Give it more with --kv-blocks, --gpu-memory-utilization or another "
    "--device",
    "exceeds max_model_len": "Raise --max-model-len, or choose --too-long skip or clip",
}


def rejection_lines(columns: Sequence[Column]) -> list[str]:
    """A sentence per reason of what was rejected or failed; schedulers that it hit alike share
    one.
    """
    names: dict[str, list[str]] = {}
    for column in columns:
        reasons: Counter[tuple[str, str]] = Counter()
        for view in column.views:
            for outcome, found in (("rejected", view.rejections), ("failed", view.failures)):
                reasons.update({(outcome, reason): count for reason, count in found.items()})
        for (outcome, reason), count in sorted(reasons.items()):
            total = sum(view.resolved.trace.requests for view in column.views)
            detail = _reason(reason, column.first.resolved)
            text = f"{count:,} of {counted(total, 'request')} {outcome}: {detail}"
            names.setdefault(text, []).append(column.label)
    return [
        text if len(found) == len(columns) else f"{', '.join(found)}: {text}"
        for text, found in names.items()
    ]


def _reason(reason: str, resolved: Resolved) -> str:
    for begin, remedy in _REMEDIES.items():
        if reason.startswith(begin):
            tokens = resolved.kv_blocks * resolved.block_size
            size = f" ({tokens:,} tokens)" if "KV pool" in begin else ""
            return f"{reason}{size}. {remedy}"
    return reason


def nothing_measured(views: Sequence[RunView]) -> list[str]:
    """A sentence for each way in which runs have no numbers at all; none where all have some."""
    names: dict[str, list[str]] = {}
    for view in views:
        offered, rejected, failed = (
            view.summary.value(tag) for tag in ("offered", "rejected", "failed")
        )
        if not offered:
            seconds = view.summary.warmup.seconds
            text = "no request was measured"
            text += f": all began in the --warmup of {seconds:g} s" if seconds else ""
        elif offered == rejected:
            text = f"nothing was measured: all of {counted(int(offered), 'request')} rejected"
            text += "".join(f", {_reason(reason, view.resolved)}" for reason in view.rejections)
        elif offered == failed:
            text = f"nothing was measured: all of {counted(int(offered), 'request')} failed"
            text += "".join(f", {reason}" for reason in view.failures)
        else:
            continue
        if view.label not in names.setdefault(text, []):
            names[text].append(view.label)
    return [f"{', '.join(found)}: {text}" for text, found in names.items()]
