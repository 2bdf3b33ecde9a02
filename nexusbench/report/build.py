"""From names of runs to the files asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from nexusbench.comparison.headline import find_claims, headline, over_loads
from nexusbench.comparison.load import load_lines
from nexusbench.comparison.view import Judgement
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.outputs import atomic_file, check_writable
from nexusbench.profiling.plots import require_matplotlib
from nexusbench.report.gather import gather, overloaded_settings, read_runs
from nexusbench.report.page import require_packages, runs_page
from nexusbench.report.plots import draw
from nexusbench.results.reader import RunReader


class Made(msgspec.Struct, frozen=True):
    """What was written: the page, its size, the pictures, and its verdict; ``fault`` is what went
    wrong with the pictures.
    """

    file: Path
    size: int
    plots: list[Path]
    verdict: list[str]
    simulated: bool
    fault: NexusbenchError | None = None


def report_runs(
    runs: Sequence[str], results: Path, output: Path, judgement: Judgement, plots: Path | None
) -> Made:
    """The page of some runs. Raises UsageError for missing packages and places that cannot be
    written, before anything is read; InputError naming what is damaged.
    """
    require_packages()
    if plots is not None:
        require_matplotlib()
    check_writable(output)
    settings = gather(read_runs([RunReader(run, results) for run in runs], judgement))
    size = write_page(output, runs_page(settings))
    if len(settings) > 1:
        verdicts = overloaded_settings(settings)
        verdicts.append(over_loads([find_claims(setting.columns) for setting in settings]))
    else:
        columns = settings[0].columns
        verdicts = [*(f"{line}." for line in load_lines(columns)), headline(columns).text]
    simulated = any(column.first.simulated for s in settings for column in s.columns)
    made = Made(output, size, [], verdicts, simulated)
    if plots is None:
        return made
    try:
        return msgspec.structs.replace(made, plots=draw(settings, plots))
    except UsageError:
        raise
    except NexusbenchError as error:
        return msgspec.structs.replace(made, fault=error)


def report_profiles(profiles: Sequence[str], output: Path, plots: Path | None) -> Made:
    """The page of some profiles. Raises as :func:`report_runs` does."""
    from nexusbench.profiling.plots import draw as draw_profile
    from nexusbench.report.profile_page import headline, profiles_page, read_sheet

    require_packages()
    if plots is not None:
        require_matplotlib()
    check_writable(output)
    sheets = [read_sheet(name) for name in profiles]
    size = write_page(output, profiles_page(sheets))
    simulated = any(sheet.profile.fingerprint.simulated for sheet in sheets)
    made = Made(output, size, [], [headline(sheet) for sheet in sheets], simulated)
    for number, sheet in enumerate(sheets if plots is not None else ()):
        assert plots is not None
        # Pictures of several profiles have the same names.
        folder = plots / str(number) if len(sheets) > 1 else plots
        try:
            made.plots.extend(draw_profile(sheet.profile, sheet.points, folder))
        except UsageError:
            raise
        except NexusbenchError as error:
            return msgspec.structs.replace(made, fault=error)
    return made


def are_profiles(names: Sequence[str]) -> bool:
    """Whether these are profiles rather than runs. Raises UsageError for some of each."""
    from nexusbench.report.profile_page import is_profile

    found = [is_profile(name) for name in names]
    if any(found) and not all(found):
        name = names[found.index(True)]
        raise UsageError(f"{name} is a profile, others are runs. Make a page of each")
    return all(found)


def write_page(path: Path, text: str) -> int:
    """All of it or nothing; returns the bytes written."""
    data = text.encode("utf-8", errors="replace")
    with atomic_file(path) as file:
        file.write(data)
    return len(data)
