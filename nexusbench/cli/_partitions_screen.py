"""The screen and the document of ``nexusbench validate partitions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nexusbench.core.specs import GpuSpec

if TYPE_CHECKING:
    from nexusbench.experiments.fidelity.errors import Errors
    from nexusbench.experiments.fidelity.partitions.points import PartitionPoints
    from nexusbench.experiments.fidelity.partitions.scores import PartitionScore

JSON_SCHEMA = 1


def document(
    gpu: GpuSpec,
    table: str,
    half: str,
    found: PartitionPoints,
    scores: Sequence[PartitionScore],
) -> dict[str, Any]:
    """One JSON document: ``scores`` of the half that was asked for, and of all; the ``points``."""
    rows = []
    for score in scores:
        name, errors = score.of(half)
        halves = {"all": score.all, "held-out": score.held_out, "fitted": score.fitted}
        rows.append(
            {
                "operator": score.operator,
                "unit": score.unit,
                "half": name,
                **_numbers(errors),
                "halves": {k: None if v is None else _numbers(v) for k, v in halves.items()},
            }
        )
    points = [
        {
            "operator": point.operator,
            "groups": list(point.groups),
            "shape": point.shape,
            "sms": list(point.sms),
            "unit": point.unit,
            "measured": point.measured,
            "simulated": point.simulated,
            "half": "fitted" if point.fitted else "held-out",
            "line": point.line,
        }
        for point in found.points
    ]
    return {
        "schema": JSON_SCHEMA, "command": "validate partitions", "simulated": True,
        "gpu": gpu.name, "num_sms": gpu.num_sms, "table": table, "measured_on": found.measured_on,
        "half": half, "scores": rows, "points": points, "notes": found.notes,
    }  # fmt: skip


def _numbers(errors: Errors) -> dict[str, float]:
    return {
        "rows": errors.n, "mape": errors.mape, "median": errors.median, "p95": errors.p95,
        "bias": errors.bias,
    }  # fmt: skip


def show(
    gpu: GpuSpec,
    table: str,
    half: str,
    found: PartitionPoints,
    scores: Sequence[PartitionScore],
) -> None:
    """The table on screen: both halves of each operator, or the one that was asked for."""
    from rich import box
    from rich.table import Table

    from nexusbench.cli._console import print_whole, results_console
    from nexusbench.experiments.fidelity.partitions.scores import PER_CENT

    console = results_console()
    # A profile of a simulated GPU says so in this name, and nothing of it was measured.
    word = "profile of" if found.measured_on.endswith(", simulated") else "measured on"
    measured = f", {word} {found.measured_on}" if found.measured_on else ""
    title = f"{gpu.name} ({gpu.num_sms} SMs), simulated, against {table}{measured}"
    console.print(title, style="bold", soft_wrap=True)
    if not found.points:
        console.print("nothing in this table can be scored", style="bold red")
    else:
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for name in ("operator", "half", "unit"):
            grid.add_column(name, no_wrap=True)
        for name in ("rows", "MAPE", "p50", "p95", "bias"):
            grid.add_column(name, justify="right")
        for score in scores:
            lines = [score.of(half)]
            if half == "held-out" and score.held_out is not None and score.fitted is not None:
                lines.append(("fitted", score.fitted))
            for line, (which, errors) in enumerate(lines):
                name = "" if line else score.operator
                unit = "%" if score.unit == PER_CENT else "0.01"
                last = line == len(lines) - 1
                grid.add_row(name, which, unit, *_cells(errors), end_section=last)
        print_whole(console, grid)
        for sentence in _explanations(scores, half):
            console.print(sentence, style="dim", soft_wrap=True)
    for note in found.notes:
        console.print(note, style="dim", soft_wrap=True)


def _cells(found: Errors) -> list[str]:
    return [
        f"{found.n:,}", f"{found.mape:.1f}", f"{found.median:.1f}", f"{found.p95:.1f}",
        f"{found.bias:+.1f}",
    ]  # fmt: skip


def _explanations(scores: Sequence[PartitionScore], half: str) -> list[str]:
    """What the names of these scores mean."""
    names = [score.operator for score in scores]
    meanings = {
        ", absolute": "NAME, absolute: times themselves; others are over the time on all SMs",
        "work rate": "work rate: time of both one after the other on all SMs, over the time until "
        "both are done; its errors are simulated - measured, in hundredths",
        "slow-down": "slow-down: time of a side until it is done, over its time alone on all SMs",
        "neighbour": "neighbour: time beside the other, over the time alone on the same SMs",
    }
    found = [text for word, text in meanings.items() if any(word in name for name in names)]
    halves = {score.of(half)[0] for score in scores}
    if half != "all":
        found.append("held-out: shapes outside the half that constants may be fitted on")
    if half != "all" and "all" in halves:
        found.append("all: the half that was asked for is empty")
    return found
