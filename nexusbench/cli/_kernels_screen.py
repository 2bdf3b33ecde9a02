"""What ``nexusbench validate kernels`` shows: errors of physics and of tables, by operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from nexusbench.cli._console import print_whole, results_console

if TYPE_CHECKING:
    from nexusbench.experiments.fidelity.errors import Errors
    from nexusbench.experiments.fidelity.kernels import OperatorScore


def show_scores(gpu: str, table: str, scores: list[OperatorScore], notes: list[str]) -> None:
    """Print the scores by operator, and the notes."""
    console = results_console()
    console.print(f"{gpu}, simulated, against {table}: errors in %", style="bold", soft_wrap=True)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    grid.add_column("operator", no_wrap=True)
    grid.add_column("", no_wrap=True)
    for name in ("n", "MAPE", "p50", "p95", "bias"):
        grid.add_column(name, justify="right")
    for score in scores:
        found = {
            "physics, held out": score.physics,
            "physics, fitted half": score.fitted,
            "table, held out": score.table,
        }
        lines = [(what, errors) for what, errors in found.items() if errors is not None]
        for line, (what, errors) in enumerate(lines):
            name = "" if line else score.operator
            grid.add_row(name, what, *_cells(errors), end_section=line == len(lines) - 1)
    print_whole(console, grid)
    console.print(
        "physics, held out: rows outside the half that the GPU's constants were fitted on; table, "
        "held out: every second count left out and interpolated from the rest",
        style="dim",
        soft_wrap=True,
    )
    for note in notes:
        console.print(note, style="dim")


def _cells(found: Errors) -> list[str]:
    return [
        f"{found.n:,}", f"{found.mape:.1f}", f"{found.median:.1f}", f"{found.p95:.1f}",
        f"{found.bias:+.1f}",
    ]  # fmt: skip
