"""Plots of a profile: latency over SMs, contention, splits. matplotlib is imported on use only."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nexusbench.core.errors import UsageError
from nexusbench.core.outputs import atomic_file
from nexusbench.core.parts import parts_of
from nexusbench.profiles.points import Point
from nexusbench.profiles.profile import Profile
from nexusbench.profiling.curves import LatencyCurve, lines_of, operator_time, step_time
from nexusbench.profiling.facts import ProfileFacts, SplitChoice, representative, stored_facts
from nexusbench.profiling.grammar import format_batch

FORMATS = ("png", "svg")
_MOST_LINES = 5
_CLASSES = (("step", "whole step"), ("dense", "dense layers"), ("attention", "attention"))


def require_matplotlib() -> None:
    """Raises UsageError if it is not installed."""
    if find_spec("matplotlib") is None:
        raise UsageError(
            "--plots needs matplotlib, which is not installed. Install it with: "
            'pip install "nexusbench[plots]"'
        )


def draw(profile: Profile, points: Sequence[Point], folder: Path) -> list[Path]:
    """Write every plot as PNG and SVG into ``folder``; returns the files.

    Raises UsageError without matplotlib, or if the folder cannot be written.
    """
    require_matplotlib()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--plots: cannot write to {folder}: {error.strerror}") from None
    facts = stored_facts(profile.facts)
    drawn: list[Path] = []
    for name, figure in (
        ("latency", _latency(profile, points)),
        ("contention", _contention(profile, facts)),
        ("splits", _splits(profile, facts)),
    ):
        if figure is None:
            continue
        for kind in FORMATS:
            path = folder / f"{name}.{kind}"
            with atomic_file(path) as file:
                figure.savefig(file, format=kind, dpi=150)
            drawn.append(path)
    return drawn


def _figure(profile: Profile, title: str, columns: int) -> tuple[Any, Any]:
    """A figure without a window, titled, and marked if it is simulated."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, 4.6), layout="constrained")
    identity = profile.fingerprint
    state = "SIMULATED" if identity.simulated else "measured"
    figure.suptitle(f"{title}: {identity.model} on {identity.device} ({state})", fontsize=11)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    if identity.simulated:
        for axis in axes:
            axis.text(
                0.5, 0.5, "SIMULATED", transform=axis.transAxes, fontsize=30, color="0.88",
                ha="center", va="center", rotation=25, zorder=0,
            )  # fmt: skip
    return figure, axes


def _latency(profile: Profile, points: Sequence[Point]) -> Any:
    """Latency over the share of SMs, relative to all (Nexus, arXiv 2507.06608, Fig. 5)."""
    found = {phase: next(iter(lines_of(points, phase).values()), []) for phase in _PHASES}
    if not any(found.values()):
        return None
    parts = parts_of(profile.fingerprint.device)
    figure, axes = _figure(profile, f"Latency over {parts}", 2)
    total = profile.fingerprint.num_sms
    for axis, phase in zip(axes, _PHASES, strict=True):
        line = found[phase]
        for operators, label in _CLASSES:
            value = step_time if operators == "step" else operator_time(operators)
            curve = LatencyCurve.of(line, value)
            if curve is not None:
                shares = [100 * sms / total for sms in curve.sms]
                axis.plot(
                    shares, [ns / curve.ns[-1] for ns in curve.ns], marker="o", label=label,
                    linewidth=2 if operators == "step" else 1,
                )  # fmt: skip
        batch = format_batch(line[0].setting.shape) if line else "not measured"
        axis.set_title(f"{phase} {batch}", fontsize=10)
        axis.set_xlabel(f"{parts}, %")
        axis.set_ylabel(f"latency, 1 = on all {parts}")
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.3)
        _legend(axis)
    return figure


def _contention(profile: Profile, facts: ProfileFacts) -> Any:
    """Slowdown of one batch beside several over the own share of SMs (Fig. 6 shows one split)."""
    if not facts.contention:
        return None
    figure, axes = _figure(profile, "Contention", 2)
    parts = parts_of(profile.fingerprint.device)
    total = profile.fingerprint.num_sms
    for axis, phase in zip(axes, _PHASES, strict=True):
        rows = [row for row in facts.contention if row.phase == phase]
        batches = list(dict.fromkeys(row.batch for row in rows))
        # The same batch throughout: two things that change at once would explain nothing.
        batch = batches[len(batches) // 2] if batches else ""
        rows = [row for row in rows if row.batch == batch]
        for neighbour in _some(list(dict.fromkeys(row.neighbour for row in rows))):
            line = sorted((row.sms, row.slowdown) for row in rows if row.neighbour == neighbour)
            axis.plot(
                [100 * sms / total for sms, _ in line], [slow for _, slow in line], marker="o",
                label=f"beside {neighbour}",
            )  # fmt: skip
        axis.set_title(f"{phase} {batch}" if batch else f"{phase}: not measured", fontsize=10)
        axis.set_xlabel(f"own {parts}, %")
        axis.set_ylabel(f"times as long as alone on the same {parts}")
        axis.grid(visible=True, alpha=0.3)
        _legend(axis)
    return figure


def _splits(profile: Profile, facts: ProfileFacts) -> Any:
    """Prefill rate against decode step of every split; the front is joined. Around the pair of the
    text's table: its prefill beside several decodes, and several prefills beside its decode.
    """
    middle = representative(facts.splits)
    if not middle:
        return None
    figure, axes = _figure(profile, "Splits", 2)
    prefill, decode = middle[0].prefill, middle[0].decode
    for axis, title, fixed, varied in (
        (axes[0], f"prefill {prefill} beside ...", ("prefill", prefill), "decode"),
        (axes[1], f"decode {decode} beside ...", ("decode", decode), "prefill"),
    ):
        rows = [row for row in facts.splits if getattr(row, fixed[0]) == fixed[1]]
        own = getattr(middle[0], varied)
        for other in _some(list(dict.fromkeys(getattr(row, varied) for row in rows)), own):
            _front(axis, [row for row in rows if getattr(row, varied) == other], other)
        if any(not row.front for row in rows):
            axis.plot([], [], "kx", label="another split beats it on both")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("prefill, tokens/s")
        axis.set_ylabel("decode step, ms")
        axis.grid(visible=True, alpha=0.3)
        _legend(axis)
    return figure


def _front(axis: Any, rows: Sequence[SplitChoice], label: str) -> None:
    """The splits of one pair: those that no other beats joined, the others as crosses."""
    front = sorted((r.prefill_tokens_per_s, r.decode_step_ms) for r in rows if r.front)
    beaten = [(r.prefill_tokens_per_s, r.decode_step_ms) for r in rows if not r.front]
    (line,) = axis.plot(
        [rate for rate, _ in front], [step for _, step in front], marker="o", label=label
    )
    axis.plot(
        [rate for rate, _ in beaten], [step for _, step in beaten], "x", color=line.get_color()
    )


def _some(values: list[str], always: str = "") -> list[str]:
    """At most _MOST_LINES of them, evenly, ``always`` among them if it is one."""
    if len(values) <= _MOST_LINES:
        return values
    last = len(values) - 1
    places = {round(i * last / (_MOST_LINES - 1)) for i in range(_MOST_LINES)}
    if always in values and values.index(always) not in places:
        place = values.index(always)
        inner = places - {0, last}
        places = (places - {min(inner, key=lambda other: abs(other - place))}) | {place}
    return [values[place] for place in sorted(places)]


def _legend(axis: Any) -> None:
    """Below the axes, where it hides no data."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


_PHASES = ("prefill", "decode")
