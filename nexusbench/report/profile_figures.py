"""The charts of a profile: latency over SMs, contention, splits, bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nexusbench.core.parts import parts_of
from nexusbench.profiles.points import Point
from nexusbench.profiles.profile import Profile
from nexusbench.profiling.curves import LatencyCurve, lines_of, operator_time, step_time
from nexusbench.profiling.facts import Contention, ProfileFacts
from nexusbench.profiling.grammar import format_batch
from nexusbench.report.charts import Chart, Group
from nexusbench.report.escape import plot_text
from nexusbench.report.figures import (
    COLOURS,
    DASHES,
    SYMBOLS,
    Figure,
    PlotlyObject,
    ToggleOption,
    axis,
)

PHASES = ("prefill", "decode")
_CLASSES = (("step", "whole step"), ("dense", "dense layers"), ("attention", "attention"))
_MOST_PAIRS = 6


def groups_of(profile: Profile, points: Sequence[Point], facts: ProfileFacts) -> list[Group]:
    """All charts of a profile; groups without a chart are left out."""
    parts = parts_of(profile.fingerprint.device)
    groups = [
        Group("latency", f"Latency over {parts}", _curves(profile, points)),
        Group("contention", "Contention", _contention(facts, parts)),
        Group("splits", "Splits", _splits(facts, parts)),
        Group("bandwidth", "Bandwidth", _bandwidth(profile, facts)),
    ]
    return [group for group in groups if group.charts]


def _trace(number: int, name: str, x: list[Any], y: list[Any], hover: str) -> PlotlyObject:
    colour = f"@run-{number % COLOURS}"
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plot_text(name),
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 2, "dash": DASHES[number % len(DASHES)]},
        "marker": {"color": colour, "size": 6, "symbol": SYMBOLS[number % len(SYMBOLS)]},
        "hovertemplate": hover,
        "meta": {},
    }


def _keys(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"run-{number % COLOURS}", name) for number, name in enumerate(names))


def _curves(profile: Profile, points: Sequence[Point]) -> list[Chart]:
    """One chart per phase (Nexus, arXiv 2507.06608, Fig. 5): where more SMs stop to help."""
    charts, total = [], profile.fingerprint.num_sms
    parts = parts_of(profile.fingerprint.device)
    for phase in PHASES:
        line = next(iter(lines_of(points, phase).values()), [])
        traces: list[PlotlyObject] = []
        names: list[str] = []
        for operators, label in _CLASSES:
            curve = LatencyCurve.of(
                line, step_time if operators == "step" else operator_time(operators)
            )
            if curve is None:
                continue
            shares = [round(100 * sms / total, 2) for sms in curve.sms]
            relative = [round(ns / curve.ns[-1], 4) for ns in curve.ns]
            hover = f"%{{y:.3~g}} times the latency on all {parts}, with %{{x:.3~g}} % of them"
            traces.append(_trace(len(names), label, shares, relative, hover))
            names.append(label)
        if not traces:
            continue
        layout = {
            "xaxis": axis(f"{parts}, %", range=[0, 102]),
            "yaxis": axis(f"latency, 1 = on all {parts}", rangemode="tozero"),
            "hovermode": "closest",
        }
        batch = format_batch(line[0].setting.shape)
        caption = f"Batch {batch} alone; curves are made non-increasing. 1 is its latency on all "
        caption += f"{total} {parts}."
        charts.append(
            Chart(f"sms-{phase}", phase.capitalize(), caption, Figure(traces, layout),
                  _keys(names))
        )  # fmt: skip
    return charts


def _contention(facts: ProfileFacts, parts: str) -> list[Chart]:
    """A map per phase: batches against neighbours."""
    charts = []
    # One scale for both maps, so that a colour means the same in both.
    worst = max((row.slowdown for row in facts.contention), default=1.0)
    for phase in PHASES:
        rows = [row for row in facts.contention if row.phase == phase]
        if rows:
            other = PHASES[1 - PHASES.index(phase)]
            caption = (
                f"How many times longer a {phase} batch takes beside a {other} batch than alone on "
                f"the same {parts}, over the splits that were measured. Batches: q128s4224 "
                "computes 128 tokens of 4,224."
            )
            title = f"{phase.capitalize()} beside {other}"
            charts.append(Chart(f"contention-{phase}", title, caption, _map(rows, worst)))
    return charts


def _map(rows: Sequence[Contention], most: float) -> Figure:
    """Mean and worst slowdown per pair, as a heat map with its numbers written in it."""
    batches = list(dict.fromkeys(row.batch for row in rows))
    others = list(dict.fromkeys(row.neighbour for row in rows))
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row.batch, row.neighbour), []).append(row.slowdown)
    traces = []
    for view in ("mean", "worst"):
        cells: list[list[float | None]] = [
            [
                None if not values else max(values) if view == "worst"
                else round(sum(values) / len(values), 4)
                for other in others
                for values in [found.get((batch, other), [])]
            ]
            for batch in batches
        ]  # fmt: skip
        traces.append(
            {
                "type": "heatmap",
                "name": view,
                "x": [plot_text(name, 30) for name in others],
                "y": [plot_text(name, 30) for name in batches],
                "z": cells,
                "zmin": 1.0,
                "zmax": max(most, 1.1),
                "texttemplate": "%{z:.2f}",
                "hovertemplate": "%{y} beside %{x}: %{z:.3f} times as long",
                "colorscale": [[0, "@surface"], [1, "@run-1"]],
                "showscale": False,
                "xgap": 2,
                "ygap": 2,
                "meta": {"view": view},
            }
        )
    layout = {
        "xaxis": {"type": "category", "title": {"text": "beside"}, "tickangle": -35},
        "yaxis": {"type": "category", "autorange": "reversed", "title": {"text": ""}},
        "hovermode": "closest",
    }
    options = [ToggleOption(name, name) for name in ("mean", "worst")]
    return Figure(traces, layout, 130 + 34 * len(batches), toggles={"view": options})


def _splits(facts: ProfileFacts, parts: str) -> list[Chart]:
    """Prefill rate against decode step of every split; the front is joined."""
    pairs = list(dict.fromkeys((row.prefill, row.decode) for row in facts.splits))
    if not pairs:
        return []
    shown = pairs[:: -(-len(pairs) // _MOST_PAIRS)]
    traces, names = [], []
    for number, (prefill, decode) in enumerate(shown):
        rows = [row for row in facts.splits if (row.prefill, row.decode) == (prefill, decode)]
        front = sorted((r for r in rows if r.front), key=lambda r: r.prefill_tokens_per_s)
        name = f"{prefill} beside {decode}"
        hover = f"%{{text}} {parts}: "
        hover += "%{x:,.4~g} tok/s of prefill, %{y:.3~g} ms a decode step"
        x = [row.prefill_tokens_per_s for row in front]
        trace = _trace(number, name, x, [row.decode_step_ms for row in front], hover)
        trace["text"] = [f"{row.prefill_sms}/{row.decode_sms}" for row in front]
        traces.append(trace)
        names.append(name)
    layout = {
        "xaxis": axis("prefill, tokens/s", rangemode="tozero"),
        "yaxis": axis("decode step, ms", rangemode="tozero"),
        "hovermode": "closest",
    }
    few = (
        f"{len(shown)} of {len(pairs)} pairs of batches, evenly chosen. " if shown != pairs else ""
    )
    caption = f"{few}Further right and lower is better; each point is a split that no other beats."
    chart = Chart("splits", "What each split gives", caption, Figure(traces, layout, 340),
                  _keys(names))  # fmt: skip
    return [chart]


def _bandwidth(profile: Profile, facts: ProfileFacts) -> list[Chart]:
    """Attained bandwidth of decode attention over SMs."""
    if not facts.bandwidth:
        return []
    total, parts = profile.fingerprint.num_sms, parts_of(profile.fingerprint.device)
    x = [round(100 * row.sms / total, 2) for row in facts.bandwidth]
    y = [round(100 * row.share, 2) for row in facts.bandwidth]
    hover = f"%{{y:.3~g}} % of peak on %{{x:.3~g}} % of the {parts}"
    trace = _trace(0, "decode attention", x, y, hover)
    layout = {
        "xaxis": axis(f"{parts}, %", range=[0, 102]),
        "yaxis": axis("of published peak, %", range=[0, 102]),
        "hovermode": "closest",
    }
    caption = "Bytes that decode attention must read, over the time it took"
    caption += f" ({facts.bandwidth_of})." if facts.bandwidth_of else "."
    return [Chart("bandwidth", f"Bandwidth over {parts}", caption, Figure([trace], layout))]
