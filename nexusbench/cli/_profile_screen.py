"""A profile as tables: saturation, benefit, contention, splits, efficiency, fits."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from nexusbench.cli._console import counted, print_folded, print_whole, results_console, say
from nexusbench.cli._screen import badge
from nexusbench.costs._profile import Fit, Profile
from nexusbench.profiling.facts import Contention, Facts, SplitChoice

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_INDENT = 11
_MOST_BATCHES = 6  # rows and columns of the contention matrix


def show_title(title: str, profile: Profile, where: str) -> Console:
    """What was profiled; always with the badge. Returns the console for what follows."""
    from rich.text import Text

    console, identity = results_console(), profile.fingerprint
    console.print(Text.assemble((title, "bold"), "  ", badge(identity.simulated)))
    gpus = f", {identity.tensor_parallel} GPUs" if identity.tensor_parallel > 1 else ""
    lines = [
        ("device", f"{identity.device}: {profile.gpu.name}, {identity.num_sms} SMs{gpus}"),
        ("model", identity.model),
        ("points", f"{profile.num_points:,} ({profile.effort}, seed {profile.seed})"),
        ("kept", where),
    ]
    for name, text in lines:
        say(console, f"{name:<{_INDENT}}{text}", indent=_INDENT)
    return console


def show_profile(console: Console, profile: Profile, facts: Facts, *, ranges: bool) -> None:
    """All tables; ``ranges``: errors of the fits over SM ranges too."""
    show_saturation(console, facts, profile.fingerprint.num_sms)
    show_benefit(console, facts)
    show_contention(console, facts)
    show_splits(console, facts)
    show_efficiency(console, facts)
    show_fits(console, profile.fits, ranges=ranges)
    show_notes(console, profile, facts)


def table(console: Console, title: str, columns: Sequence[str], texts: int = 1) -> Table:
    """A table whose first ``texts`` columns are left-aligned; its title is printed before it."""
    from rich import box
    from rich.table import Table

    console.print()
    say(console, title, "bold")
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for position, name in enumerate(columns):
        left = position < texts
        made.add_column(name, justify="left" if left else "right", no_wrap=True)
    return made


def show_saturation(console: Console, facts: Facts, num_sms: int) -> None:
    """Fewest SMs within 5 and 10 % of the latency on all."""
    if not facts.saturation:
        return
    grid = table(
        console,
        f"Where more SMs stop paying: fewest of {num_sms} SMs within 5 and 10 % of all",
        ("phase", "operators", "batch", "all SMs, ms", "within 5 %", "10 %", "over all batches"),
        texts=3,
    )
    for row in facts.saturation:
        grid.add_row(
            row.phase, row.operators, row.batch, f"{row.all_ns / 1e6:,.2f}",
            _sms(row.within_5, num_sms), _sms(row.within_10, num_sms),
            f"{row.least} to {row.most}, median {row.typical}",
        )  # fmt: skip
    print_whole(console, grid)


def _sms(sms: int, num_sms: int) -> str:
    return f"{sms} ({100 * sms / num_sms:.0f} %)"


def show_benefit(console: Console, facts: Facts) -> None:
    """What every further tenth of the SMs saves."""
    phases = list(dict.fromkeys(row.phase for row in facts.benefit))
    if not phases:
        return
    batches = {row.phase: row.batch for row in facts.benefit}
    names = ", ".join(f"{phase} {batches[phase]}" for phase in phases)
    columns = [name for phase in phases for name in (f"{phase}, ms", "saved")]
    grid = table(
        console, f"What every further 10 % of the SMs saves: {names}", ("SMs", *columns), texts=0
    )
    for percent in range(10, 101, 10):
        cells = []
        for phase in phases:
            row = next(r for r in facts.benefit if (r.phase, r.percent) == (phase, percent))
            cells += [
                "-" if row.ns is None else f"{row.ns / 1e6:,.2f}",
                "-" if row.saved is None else f"{100 * row.saved:.1f} %",
            ]
        grid.add_row(f"{percent} %", *cells)
    print_whole(console, grid)


def show_contention(console: Console, facts: Facts) -> None:
    """Slowdown of each phase beside the other, by batch and neighbour, over the splits."""
    for phase in ("decode", "prefill"):
        rows = [row for row in facts.contention if row.phase == phase]
        if rows:
            _matrix(console, phase, rows)


def _matrix(console: Console, phase: str, rows: Sequence[Contention]) -> None:
    batches = _some(list(dict.fromkeys(row.batch for row in rows)))
    neighbours = _some(list(dict.fromkeys(row.neighbour for row in rows)))
    console.print()
    other = "prefill" if phase == "decode" else "decode"
    say(
        console,
        f"How much longer {phase} takes beside {other} than alone on the same SMs: mean (and "
        "worst) over splits",
        "bold",
    )

    def render(part: slice) -> Table:
        from rich import box
        from rich.table import Table

        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        grid.add_column(f"{phase} \\ {other}", no_wrap=True)
        for name in neighbours[part]:
            grid.add_column(name, justify="right", no_wrap=True)
        for batch in batches:
            cells = []
            for neighbour in neighbours[part]:
                found = [r.slowdown for r in rows if (r.batch, r.neighbour) == (batch, neighbour)]
                cells.append(f"{fmean(found):.2f} ({max(found):.2f})" if found else "-")
            grid.add_row(batch, *cells)
        return grid

    print_folded(console, len(neighbours), render)


def _some(values: list[str]) -> list[str]:
    """At most _MOST_BATCHES of them, evenly."""
    if len(values) <= _MOST_BATCHES:
        return values
    last = len(values) - 1
    return [values[round(i * last / (_MOST_BATCHES - 1))] for i in range(_MOST_BATCHES)]


def representative(splits: Sequence[SplitChoice]) -> list[SplitChoice]:
    """The splits of the pair of batches in the middle of those measured."""
    pairs = list(dict.fromkeys((row.prefill, row.decode) for row in splits))
    if not pairs:
        return []
    chosen = pairs[len(pairs) // 2]
    return [row for row in splits if (row.prefill, row.decode) == chosen]


def show_splits(console: Console, facts: Facts) -> None:
    """Prefill rate against decode step for one pair of batches."""
    rows = representative(facts.splits)
    if not rows:
        return
    grid = table(
        console,
        f"Splits for prefill {rows[0].prefill} beside decode {rows[0].decode}",
        ("SMs prefill/decode", "prefill, tok/s", "decode step, ms", ""),
    )
    for row in rows:
        grid.add_row(
            f"{row.prefill_sms}/{row.decode_sms}", f"{row.prefill_tokens_per_s:,.0f}",
            f"{row.decode_step_ms:,.2f}", "" if row.front else "another split beats it on both",
        )  # fmt: skip
    print_whole(console, grid)


def show_efficiency(console: Console, facts: Facts) -> None:
    """The batches that use the GPU best, and decode attention's bandwidth over SMs."""
    best = []
    for phase in ("prefill", "decode", "mixed"):
        rows = [row for row in facts.efficiency if row.phase == phase]
        if rows:
            best.append(max(rows, key=lambda row: row.mfu))
            if (fast := max(rows, key=lambda row: row.mbu)) is not best[-1]:
                best.append(fast)
    if best:
        grid = table(
            console,
            "Best use of the whole GPU: share of peak FLOP/s (MFU) and of peak bandwidth (MBU)",
            ("phase", "batch", "ms", "MFU", "MBU", "J/token"),
            texts=2,
        )
        for row in best:
            joules = row.joules_per_token
            grid.add_row(
                row.phase, row.batch, f"{row.ns / 1e6:,.2f}", f"{100 * row.mfu:.0f} %",
                f"{100 * row.mbu:.0f} %", "unknown" if joules is None else f"{joules:.3g}",
            )  # fmt: skip
        print_whole(console, grid)
    if facts.bandwidth:
        shares = ", ".join(f"{100 * b.share:.0f} % on {b.sms}" for b in facts.bandwidth)
        say(
            console,
            f"Bandwidth that decode attention ({facts.bandwidth_of}) draws, of the peak: "
            f"{shares} SMs",
        )


