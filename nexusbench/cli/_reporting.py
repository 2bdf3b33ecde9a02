"""What ``report`` prints after writing its files."""

from __future__ import annotations

import json

from nexusbench import __version__
from nexusbench.cli._console import results_console, say
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.cli.outlet import end_with
from nexusbench.core.units import MIB, counted
from nexusbench.report.build import Made


def show_made(made: Made, *, as_json: bool) -> None:
    """The verdict and the files, on stdout."""
    if as_json:
        document = {
            "schema": JSON_SCHEMA,
            "command": "report",
            "nexusbench": __version__,
            "simulated": made.simulated,
            "file": str(made.file),
            "bytes": made.size,
            "plots": [str(path) for path in made.plots],
            "verdict": made.verdict,
        }
        print(json.dumps(document, indent=2))
        end_with(made.fault)
        return
    console = results_console()
    for sentence in made.verdict:
        say(console, ("Simulated: " if made.simulated else "") + sentence, "bold")
    console.print(f"page  {made.file} ({made.size / MIB:.1f} MiB)", soft_wrap=True)
    if made.plots:
        where = made.plots[0].parent
        console.print(f"plots {where} ({counted(len(made.plots), 'file')})", soft_wrap=True)
    end_with(made.fault)
