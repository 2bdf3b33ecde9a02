"""``nexusbench profile paper``: the table of the paper's section 3, with this device's values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from nexusbench import __version__
from nexusbench.cli._console import results_console, say
from nexusbench.cli._grid import TextGrid
from nexusbench.cli._profiling import JSON_SCHEMA
from nexusbench.cli._screen import badge
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.experiments.motivation import AGREES, IN_PART, Statement, motivation, replay_config
from nexusbench.serving.opening import open_subject

DEFAULT_TRACE = Path("workloads/ldc.jsonl")


def show_paper(device: str, model: str, trace: Path | None, *, as_json: bool) -> None:
    """Measure and print. Raises UsageError if a named trace does not exist."""
    if trace is not None and not trace.is_file():
        raise UsageError(f"--trace {trace}: there is no such file")
    if trace is None and DEFAULT_TRACE.is_file():
        trace = DEFAULT_TRACE
    subject = open_subject(RunConfig(trace="", device=device, model=model))
    try:
        simulated, name = subject.device.spec.simulated, subject.device.spec.name
        config = None
        if trace is not None:
            config = msgspec.structs.replace(replay_config(subject, trace, device), model=model)
        rows = motivation(subject, config)
    finally:
        subject.device.close()
    if as_json:
        document = {
            "schema": JSON_SCHEMA, "command": "profile paper", "nexusbench": __version__,
            "simulated": simulated, "device": name, "model": subject.model.name,
            "rows": [{**msgspec.structs.asdict(row), "agrees": row.agrees} for row in rows],
        }  # fmt: skip
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    console = results_console()
    title = f"Nexus, section 3: L20, Qwen2.5-3B; here {name}, {subject.model.name}  "
    console.print(Text.assemble((title, "bold"), badge(simulated)), soft_wrap=True)
    _show(console, rows, simulated=simulated)


def _show(console: Console, rows: Sequence[Statement], *, simulated: bool) -> None:
    grid = TextGrid(
        "What the paper states, and what this device does",
        ("statement", "paper", "ours", "agrees", "ours is"), texts=(0, 3, 4),
    )  # fmt: skip
    for row in rows:
        grid.add(row.statement, row.paper, _number(row, row.ours), row.agrees, _origin(row))
    grid.show(console)
    lines = [
        f"agrees: yes within {100 * AGREES:g} % of the paper's number or of its bound, in part "
        f"within {100 * IN_PART:g} %"
    ]
    if simulated:
        lines.append(
            "found: no constant of the simulator was chosen for it, or it stays without the one "
            "that changes it most. follows from: it changes by more than half with that constant "
            "made neutral, so it was put in and is no evidence, whether it agrees or not"
        )
    for line in lines:
        say(console, line, "dim")


def _origin(row: Statement) -> str:
    """Whether a value was measured here or follows from an assumption."""
    if row.verdict != "follows" or row.without is None:
        return row.verdict
    constant = row.constant.partition(" ")[0]
    return f"follows from\n{constant}\n({_number(row, row.without)} without)"


def _number(row: Statement, value: float | None) -> str:
    if value is None:
        return "-"
    digits = {"s": 3, "count": 0}.get(row.unit, 1)
    return f"{value:.{digits}f}" + ("" if row.unit == "count" else f" {row.unit}")
