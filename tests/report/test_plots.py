"""Pictures: every chart, both formats, nothing a name can break."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from stored import folders

from nexusbench.comparison.view import Judgement
from nexusbench.core.errors import UsageError
from nexusbench.report import plots
from nexusbench.report.gather import gather, read_runs
from nexusbench.results.reader import RunReader

pytest.importorskip("matplotlib")


@pytest.mark.slow
def test_every_chart_is_drawn_twice(results: Path, tmp_path: Path) -> None:
    settings = gather(read_runs([RunReader(f) for f in folders(results / "three")], Judgement()))
    drawn = plots.draw(settings, tmp_path / "new" / "folder")
    names = {path.stem for path in drawn}
    assert {"ttft", "tbt", "queue", "kv", "sms-0", "steps", "belief", "ttft-by-prompt"} <= names
    assert sorted(drawn) == sorted((tmp_path / "new" / "folder").iterdir())
    for path in drawn:
        head = path.read_bytes()[:5]
        assert head == (b"\x89PNG\r" if path.suffix == ".png" else b"<?xml")


@pytest.mark.slow
def test_names_of_users_are_plain_text(hostile: list[str], tmp_path: Path) -> None:
    stored = read_runs([RunReader(folder) for folder in hostile], Judgement())
    stored[1].view.label = "_$\\frac{</svg><script>"
    (setting,) = gather(stored[1:])
    setting.entries[0].series.over_time = setting.entries[0].series.ttft_by_prompt = None
    assert plots.draw([setting], tmp_path)
    assert b"<script>" not in (tmp_path / "ttft.svg").read_bytes()


@pytest.mark.slow
def test_what_the_plot_library_thinks_of_a_name_is_no_news(
    hostile: list[str], tmp_path: Path
) -> None:
    """A font without its signs, no room for its length: warnings with paths of the package."""
    stored = read_runs([RunReader(folder) for folder in hostile], Judgement())
    for number, run in enumerate(stored):
        run.view.label = f"{number} " + "\u4f60\u597d" * 400
    (setting, *_) = gather(stored)
    for entry in setting.entries:
        entry.series.over_time = entry.series.ttft_by_prompt = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.draw([setting], tmp_path)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexusbench.profiling.plots.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"nexusbench\[plots\]"):
        plots.draw([], tmp_path)
