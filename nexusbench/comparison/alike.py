"""Whether runs may be compared: labels that tell them apart, warnings about what else differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nexusbench.comparison.view import Column, RunView
from nexusbench.core.config import fields_of

# What must be equal for a comparison to be about the schedulers alone: name, path into the run.
_SAME = (
    ("trace (sha256)", ("resolved", "trace", "sha256")),
    ("device", ("resolved", "device")),
    ("GPU", ("resolved", "gpu")),
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
            "quantize_arrivals", "concurrency", "max_tokens", "too_long", "tensor_parallel_size",
            "swap_space", "kernel_table", "dtype", "temperature", "top_p", "stop_at_eos", "graphs",
        )
    ),
)  # fmt: skip
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
    traces = {str(_look(view, ("resolved", "trace", "sha256"))) for view in views}
    found = ["trace"] if len(traces) > 1 else []
    for field in _LOAD:
        values = {str(view.config[field]) for view in views if field in view.config}
        found += [_flag(field)] if len(values) > 1 else []
    seeds = {frozenset(view.config.get("seed") for view in c.views) for c in columns}
    drawn = any(
        view.config.get("burstiness") is not None or view.config.get("spread_ties") == "uniform"
        for view in views
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
        words = [_words("seed", view.config.get("seed")) for view in views]
        if len(set(words)) > 1:
            labels = [f"{label}, {seed}" for label, seed in zip(labels, words, strict=True)]
    taken: dict[str, int] = {}
    for view, label in zip(views, labels, strict=True):
        taken[label] = taken.get(label, 0) + 1
        view.label = label if taken[label] == 1 else f"{label} #{taken[label]}"


def _differing_words(views: Sequence[RunView]) -> list[list[str]]:
    """Of each thing that may differ its words for every view."""
    names = [_look(view, ("resolved", "trace", "name")) for view in views]
    hashes = [_look(view, ("resolved", "trace", "sha256")) for view in views]
    # Two traces of one name are told apart by what is in them.
    same_name = len(set(map(str, names))) < len({*map(str, hashes)})
    found = [
        [_plain(_look(view, ("resolved", "device"))) for view in views],
        _inside(views, "gpu"),
        [_plain(_look(view, ("resolved", "model", "name"))) for view in views],
        _inside(views, "model"),
        [
            f"{_plain(name)} {str(digest)[:8]}" if same_name and digest else _plain(name)
            for name, digest in zip(names, hashes, strict=True)
        ],
    ]
    fields = dict.fromkeys(key for view in views for key in view.config)
    alike = len({view.label for view in views}) < len(views)
    for field in fields:
        if field == "partitioner" and not alike:
            # A scheduler's own one tells nothing, another one that was asked for does.
            asked = [str(view.config.get(field) or "") for view in views]
            own = [view.label.partition(":")[0] for view in views]
            found.append([
                "" if name == mine else _plain(name)
                for name, mine in zip(asked, own, strict=True)
            ])  # fmt: skip
        elif field not in _NOT_TELLING and _tells(views, field):
            found.append([
                _words(field, view.config[field]) if field in view.config else "" for view in views
            ])  # fmt: skip
    found.append([_slo_words(view.summary.get("slo", {})) for view in views])
    return found


def _slo_words(slo: dict[str, float]) -> str:
    bounds = " ".join(f"{key}:{bound:g}" for key, bound in slo.items())
    return f"SLO {bounds}" if bounds else "no SLO"


def _tells(views: Sequence[RunView], field: str) -> bool:
    """What a kind of run has no setting of does not tell."""
    return len({str(view.config[field]) for view in views if field in view.config}) > 1


def _inside(views: Sequence[RunView], key: str) -> list[str]:
    """What differs between two of one name: a model or GPU whose file was changed, say."""
    facts = [_look(view, ("resolved", key)) for view in views]
    if not all(isinstance(one, dict) for one in facts):
        return ["" for _ in views]
    if len({str(one.get("name")) for one in facts}) > 1:
        return ["" for _ in views]  # its name tells
    return [
        _plain(" ".join(f"{name} {value}" for name, value in _flat(one).items()))
        for one in _differing(list(map(_flat, facts)))
    ]


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts within facts under the name of the innermost, as far as they are single values."""
    found: dict[str, Any] = {}
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
    return _FLAGS.get(field, field).replace("_", "-")


def find_warnings(views: Sequence[RunView]) -> list[str]:
    """What makes these runs differ in more than their schedulers, and which were cut short."""
    warnings = []
    for name, path in _SAME:
        if path[0] == "config" and any(path[1] not in view.config for view in views):
            continue  # a kind of run that has no such setting
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
