"""A profile as tables: saturation, benefit, contention, splits, efficiency, fits."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.text import Text

from nexusbench.cli._console import counted, results_console, say
from nexusbench.cli._grid import TextGrid
from nexusbench.cli._screen import badge
from nexusbench.core.parts import parts_of, unit_of
from nexusbench.profiles.profile import FittedCost, Profile
from nexusbench.profiling.facts import Contention, ProfileFacts, representative
from nexusbench.profiling.sharing import SharingFacts, WorkRate

_INDENT = 11
_BATCHES = (
    "batches    named COUNTqNEWsLENGTH, parts joined by _, k for 1,024: q8ks12k is one prompt that "
    "computes 8,192 tokens to a length of 12,288; 36q1s2049 is 36 decodes, each at 2,049 tokens"
)
_MOST_BATCHES = 6  # rows and columns of the contention matrix


def show_title(title: str, profile: Profile, where: str) -> Console:
    """Print which device and model were profiled, with the badge; returns the console."""
    console, identity = results_console(), profile.fingerprint
    console.print(Text.assemble((title, "bold"), "  ", badge(identity.simulated)))
    size = f"{identity.num_sms} {unit_of(identity.device)}"
    if identity.tensor_parallel > 1:
        size = f"{identity.tensor_parallel} GPUs of {size} each"
    device = f"{identity.device}: {profile.gpu.name}, {size}"
    # A shipped GPU is identified by its name, a user's file by its path.
    named = identity.device.partition("@")[0].removesuffix(f"-x{identity.tensor_parallel}")
    if profile.asked.device not in ("", named):
        device += f" (--device {profile.asked.device})"
    lines = [
        ("device", device),
        ("model", identity.model),
        ("points", f"{profile.num_points:,} ({profile.effort}, seed {profile.seed})"),
        ("kept", where),
    ]
    if profile.limits is not None:
        limits = profile.limits.budgets
        lines.insert(2, ("limits", ", ".join(f"{name} {most:,}" for name, most in limits.items())))
    for name, text in lines:
        say(console, f"{name:<{_INDENT}}{text}", indent=_INDENT)
    return console


def show_profile(console: Console, profile: Profile, facts: ProfileFacts, *, ranges: bool) -> None:
    """Print all tables; ``ranges`` adds the errors of the fits by SM range."""
    parts = parts_of(profile.fingerprint.device)
    say(console, _BATCHES, "dim", indent=_INDENT)
    show_saturation(console, facts, profile.fingerprint.num_sms, parts)
    show_benefit(console, facts, parts)
    show_contention(console, facts, parts)
    show_splits(console, facts, parts)
    show_sharing(console, facts.sharing, parts)
    show_efficiency(console, facts, parts)
    show_fits(console, profile.fits, parts, ranges=ranges)
    show_own(console, profile, parts)
    show_notes(console, profile, facts)


def show_saturation(console: Console, facts: ProfileFacts, num_sms: int, parts: str) -> None:
    """Fewest SMs (or other ``parts`` of the device) within 5 and 10 % of the latency on all."""
    if not facts.saturation:
        return
    grid = TextGrid(
        f"Where more {parts} stop paying: fewest of {num_sms} {parts} within 5 and 10 % of all",
        ("phase", "operators", "batch", f"all {parts}, ms", "within 5 %", "10 %",
         "over all batches"),
        keys=3, texts=(0, 1, 2),
    )  # fmt: skip
    for row in facts.saturation:
        grid.add(
            row.phase, row.operators, row.batch, f"{row.all_ns / 1e6:,.2f}",
            _sms(row.within_5, num_sms), _sms(row.within_10, num_sms),
            f"{row.least} to {row.most}, median {row.typical}",
        )  # fmt: skip
    grid.show(console)


def _sms(sms: int, num_sms: int) -> str:
    return f"{sms} ({100 * sms / num_sms:.0f} %)"


def show_benefit(console: Console, facts: ProfileFacts, parts: str) -> None:
    """Latency saved by each further tenth of the SMs."""
    phases = list(dict.fromkeys(row.phase for row in facts.benefit))
    if not phases:
        return
    batches = {row.phase: row.batch for row in facts.benefit}
    names = ", ".join(f"{phase} {batches[phase]}" for phase in phases)
    columns = [name for phase in phases for name in (f"{phase}, ms", "saved")]
    title = f"What every further 10 % of the {parts} saves: {names}"
    grid = TextGrid(title, (parts, *columns), texts=())
    rows = {(row.phase, row.percent): row for row in facts.benefit}
    for percent in range(10, 101, 10):
        cells = []
        for phase in phases:
            row = rows.get((phase, percent))
            cells += [
                "-" if row is None or row.ns is None else f"{row.ns / 1e6:,.2f}",
                "-" if row is None or row.saved is None else f"{100 * row.saved:.1f} %",
            ]
        grid.add(f"{percent} %", *cells)
    grid.show(console)


def show_contention(console: Console, facts: ProfileFacts, parts: str) -> None:
    """Slowdown of each phase while the other runs, by batch and neighbour, over the splits."""
    for phase in ("decode", "prefill"):
        rows = [row for row in facts.contention if row.phase == phase]
        if rows:
            _matrix(console, phase, rows, parts)


def _matrix(console: Console, phase: str, rows: Sequence[Contention], parts: str) -> None:
    batches = _some(list(dict.fromkeys(row.batch for row in rows)))
    neighbours = _some(list(dict.fromkeys(row.neighbour for row in rows)))
    other = "prefill" if phase == "decode" else "decode"
    grid = TextGrid(
        f"How much longer {phase} takes beside {other} than alone on the same {parts}: mean "
        "(and worst) over splits",
        (f"{phase} \\ {other}", *neighbours),
    )
    for batch in batches:
        cells = []
        for neighbour in neighbours:
            found = [r.slowdown for r in rows if (r.batch, r.neighbour) == (batch, neighbour)]
            cells.append(f"{fmean(found):.2f} ({max(found):.2f})" if found else "-")
        grid.add(batch, *cells)
    grid.show(console)


def _some(values: list[str]) -> list[str]:
    """At most _MOST_BATCHES of them, evenly spaced."""
    if len(values) <= _MOST_BATCHES:
        return values
    last = len(values) - 1
    return [values[round(i * last / (_MOST_BATCHES - 1))] for i in range(_MOST_BATCHES)]


def show_splits(console: Console, facts: ProfileFacts, parts: str) -> None:
    """Prefill rate against decode step time for one pair of batches."""
    rows = representative(facts.splits)
    if not rows:
        return
    grid = TextGrid(
        f"Splits for prefill {rows[0].prefill} beside decode {rows[0].decode}",
        (f"{parts} prefill/decode", "prefill, tok/s", "decode step, ms", ""), texts=(0, 3),
    )  # fmt: skip
    for row in rows:
        grid.add(
            f"{row.prefill_sms}/{row.decode_sms}", f"{row.prefill_tokens_per_s:,.0f}",
            f"{row.decode_step_ms:,.2f}", "" if row.front else "another split beats it on both",
        )  # fmt: skip
    grid.show(console)


def show_sharing(console: Console, sharing: SharingFacts, parts: str) -> None:
    """Bandwidth on some of the SMs, and what two batches at once gain (partitions.csv)."""
    shares = list(dict.fromkeys(row.percent for row in sharing.bandwidth))
    if shares:
        grid = TextGrid(
            f"What weights and keys and values draw on some of the {parts}: GB/s (of all {parts})",
            ("", "batch", parts, *(f"{percent} %" for percent in shares)), texts=(0, 1, 2),
        )  # fmt: skip
        for operator in dict.fromkeys(row.operator for row in sharing.bandwidth):
            rows = [row for row in sharing.bandwidth if row.operator == operator]
            cells = [f"{row.gb_per_s:,.0f} ({100 * row.of_all:.0f} %)" for row in rows]
            grid.add(operator, rows[0].batch, ", ".join(f"{row.sms}" for row in rows), *cells)
        grid.show(console)
    kinds: dict[tuple[str, str, str], list[WorkRate]] = {}
    for rate in sharing.rates:
        kinds.setdefault((rate.kind, rate.phase, rate.beside_phase), []).append(rate)
    if not kinds:
        return
    grid = TextGrid(
        f"Two batches at once: times over those alone on the same {parts}, mean (and worst); work "
        f"done over that of one after the other on all {parts}, mean (and range) of n pairs",
        ("first", "second", parts, "n", "time of 1st", "time of 2nd", "work rate"), keys=3,
        texts=(0, 1, 2),
    )  # fmt: skip
    for (kind, first, second), found in kinds.items():
        slowed = [rate.slowdown for rate in found], [rate.beside_slowdown for rate in found]
        rates = [rate.rate for rate in found]
        grid.add(
            first, second, "all" if kind == "streams" else "split", f"{len(found)}",
            *(f"{fmean(side):.2f} ({max(side):.2f})" for side in slowed),
            f"{fmean(rates):.2f} ({min(rates):.2f}-{max(rates):.2f})",
        )  # fmt: skip
    grid.show(console)


def show_efficiency(console: Console, facts: ProfileFacts, parts: str) -> None:
    """The batches that use the GPU best, and decode attention's bandwidth over SMs."""
    best = []
    for phase in ("prefill", "decode", "mixed"):
        rows = [row for row in facts.efficiency if row.phase == phase]
        if rows:
            best.append(max(rows, key=lambda row: row.mfu))
            if (fast := max(rows, key=lambda row: row.mbu)) is not best[-1]:
                best.append(fast)
    if best:
        grid = TextGrid(
            "Best use of the whole device: share of peak FLOP/s (MFU) and of peak bandwidth (MBU)",
            ("phase", "batch", "ms", "MFU", "MBU", "J/token"), keys=2, texts=(0, 1),
        )  # fmt: skip
        for row in best:
            joules = row.joules_per_token
            grid.add(
                row.phase, row.batch, f"{row.ns / 1e6:,.2f}", f"{100 * row.mfu:.0f} %",
                f"{100 * row.mbu:.0f} %", "unknown" if joules is None else f"{joules:.3g}",
            )  # fmt: skip
        grid.show(console)
    if facts.bandwidth:
        shares = ", ".join(f"{100 * b.share:.0f} % on {b.sms}" for b in facts.bandwidth)
        say(
            console,
            f"Bandwidth that decode attention ({facts.bandwidth_of}) draws, of the peak: "
            f"{shares} {parts}",
        )


