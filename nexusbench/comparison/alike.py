"""Whether runs may be compared: labels that tell them apart, warnings about what else differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nexusbench.comparison.view import RunView

# What must be equal for a comparison to be about the schedulers alone: name, path into the run.
_SAME = (
    ("trace (sha256)", ("resolved", "trace", "sha256")),
    ("device", ("resolved", "device")),
    ("model", ("resolved", "model")),
    ("SLO", ("summary", "slo")),
    ("warm-up", ("resolved", "warmup_ns")),
    ("limits", ("resolved", "limits")),
    ("KV blocks", ("resolved", "kv_blocks")),
    ("block size", ("resolved", "block_size")),
    ("prefix caching", ("config", "prefix_caching")),
    *(
        (f"--{name.replace('_', '-')}", ("config", name))
        for name in (
            "speed", "request_rate", "burstiness", "limit", "window", "spread_ties",
            "quantize_arrivals", "concurrency", "max_tokens", "too_long",
        )
    ),
)  # fmt: skip
_MOST_NAMED = 3  # runs, in a warning
# What may tell two runs of one scheduler apart in a column's head, in this order.
_TELLING = (
    ("resolved", "device"),
    ("resolved", "model", "name"),
    ("resolved", "trace", "name"),
    ("config", "partitioner"),
    ("config", "request_rate"),
    ("config", "speed"),
    ("config", "concurrency"),
    ("config", "seed"),
)


def label_apart(views: Sequence[RunView]) -> None:
    """Give every view a label of its own: the scheduler, and whatever tells it from the others."""
    bases = [view.label for view in views]
    telling = [
        path for path in _TELLING if len({str(_look(view, path)) for view in views}) > 1
    ] if len(set(bases)) < len(bases) else []  # fmt: skip
    taken: dict[str, int] = {}
    for view in views:
        words = [view.label]
        for path in telling:
            value = _look(view, path)
            if value is not None:
                plain = path[0] == "resolved" or path[-1] == "partitioner"
                words.append(str(value) if plain else f"{path[-1]} {value}")
        label = ", ".join(words)
        taken[label] = taken.get(label, 0) + 1
        view.label = label if taken[label] == 1 else f"{label} #{taken[label]}"


def find_warnings(views: Sequence[RunView]) -> list[str]:
    """What makes these runs differ in more than their schedulers, and which were cut short."""
    warnings = []
    for name, path in _SAME:
        values = [_look(view, path) for view in views]
        if any(value != values[0] for value in values):
            named: dict[str, list[str]] = {}
            for view, value in zip(views, _differing(values), strict=True):
                named.setdefault(_brief(value), []).append(view.label)
            shown = "; ".join(f"{value} ({_list(labels)})" for value, labels in named.items())
            warnings.append(f"the runs differ in {name}: {shown}")
    if len({view.simulated for view in views}) > 1:
        warnings.append("simulated and measured runs are mixed")
    partial: dict[str, list[str]] = {}
    for view in views:
        if not view.complete:
            partial.setdefault(view.status, []).append(view.label)
    warnings += [
        f"{status}: {_list(labels)}; numbers are of the part that was kept, never called best"
        for status, labels in partial.items()
    ]
    return warnings


def _list(labels: Sequence[str]) -> str:
    # In quotes, since labels have commas.
    named = ", ".join(f"'{' '.join(label.split())}'" for label in labels[:_MOST_NAMED])
    more = len(labels) - _MOST_NAMED
    return named + (f" and {more} more" if more > 0 else "")


def _look(view: RunView, path: Sequence[str]) -> Any:
    """A value inside a run, None where it has none."""
    value: Any = getattr(view, path[0])
    for key in path[1:]:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _differing(values: Sequence[Any]) -> list[Any]:
    """The values; of dictionaries only what is not the same in all."""
    if not all(isinstance(value, dict) for value in values):
        return list(values)
    keys = {key: None for value in values for key in value}
    differ = [key for key in keys if any(v.get(key) != values[0].get(key) for v in values)]
    return [{key: value[key] for key in differ if key in value} for value in values]


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        if "name" in value:
            return str(value["name"])
        return " ".join(f"{key}:{item}" for key, item in value.items()) or "none"
    text = str(value)
    return text[:8] + "..." if len(text) == 64 else text
