"""What ``nexusbench capacity`` does and shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from nexusbench import __version__
from nexusbench.cli._capacity_verdict import capacity_verdict
from nexusbench.cli._console import counted, results_console, say
from nexusbench.cli._countdown import Countdown
from nexusbench.cli._grid import Grid
from nexusbench.cli._policies import check_policies, pair_policies, split_policies
from nexusbench.cli._screen import badge
from nexusbench.cli._session import JSON_SCHEMA, policy_labels
from nexusbench.cli._slo_asked import asked_config, asked_jobs, asked_slo
from nexusbench.comparison.load import lines_about, worst_load
from nexusbench.experiments.capacity import (
    LITTLE_TOLERANCE,
    Capacity,
    CapacitySearch,
    check_search,
    find_capacities,
    weak_bounds,
)
from nexusbench.experiments.rate_search import Found
from nexusbench.models.config import caveats, load_model
from nexusbench.serving.preflight import check_runs


def show_capacity(params: Mapping[str, Any]) -> None:
    """Search, then print one table (or one JSON document)."""
    slo, source = asked_slo(params)
    base = asked_config(params)
    schedulers = split_policies(params["scheduler"], "--scheduler")
    pairs = pair_policies(schedulers, split_policies(params["partitioner"] or [], "--partitioner"))
    check_policies(pairs, params["cost_model"])
    configs = tuple(
        msgspec.structs.replace(base, scheduler=scheduler, partitioner=partitioner)
        for scheduler, partitioner in pairs
    )
    seeds = tuple(range(params["seed"], params["seed"] + params["seeds"]))
    search = CapacitySearch(
        configs=configs, slo=slo, seeds=seeds, precision=params["precision"],
        cache=params["cache"], fresh=params["fresh"],
    )  # fmt: skip
    check_runs(configs)
    requests, _ = check_search(search)
    labels = policy_labels(pairs)
    countdown = Countdown("capacity", len(pairs) * len(seeds), quiet=params["no_progress"])

    def told(position: int, found: Found) -> None:
        countdown.step(f"{labels[position]} seed {found.seed}: {found.kept:.4g} req/s")

    capacities = find_capacities(search, asked_jobs(params), told)
    probes = sum(one.probes - one.probes_kept for one in capacities)
    countdown.end(f"{counted(probes, 'probe')} run")
    if params["json"]:
        print(json.dumps(_document(search, source, labels, capacities), indent=2, allow_nan=False))
        return
    _show(search, source, labels, capacities, requests)


def _show(
    search: CapacitySearch,
    source: str,
    labels: Sequence[str],
    capacities: Sequence[Capacity],
    requests: int,
) -> None:
    from rich.text import Text

    console = results_console()
    simulated = all(one.simulated for one in capacities)
    console.print(Text.assemble(("nexusbench capacity", "bold"), "  ", badge(simulated)))
    config = search.configs[0]
    counts = counted(requests, "request")
    say(console, f"traffic   {config.trace}: {counts}, {_arrivals(search)}", indent=10)
    say(console, f"on        {config.device}, {config.model}")
    for text in caveats(load_model(config.model)):
        say(console, f"WARNING   {text}", "bold", indent=10)
    say(console, f"SLO       {search.slo}  ({source})", indent=10)
    for line in _load_lines(labels, capacities):
        say(console, f"WARNING: {line}", "bold red")
    interval = "95 % interval" if len(search.seeds) > 1 else "bracket"
    titles = ("", "req/s", interval, "worst seed", "probes", "stopped", "N", "X·R")
    grid = Grid("", (*titles, "breaks first at the next rate"), texts=(0, len(titles)))
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
    """Rates that are named although requests arrive faster than they leave at them."""
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
) -> dict[str, Any]:
    return {
        "schema": JSON_SCHEMA,
        "command": "capacity",
        "nexusbench": __version__,
        "simulated": all(one.simulated for one in capacities),
        "slo": {"text": str(search.slo), "source": source, **msgspec.to_builtins(search.slo)},
        "caveats": caveats(load_model(search.configs[0].model)),
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
