"""What ``profile check`` shows: points and fits then and now, and a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from nexusbench.cli._console import counted, say
from nexusbench.cli._grid import TextGrid
from nexusbench.profiling.check import ProfileCheck
from nexusbench.profiling.grammar import format_batch

if TYPE_CHECKING:
    from nexusbench.profiling.check import ProfileCheck


def show_check(console: Console, made: ProfileCheck) -> None:
    """The tables and the verdict."""
    grid = TextGrid(
        "Measured again", ("batch on SMs", "then, ms", "now, ms", "change", ""), texts=(0, 4)
    )
    for again in made.points:
        setting = again.point.setting
        batch = f"{format_batch(setting.shape, setting.contexts)} on {setting.sms}"
        if setting.neighbour is not None:
            batch += f"\n  + {format_batch(setting.neighbour)} on {setting.neighbour_sms}"
        grid.add(
            batch, f"{again.point.ns / 1e6:,.3f}", f"{again.now_ns / 1e6:,.3f}",
            f"{100 * again.change:+.1f} %", "" if again.agrees else "DRIFTED",
        )  # fmt: skip
    grid.show(console)
    say(console, "+ what ran beside it, on the other SMs", "dim")
    if made.fits:
        title = "Mean error of the fits on these points, %"
        grid = TextGrid(title, ("cost model", "then", "now", ""), texts=(0, 3))
        for fit in made.fits:
            grid.add(
                fit.cost_model, f"{fit.then:.1f}", f"{fit.now:.1f}", "" if fit.holds else "DRIFTED"
            )
        grid.show(console)
    console.print()
    for note in made.notes:
        say(console, note, "dim", indent=2)
    say(console, verdict(made), "bold green" if made.fine else "bold red")


def verdict(made: ProfileCheck) -> str:
    """The verdict as one sentence."""
    count = len(made.points)
    if made.fine:
        return f"The profile holds: all {counted(count, 'point')} agree, the fits predict as before"
    drifted = sum(not again.agrees for again in made.points)
    worse = [fit.cost_model for fit in made.fits if not fit.holds]
    text = f"The profile has DRIFTED: {drifted} of {counted(count, 'point')} disagree"
    if worse:
        text += f"; {', '.join(worse)} predict{'s' if len(worse) == 1 else ''} worse than before"
    return text + ". Profile again with --fresh"
