"""What ``nexusbench validate run`` shows: a recorded run beside its replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from nexusbench.cli._console import print_whole, results_console

if TYPE_CHECKING:
    from rich.console import Console

    from nexusbench.experiments.fidelity.replay import Curves, ReplayValidation

_SPARK = "▁▂▃▄▅▆▇█"
_WIDTH = 60  # characters of a curve


def show_replay(folder: str, engine: str, made: ReplayValidation) -> None:
    """Print the rows, the curves and the notes; ``engine`` is what was recorded."""
    console = results_console()
    times = "kernel table" if made.config.kernel_table else "physics alone"
    console.print(
        f"{folder} ({engine or 'engine unknown'}) beside {made.resolved.device}, {times}, "
        f"scheduler {made.config.scheduler}",
        style="bold",
        soft_wrap=True,
    )
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("", "", "unit"):
        grid.add_column(name, no_wrap=True)
    for name in ("measured", "simulated", "error, %"):
        grid.add_column(name, justify="right")
    shown = ""
    for row in made.rows:
        name = row.name if row.name != shown else ""
        shown = row.name
        values = [_number(value) for value in (row.measured, row.simulated)]
        error = "" if row.error is None else f"{row.error:+.2f}"
        grid.add_row(name, row.statistic, row.unit, *values, error)
    print_whole(console, grid)
    for curve in made.curves:
        _show_curve(console, curve)
    for note in made.notes:
        console.print(note, style="dim", soft_wrap=True)


def _show_curve(console: Console, curve: Curves) -> None:
    top = max([*curve.measured, *curve.simulated], default=0.0) or 1.0
    console.print(f"{curve.name}, {curve.unit}: mean size of the error {curve.error:.2f}")
    console.print(f"  measured   {_spark(curve.measured, top)}")
    console.print(f"  simulated  {_spark(curve.simulated, top)}")


def _spark(values: list[float], top: float) -> str:
    """Means of equal stretches as bars from 0 to ``top``."""
    count = min(_WIDTH, len(values))
    bars = []
    for i in range(count):
        part = values[i * len(values) // count : (i + 1) * len(values) // count]
        share = sum(part) / len(part) / top
        bars.append(_SPARK[min(len(_SPARK) - 1, int(share * len(_SPARK)))])
    return "".join(bars)


def _number(value: float | None) -> str:
    if value is None:
        return "not recorded"
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:,.2f}"
