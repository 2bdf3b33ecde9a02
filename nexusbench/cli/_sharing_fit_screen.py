"""What ``validate fit --family sharing`` prints: lines of a GPU file, errors, ranges."""

from __future__ import annotations

from rich import box
from rich.table import Table

from nexusbench.cli._console import print_whole, progress_console, results_console
from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.sharing_fit import HalfErrors, SharingFit, mean_error


def show_fit(gpu: GpuSpec, table: str, made: SharingFit) -> None:
    """The lines for ``[sim]`` and ``[ranges]`` on stdout; all that is said of them on stderr."""
    console = progress_console()
    console.print(f"{gpu.name}, simulated, fitted to {table}", style="bold", soft_wrap=True)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    grid.add_column("MAPE, % (rates in hundredths)", no_wrap=True)
    for half in ("fitted half", "held out"):
        grid.add_column(f"{half}: before -> after", justify="right")
    for name, before in made.before.items():
        grid.add_row(name, *_changes(before, made.after[name]), end_section=False)
    before, after = [
        (mean_error(scores, 0), mean_error(scores, 1)) for scores in (made.before, made.after)
    ]
    grid.add_section()
    grid.add_row("mean over operators", *_changes(before, after))
    print_whole(console, grid)
    for note in made.notes:
        style = "bold red" if note.startswith("TOO FEW") else "dim"
        console.print(note, style=style, soft_wrap=True)
    for name in made.left:
        console.print(f"{name}: left as it is, the table says nothing about it", soft_wrap=True)
    for which, name in enumerate(("fitted", "held-out")):
        if made.better(which) is False:
            console.print(
                f"NOT BETTER: the {name} half is no closer than with the file's constants. Keep "
                "those, or try more --evaluations",
                style="bold red",
                soft_wrap=True,
            )
    for line in lines_of(made):
        results_console().print(line, soft_wrap=True, markup=False, highlight=False)


def _changes(before: HalfErrors, after: HalfErrors) -> list[str]:
    return [
        "no rows" if a is None or b is None else f"{a:.2f} -> {b:.2f}"
        for a, b in zip(before, after, strict=True)
    ]


def lines_of(made: SharingFit) -> list[str]:
    """TOML: constants and curves for ``[sim]``, then how far each may go for ``[ranges]``."""
    lines = ["[sim]", *(f"{name} = {value}" for name, value in made.constants.items())]
    for name, curve in made.curves.items():
        law = made.laws[name]
        lines.append(f"{name} = [ # {law.gbps:g} GB/s of one SM, knee {law.knee:g}")
        lines += [f"  [{x}, {y}]," for x, y in curve]
        lines.append("]")
    lines += ["", "[ranges] # alone, until the fitted error grows by a tenth"]
    return [*lines, *(f"{name} = [{low}, {high}]" for name, (low, high) in made.ranges.items())]
