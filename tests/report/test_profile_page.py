"""Pages of profiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from outline import Outline, figures_of

from nexusbench.core.errors import UsageError
from nexusbench.report.build import are_profiles, report_profiles


def test_profile_page(sheet: Path, tmp_path: Path) -> None:
    page = tmp_path / "profile.html"
    made = report_profiles([str(sheet), str(sheet / "profile.json")], page, None)
    assert made.verdict[0].startswith("Within 5 % of full speed, alone: prefill ")
    assert "times as long" in made.verdict[0]
    assert made.plots == []
    text = page.read_text()
    figures = figures_of(text)
    assert {"0-sms-prefill", "0-sms-decode", "0-contention-decode", "0-splits"} <= set(figures)
    assert {"1-sms-prefill"} <= set(figures)
    curve = figures["0-sms-decode"]["data"][0]
    assert curve["y"][-1] == 1
    assert curve["x"][-1] == 100
    cells = [cell for row in figures["0-contention-decode"]["data"][0]["z"] for cell in row]
    assert max(cell for cell in cells if cell is not None) > 1
    outline = Outline(text)
    assert len(outline.scripts) == 3
    shown = " ".join("".join(outline.texts).split())
    assert "a note </script><script>alert(1)" in shown
    assert "Fitted cost models" in shown
    assert made.simulated


@pytest.mark.slow
def test_each_profile_is_drawn_in_a_folder_of_its_own(sheet: Path, tmp_path: Path) -> None:
    twice = [str(sheet), str(sheet / "profile.json")]
    made = report_profiles(twice, tmp_path / "profile.html", tmp_path / "plots")
    assert {path.parent.name for path in made.plots} == {"0", "1"}


def test_runs_and_profiles_are_not_mixed(sheet: Path, tmp_path: Path) -> None:
    assert are_profiles([str(sheet), str(sheet / "profile.json")])
    assert not are_profiles(["some-run"])
    with pytest.raises(UsageError, match="is a profile, others are runs"):
        are_profiles(["some-run", str(sheet)])
