"""Whether runs may be compared: labels that tell them apart, warnings about what else differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from nexusbench.comparison.view import Column, RunView
from nexusbench.core.config import fields_of
from nexusbench.core.documents import JsonObject

# What must be equal for a comparison to be about the schedulers alone: of what was resolved ...
_SAME: tuple[tuple[str, Callable[[RunView], object]], ...] = (
    ("trace (sha256)", lambda view: view.resolved.trace.sha256),
    ("device", lambda view: view.resolved.device),
    ("GPU", lambda view: msgspec.to_builtins(view.resolved.gpu)),
    ("model", lambda view: msgspec.to_builtins(view.resolved.model)),
    ("SLO", lambda view: view.summary.slo),
    ("warm-up", lambda view: view.resolved.warmup_ns),
    ("limits", lambda view: msgspec.to_builtins(view.resolved.limits)),
    ("KV blocks", lambda view: view.resolved.kv_blocks),
    ("block size", lambda view: view.resolved.block_size),
)
# ... and of what was asked, where both kinds of run have the setting.
_SAME_SETTINGS = tuple(
    name for name in (*fields_of("serving"), *fields_of("load")) if name != "warmup_s"
)
# What of a config says which requests are offered, and when.
_LOAD = fields_of("load")
_MOST_NAMED = 3  # runs, in a warning
# What a run was asked that never makes a column: the scheduler heads it, the seed is named only
# where nothing else differs, and the rest is looked up as what it became.
_NOT_TELLING = (*fields_of("named"), *fields_of("aside"))
# Settings as they are called on the command line, where that is not their own name.
_FLAGS = {"request_rate": "rate", "warmup_s": "warmup"}
# What a setting is called where it was not given.
_UNSET = {"request_rate": "rate as recorded", "speed": "speed as recorded"}
_LONGEST = 48  # characters of a value in a label


def different_loads(columns: Sequence[Column]) -> list[str]:
    """In what the loads of columns differ: then a lead may be the load's. The seeds are part of it
    where they draw the arrivals.
    """
    views = [column.first for column in columns]
    traces = {view.resolved.trace.sha256 for view in views}
    found = ["trace"] if len(traces) > 1 else []
    for field in _LOAD:
        found += [_flag(field)] if _tells(views, field) else []
    seeds = {frozenset(view.config.seed for view in c.views) for c in columns}
    drawn = any(
        view.config.burstiness is not None or view.config.spread_ties == "uniform" for view in views
    )
    return [*found, *(["seed"] if drawn and len(seeds) > 1 else [])]


def label_apart(views: Sequence[RunView], *, seeds: bool = False) -> None:
    """Give every view a label of its own: the scheduler, and whatever differs between the runs, be
    it the load or a flag. Of the seed that is said with ``seeds``, or if nothing else differs.
    """
    telling = [words for words in _differing_words(views) if len(set(words)) > 1]
    labels = [
        ", ".join([view.label, *(words[index] for words in telling if words[index])])
        for index, view in enumerate(views)
    ]
    if seeds or len(set(labels)) < len(labels):
        words = [_words("seed", view.config.seed) for view in views]
        if len(set(words)) > 1:
            labels = [f"{label}, {seed}" for label, seed in zip(labels, words, strict=True)]
    taken: dict[str, int] = {}
    for view, label in zip(views, labels, strict=True):
        taken[label] = taken.get(label, 0) + 1
        view.label = label if taken[label] == 1 else f"{label} #{taken[label]}"


def _differing_words(views: Sequence[RunView]) -> list[list[str]]:
    """Of each thing that may differ its words for every view."""
    traces = [view.resolved.trace for view in views]
    # Two traces of one name are told apart by what is in them.
    same_name = len({trace.name for trace in traces}) < len({trace.sha256 for trace in traces})
    found = [
        [_plain(view.resolved.device) for view in views],
        _inside([msgspec.to_builtins(view.resolved.gpu) for view in views]),
        [_plain(view.resolved.model.name) for view in views],
        _inside([msgspec.to_builtins(view.resolved.model) for view in views]),
        [
            f"{_plain(trace.name)} {trace.sha256[:8]}" if same_name else _plain(trace.name)
            for trace in traces
        ],
    ]
    fields = dict.fromkeys(key for view in views for key in view.config.__struct_fields__)
    alike = len({view.label for view in views}) < len(views)
    for field in fields:
        if field == "partitioner" and not alike:
            # A scheduler's own one tells nothing, another one that was asked for does.
            asked = [str(_setting(view, field) or "") for view in views]
            own = [view.label.partition(":")[0] for view in views]
            found.append([
                "" if name == mine else _plain(name)
                for name, mine in zip(asked, own, strict=True)
            ])  # fmt: skip
        elif field not in _NOT_TELLING and _tells(views, field):
            found.append([
                _words(field, _setting(view, field)) if _has(view, field) else "" for view in views
            ])  # fmt: skip
    found.append([_slo_words(view.summary.slo) for view in views])
    return found


def _slo_words(slo: dict[str, float]) -> str:
    bounds = " ".join(f"{key}:{bound:g}" for key, bound in slo.items())
    return f"SLO {bounds}" if bounds else "no SLO"


def _tells(views: Sequence[RunView], field: str) -> bool:
    """What a kind of run has no setting of does not tell."""
    return len({str(_setting(view, field)) for view in views if _has(view, field)}) > 1


def _has(view: RunView, field: str) -> bool:
    return field in view.config.__struct_fields__


def _setting(view: RunView, field: str) -> object:
    """A setting of a run; None where its kind of run has none of that name."""
    return getattr(view.config, field, None)


def _inside(facts: Sequence[JsonObject]) -> list[str]:
    """What differs between two of one name: for example a model or GPU with a changed file."""
    if len({one["name"] for one in facts}) > 1:
        return ["" for _ in facts]  # its name tells
    return [
        _plain(" ".join(f"{name} {value}" for name, value in _flat(one).items()))
        for one in _differing(list(map(_flat, facts)))
    ]


def _flat(facts: JsonObject) -> JsonObject:
    """Facts within facts under the name of the innermost, as far as they are single values."""
    found: JsonObject = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            found |= _flat(value)
        else:
            found[name] = value
    return found


def _plain(value: Any) -> str:
    # A comma would begin another line in the head of a column.
    text = " ".join(str("" if value is None else value).replace(",", " ").split())
    half = (_LONGEST - 3) // 2  # both ends: paths and addresses differ at either
    return text if len(text) <= _LONGEST else f"{text[:half]}...{text[-half:]}"


def _words(field: str, value: Any) -> str:
    """One setting in words, as in ``rate 4`` or ``no prefix-caching``."""
    name = _flag(field)
    if field in ("profile", "kernel_table") and value is not None:
        value = str(value).rstrip("/").rpartition("/")[2]
    if field == "partitioner":
        return _plain(value or "its own partitioner")
    if value is None:
        return _UNSET.get(field, f"{name} not given")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return _plain(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")


def _flag(field: str) -> str:
    return _dashed(_FLAGS.get(field, field))


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def find_warnings(views: Sequence[RunView]) -> list[str]:
    """What makes these runs differ in more than their schedulers, and which were cut short."""
    warnings = []
    compared = [(name, [look(view) for view in views]) for name, look in _SAME]
    for field in _SAME_SETTINGS:
        if all(_has(view, field) for view in views):
            name = "prefix caching" if field == "prefix_caching" else f"--{_dashed(field)}"
            compared.append((name, [_setting(view, field) for view in views]))
    for name, values in compared:
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
