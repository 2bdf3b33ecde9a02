"""What ``nexusbench capacity`` does and shows."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
from rich.text import Text

from nexusbench import __version__
from nexusbench.cli._capacity_verdict import capacity_verdict
from nexusbench.cli._console import counted, results_console, say
from nexusbench.cli._countdown import Countdown
from nexusbench.cli._grid import TextGrid
from nexusbench.cli._jobs import check_policies, pair_policies, policy_labels
from nexusbench.cli._screen import badge
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.cli._slo_asked import AskedSearch
from nexusbench.comparison.heading import place_text
from nexusbench.comparison.load import lines_about, worst_load
from nexusbench.experiments.capacity import (
    LITTLE_TOLERANCE,
    Capacity,
    CapacitySearch,
    check_search,
    find_capacities,
    weak_bounds,
)
from nexusbench.experiments.capacity_ranges import (
    CapacitiesOverRanges,
    capacities_over_ranges,
    searches,
)
from nexusbench.experiments.over_range import OverRange, range_words
from nexusbench.experiments.rate_search import FoundRate
from nexusbench.serving.opening import check_runs
from nexusbench.serving.resolve import caveats_of, rules_of


def show_capacity(asked: AskedSearch, precision: float) -> None:
    """Search, then print one table (or one JSON document)."""
    slo, source = asked.judged_by()
    base = asked.base()
    pairs = pair_policies(*asked.policies())
    check_policies(pairs, None)
    configs = tuple(
        msgspec.structs.replace(base, scheduler=scheduler, partitioner=partitioner)
        for scheduler, partitioner in pairs
    )
    search = CapacitySearch(
        configs=configs, slo=slo, seeds=asked.seeds, precision=precision, cache=asked.cache,
        fresh=asked.fresh,
    )  # fmt: skip
    asked.check_ranges()
    check_runs(configs)
    requests, _ = check_search(search)
    labels = policy_labels(pairs)
    countdown = Countdown("capacity", len(pairs) * len(search.seeds), quiet=asked.quiet)

    def told(position: int, found: FoundRate) -> None:
        countdown.step(f"{labels[position]} seed {found.seed}: {found.kept:.4g} req/s")

    capacities = find_capacities(search, asked.processes(), told)
    probes = sum(one.probes - one.probes_kept for one in capacities)
    countdown.end(f"{counted(probes, 'probe')} run")
    ranged = _over_ranges(asked, search, capacities, labels) if asked.over_ranges else None
    if asked.as_json:
        document = _document(search, source, labels, capacities)
        document["over_ranges"] = None if ranged is None else _ranges_document(labels, ranged)
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    _show(search, source, labels, capacities, requests)
    if ranged is not None:
        _show_ranges(labels, ranged)


def _over_ranges(
    asked: AskedSearch, search: CapacitySearch, capacities: Sequence[Capacity],
    labels: Sequence[str],
) -> CapacitiesOverRanges:  # fmt: skip
    total = searches(search, asked.over_ranges)
    countdown = Countdown("over the ranges", total, quiet=asked.quiet)

    def told(position: int, found: FoundRate) -> None:
        countdown.step(f"{labels[position]} seed {found.seed}: {found.kept:.4g} req/s")

    ranged = capacities_over_ranges(
        search, capacities, asked.over_ranges, asked.processes(), told
    )  # fmt: skip
    countdown.end(f"{total:,} searches")
    return ranged


def _show_ranges(labels: Sequence[str], ranged: CapacitiesOverRanges) -> None:
    """A line for each policy, and one for the lead of the first over the second."""
    console = results_console()
    console.print()
    for label, over in zip(labels, ranged.policies, strict=True):
        spread = f"{over.low:.3g} to {over.high:.3g} req/s at the ends of the ranges"
        if over.least is not None and over.most is not None:
            spread += f", {over.least:.3g} to {over.most:.3g} in the draws"
        words = held_words(over, "it is no interval in use")
        say(console, f"{label}: {spread}. Its interval: {words}", "bold")
    if ranged.lead is not None:
        best, other = labels[ranged.lead.best], labels[ranged.lead.other]
        words = held_words(ranged.lead.over, "it is not sure in use")
        say(console, f"That {best} is ahead of {other}: {words}", "bold")


def held_words(over: OverRange, why: str) -> str:
    """Whether it holds over the ranges; ``why`` that cannot be asked."""
    return f"open, {why}" if over.verdict == "open" else range_words(over, _rate)


def _rate(value: float) -> str:
    return f"{value:.3g} req/s"


def _ranges_document(labels: Sequence[str], ranged: CapacitiesOverRanges) -> dict[str, object]:
    lead = None
    if ranged.lead is not None:
        over = msgspec.to_builtins(ranged.lead.over)
        lead = {"of": labels[ranged.lead.best], "over": labels[ranged.lead.other], **over}
    return {
        "ends": msgspec.to_builtins(ranged.ends), "draws": msgspec.to_builtins(ranged.draws),
        "capacities": [
            {"label": label, **msgspec.to_builtins(over)}
            for label, over in zip(labels, ranged.policies, strict=True)
        ],
        "lead": lead,
    }  # fmt: skip


def _show(
    search: CapacitySearch,
    source: str,
    labels: Sequence[str],
    capacities: Sequence[Capacity],
    requests: int,
) -> None:
    console = results_console()
    simulated = all(one.simulated for one in capacities)
    console.print(Text.assemble(("nexusbench capacity", "bold"), "  ", badge(simulated)))
    config = search.configs[0]
    counts = counted(requests, "request")
    say(console, f"traffic   {config.trace}: {counts}, {_arrivals(search)}", indent=10)
    say(console, f"on        {place_text(config)}", indent=10)
    for text in caveats_of(config):
        say(console, f"WARNING   {text}", "bold", indent=10)
    say(console, f"SLO       {search.slo}  ({source})", indent=10)
    if rules := rules_of(config.scheduler for config in search.configs):
        say(console, f"rules     {rules}", indent=10)
    for line in _load_lines(labels, capacities):
        say(console, f"WARNING: {line}", "bold red")
    interval = "95 % interval" if len(search.seeds) > 1 else "bracket"
    titles = ("", "req/s", interval, "worst seed", "probes", "stopped", "N", "X·R")
    grid = TextGrid("", (*titles, "breaks first at the next rate"), texts=(0, len(titles)))
    for label, one in zip(labels, capacities, strict=True):
        grid.add(label, *_cells(one))
    grid.show(console)
    for line in _notes(search, labels, capacities, requests):
        say(console, line, "bold red" if line.startswith("WARNING") else "dim")
    sentences = capacity_verdict(labels, capacities, search.ratio)
    if sentences:
        console.print()
        say(console, sentences, "bold")


def _load_lines(labels: Sequence[str], capacities: Sequence[Capacity]) -> list[str]:
    """Sentences on capacities at which requests arrive faster than they leave."""
    told = []
    for label, one in zip(labels, capacities, strict=True):
        load = worst_load(found.load for found in one.found)
        if load is not None:
            draws = len(one.found)
            some = "" if one.overloaded == draws else f" ({one.overloaded} of {draws} draws)"
            told.append((label + some, load))
    return [
        f"At the rates named below: {line[0].lower()}{line[1:]}. A longer trace would give a lower "
        "rate"
        for line in lines_about(told, len(labels), name_one=True)
    ]


def _arrivals(search: CapacitySearch) -> str:
    shape, draws = search.configs[0].burstiness, len(search.seeds)
    if shape is None:
        return "its own arrivals, stretched"
    kind = "Poisson" if shape == 1 else f"gamma (shape {shape:g})"
    return f"{kind} arrivals, {counted(draws, 'draw')}"


def _cells(one: Capacity) -> list[str]:
    probes = f"{one.probes}" + (f" ({one.probes_kept} kept)" if one.probes_kept else "")
    little = ["-", "-"]
    if one.little is not None:
        product = one.little.number * (1 - one.little.deviation)
        little = [f"{one.little.number:.1f}", f"{product:.1f}" + ("" if one.little.held else " !")]
    total = sum(one.breaks.values())
    breaks = ", ".join(
        bound if count == total else f"{bound} ({count} of {total})"
        for bound, count in one.breaks.items()
    )
    rate = "none" if one.none else ("≥ " if one.at_least else "") + f"{one.rate:.3g}"
    high = "" if one.high is None else f"{one.high:.3g}"
    return [
        rate, f"[{one.low:.3g}, {high}]", f"{one.worst_seed:.3g}", probes, str(one.stopped),
        *little, breaks or "-",
    ]  # fmt: skip


def _notes(
    search: CapacitySearch, labels: Sequence[str], capacities: Sequence[Capacity], requests: int
) -> list[str]:
    lines = [
        "req/s: mean over draws of the highest rate that keeps the SLO, to "
        f"{search.precision:g} %; below it all rates tried keep it. Requests that do not finish "
        "count as infinitely late. Stopped: probes ended when their SLO was lost. N, X·R: Little's "
        "law at that rate, over the last three quarters of the arrivals; alike while no queue "
        "grows."
    ]
    weak = weak_bounds(search.slo, requests)
    if weak:
        lines.append(
            f"WARNING: {', '.join(weak)}: fewer than ten of {requests:,} requests lie beyond such "
            "a percentile, which makes it a matter of single requests. Use a longer trace"
        )
    for label, one in zip(labels, capacities, strict=True):
        lines += [f"WARNING: {label}: {text}" for text in _warnings(one)]
    return lines


def _warnings(one: Capacity) -> list[str]:
    found = []
    if one.none:
        found.append(
            "not even requests that come one by one keep the SLO; what breaks it is no queue, see "
            "the last column"
        )
    if one.at_least:
        found.append(
            "the trace ended before the SLO broke, with more offered than it could finish: too "
            "short for this SLO"
        )
    if one.little is not None and not one.little.held and one.little.deviation > 0:
        found.append(
            f"at this rate the queue was still growing (N is {100 * one.little.deviation:.0f} % "
            f"above X·R, tolerance {100 * LITTLE_TOLERANCE:.0f} %): a longer trace may show less"
        )
    if not one.monotone:
        found.append("some higher rate kept the SLO where a lower one broke it: unstable there")
    return found


def _document(
    search: CapacitySearch, source: str, labels: Sequence[str], capacities: Sequence[Capacity]
) -> dict[str, object]:
    return {
        "schema": JSON_SCHEMA,
        "command": "capacity",
        "nexusbench": __version__,
        "simulated": all(one.simulated for one in capacities),
        "slo": {"text": str(search.slo), "source": source, **msgspec.to_builtins(search.slo)},
        "caveats": caveats_of(search.configs[0]),
        "precision_percent": search.precision,
        "seeds": list(search.seeds),
        "overloaded": [
            label for label, one in zip(labels, capacities, strict=True) if one.overloaded
        ],
        "capacities": [
            {
                "label": label,
                "config": msgspec.to_builtins(search.configs[one.position]),
                **msgspec.to_builtins(one),
            }
            for label, one in zip(labels, capacities, strict=True)
        ],
    }
