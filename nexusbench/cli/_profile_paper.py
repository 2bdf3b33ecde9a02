"""``nexusbench profile paper``: the table of the paper's section 3, paper beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from nexusbench import __version__
from nexusbench.cli._console import print_whole, results_console, say
from nexusbench.cli._profile_screen import table
from nexusbench.cli._profiling import JSON_SCHEMA, open_subject
from nexusbench.cli._screen import badge
from nexusbench.core.errors import UsageError
from nexusbench.experiments.motivation import Row, motivation, replay_config

DEFAULT_TRACE = Path("workloads/ldc.jsonl")


def show_paper(device: str, model: str, trace: Path | None, *, as_json: bool) -> None:
    """Measure and show. Raises UsageError for a trace that is named and not there."""
    if trace is not None and not trace.is_file():
        raise UsageError(f"--trace {trace}: there is no such file")
    if trace is None and DEFAULT_TRACE.is_file():
        trace = DEFAULT_TRACE
    subject = open_subject({"device": device, "model": model})
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
            "rows": msgspec.to_builtins(rows),
        }  # fmt: skip
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    from rich.text import Text

    console = results_console()
    title = f"Nexus, section 3: L20, Qwen2.5-3B; here {name}, {subject.model.name}  "
    console.print(Text.assemble((title, "bold"), badge(simulated)), soft_wrap=True)
    grid = table(
        console,
        "What the paper states, and what this device does",
        ("statement", "", "paper", "ours", "without", "constant made neutral", "verdict"),
        texts=2,
    )
    for column in grid.columns[-2:]:
        column.justify = "left"
    for row in rows:
        without = "" if row.without is None else _number(row, row.without)
        grid.add_row(
            row.statement, row.unit, row.paper, _number(row, row.ours), without, row.constant,
            row.verdict,
        )  # fmt: skip
    print_whole(console, grid)
    if simulated:
        say(
            console,
            "without: ours with that constant of the simulator made neutral, the one that changes "
            "it most. found: no constant was chosen for it, or it stays without. follows: it "
            "changes by more than half, so it was put in and is no evidence",
            "dim",
        )


def _number(row: Row, value: float | None) -> str:
    if value is None:
        return "-"
    digits = {"s": 3, "count": 0}.get(row.unit, 1)
    return f"{value:.{digits}f}"