def show_fits(console: Console, fits: Sequence[Fit], *, ranges: bool) -> None:
    """Errors of every fit on batches that it never saw."""
    if not fits:
        return
    grid = table(
        console,
        "Fitted cost models: error on held-out batches, % of the measured time",
        ("cost model", "phase", "", "SMs", "n", "MAPE", "p95", "bias"),
        texts=4,
    )
    for fit in fits:
        scores = [score for score in fit.scores if ranges or score.sms == "all"]
        for line, score in enumerate(scores):
            grid.add_row(
                fit.cost_model if not line else "",
                score.phase, "beside" if score.corunning else "alone", score.sms, f"{score.n}",
                f"{score.mape:.1f}", f"{score.p95:.1f}", f"{score.bias:+.1f}",
                end_section=line == len(scores) - 1,
            )  # fmt: skip
        if not scores:
            grid.add_row(fit.cost_model, "no held-out points", *[""] * 6)
    print_whole(console, grid)
    for fit in fits:
        say(
            console,
            f"{fit.cost_model}: fitted to {counted(fit.num_fitted, 'point')} in "
            f"{fit.seconds:.2f} s",
            "dim",
        )


def show_notes(console: Console, profile: Profile, facts: Facts) -> None:
    """What was left out, what to distrust, what is unknown and why."""
    lines = list(profile.notes)
    if facts.num_warned:
        lines.append(
            f"{counted(facts.num_warned, 'point')} with a warning (wide interval, discarded "
            "samples, throttling); points.jsonl says which"
        )
    if facts.num_outliers:
        lines.append(
            f"{counted(facts.num_outliers, 'sample')} marked as outliers: kept, not counted"
        )
    lines += [f"unknown: {name}: {reason}" for name, reason in facts.reasons.items()]
    lines += [
        f"counter {source} is off: {reason}"
        for source, reason in profile.counters.items()
        if reason != "on"
    ]
    if lines:
        console.print()
    for line in lines:
        say(console, line, "dim", indent=2)