def show_fits(console: Console, fits: Sequence[FittedCost], parts: str, *, ranges: bool) -> None:
    """Errors of every fit on held-out batches."""
    if not fits:
        return
    grid = TextGrid(
        "Fitted cost models: error on held-out batches, % of the measured time",
        ("cost model", "phase", "", parts, "n", "MAPE", "p95", "bias"), keys=4, texts=range(4),
    )  # fmt: skip
    for fit in fits:
        scores = [score for score in fit.scores if ranges or score.sms == "all"]
        for line, score in enumerate(scores):
            grid.add(
                fit.cost_model if not line else "",
                score.phase, "beside" if score.corunning else "alone", score.sms, f"{score.n}",
                f"{score.mape:.1f}", f"{score.p95:.1f}", f"{score.bias:+.1f}",
                last=line == len(scores) - 1,
            )  # fmt: skip
        if not scores:
            grid.add(fit.cost_model, "no held-out points", *[""] * 6)
    grid.show(console)
    for fit in fits:
        say(
            console,
            f"{fit.cost_model}: fitted to {counted(fit.num_fitted, 'point')} in "
            f"{fit.seconds:.2f} s",
            "dim",
        )


def show_own(console: Console, profile: Profile, parts: str) -> None:
    """The batches of ``--batch``: measured on all SMs, and predicted by each fit."""
    if not profile.batches:
        return
    models = [fit.cost_model for fit in profile.fits]
    grid = TextGrid(
        f"Your batches on all {parts}: measured, and the error of each prediction",
        ("batch", "ms", *models),
    )
    for own in profile.batches:
        errors = [f"{100 * (own.predicted_ns[m] / own.ns - 1):+.1f} %" for m in models]
        grid.add(own.batch, f"{own.ns / 1e6:,.3f}", *errors)
    grid.show(console)


def show_notes(console: Console, profile: Profile, facts: ProfileFacts) -> None:
    """What was left out, what is uncertain, and what is unknown and why."""
    lines = list(profile.notes)
    if facts.num_warned:
        kinds = ", ".join(f"{name} {count:,}" for name, count in facts.warned.items())
        lines.append(
            f"{counted(facts.num_warned, 'point')} with a warning{': ' * bool(kinds)}{kinds}; "
            "points.jsonl says which"
        )
    if facts.num_outliers:
        lines.append(
            f"{counted(facts.num_outliers, 'sample')} marked as outliers: kept, not counted"
        )
    lines += [f"unknown: {name}: {reason}" for name, reason in facts.reasons.items()]
    lines += [
        f"counter {source} {reason}"
        for source, reason in profile.counters.items()
        if reason != "on"
    ]
    if lines:
        console.print()
    for line in lines:
        say(console, line, "dim", indent=2)
