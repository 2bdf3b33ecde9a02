"""The page in a real browser: nothing loaded, nothing wrong, everything reachable."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from stored import folders

from nexusbench.comparison.view import Judgement
from nexusbench.report.build import report_profiles, report_runs

pytestmark = pytest.mark.slow
SHOWN = "return [...document.querySelectorAll('.chart')].filter(c => c.offsetParent).length"


@pytest.fixture(scope="module")
def page(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report_runs(folders(results / "three"), results, path, Judgement(), None)
    return path


@pytest.fixture
def quiet(browser: Browser) -> Iterator[Browser]:
    """The browser; afterwards nothing may have gone wrong or been fetched."""
    yield browser
    assert browser.errors() == []
    # Heat maps are drawn as images inside of the page.
    assert all(re.match("file:|data:image/png", url) for url in browser.requests())
    assert not browser.run("return Boolean(window.pwned)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_renders(quiet: Browser, page: Path, width: int, scheme: str) -> None:
    quiet.open(page, width, scheme)
    assert quiet.draw_all() == quiet.run(SHOWN) >= 8
    assert quiet.run("return document.documentElement.scrollWidth") <= width
    page_colour = quiet.run("return getComputedStyle(document.body).backgroundColor")
    assert (page_colour == "rgb(255, 255, 255)") == (scheme == "light")
    folder = os.environ.get("NEXUSBENCH_SCREENSHOTS")
    if folder:
        quiet.screenshot(Path(folder) / f"report-{width}-{scheme}.png")


def test_only_the_page_itself_is_requested(quiet: Browser, page: Path) -> None:
    quiet.open(page)
    quiet.draw_all()
    assert quiet.requests() == [page.as_uri()]


VISIBLE = """
const chart = document.getElementById('c-0-ttft');
return chart.data.filter(t => t.visible && t.meta.tone === arguments[0]).length"""


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_legend_hides_a_run_everywhere(quiet: Browser, page: Path, by: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    quiet.open(page)
    quiet.draw_all()
    button = quiet.driver.find_element(By.CSS_SELECTOR, ".legend button[data-tone='0']")
    assert quiet.run(VISIBLE, 0) == 1
    before = quiet.run(SHOWN)
    for pressed in ("false", "true"):
        button.click() if by == "mouse" else button.send_keys(Keys.SPACE)
        assert button.get_attribute("aria-pressed") == pressed
        assert quiet.run(VISIBLE, 0) == (1 if pressed == "true" else 0)
        # The chart of this run's SMs goes with it.
        assert quiet.run(SHOWN) == before - (pressed == "false")
    assert quiet.run(VISIBLE, 1) == 1


def test_toggles_of_a_chart(quiet: Browser, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    quiet.open(page)
    quiet.draw_all()
    axis = "return document.getElementById('c-0-ttft')._fullLayout.{}.type"
    group = quiet.driver.find_element(By.CSS_SELECTOR, "[data-chart='0-ttft'][data-group='scale']")
    assert quiet.run(axis.format("xaxis")) == "log"
    group.find_element(By.CSS_SELECTOR, "[data-key='linear']").click()
    assert quiet.run(axis.format("xaxis")) == "linear"
    group = quiet.driver.find_element(By.CSS_SELECTOR, "[data-chart='0-ttft'][data-group='view']")
    group.find_element(By.CSS_SELECTOR, "[data-key='tail']").send_keys(Keys.ENTER)
    assert quiet.run(axis.format("yaxis")) == "log"
    pressed = group.find_elements(By.CSS_SELECTOR, "[aria-pressed='true']")
    assert [button.text for button in pressed] == ["tail"]


def test_theme_is_chosen_and_kept(quiet: Browser, page: Path) -> None:
    from selenium.webdriver.common.by import By

    quiet.open(page)
    colour = "return getComputedStyle(document.body).backgroundColor"
    line = "return document.getElementById('c-0-ttft').data[0].line.color"
    quiet.draw_all()
    light = quiet.run(line)
    button = quiet.driver.find_element(By.ID, "theme")
    button.click()
    button.click()
    assert button.text == "Theme: dark"
    assert quiet.run(colour) == "rgb(21, 24, 27)"
    assert quiet.run(line) != light
    quiet.driver.refresh()
    assert quiet.run(colour) == "rgb(21, 24, 27)"


def test_chart_answers_the_keyboard(quiet: Browser, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    quiet.open(page)
    quiet.draw_all()
    chart = quiet.driver.find_element(By.ID, "c-0-queue")
    span = "return document.getElementById('c-0-queue')._fullLayout.xaxis.range.map(Number)"
    low, high = quiet.run(span)
    chart.send_keys("+")
    zoomed = quiet.run(span)
    assert low < zoomed[0] < zoomed[1] < high
    chart.send_keys(Keys.ARROW_RIGHT)
    moved = quiet.run(span)
    assert moved[0] > zoomed[0]
    assert moved[1] - moved[0] == pytest.approx(zoomed[1] - zoomed[0])
    chart.send_keys("0")
    assert quiet.run(span) == pytest.approx([low, high])


def test_everything_is_reached_by_tab(quiet: Browser, page: Path) -> None:
    quiet.open(page)
    unreachable = quiet.run(
        """return [...document.querySelectorAll('button,select,summary,.chart,.scroll')]
        .filter(e => e.offsetParent && e.tabIndex < 0).length"""
    )
    unnamed = quiet.run(
        """return [...document.querySelectorAll('button,select')]
        .filter(e => !e.textContent.trim() && !e.labels?.length).length"""
    )
    assert (unreachable, unnamed) == (0, 0)


def test_loads_are_chosen_from_a_list(
    quiet: Browser, rates: Path, tmp_path: Path
) -> None:  # fmt: skip
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    path = tmp_path / "rates.html"
    report_runs(folders(rates), rates.parent, path, Judgement(), None)
    quiet.open(path, 390)
    quiet.draw_all()
    Select(quiet.driver.find_element(By.ID, "setting")).select_by_index(1)
    hidden = "return [...document.querySelectorAll('.setting')].map(s => s.hidden)"
    assert quiet.run(hidden) == [True, False]
    assert quiet.draw_all() > 5
    assert quiet.run("return document.documentElement.scrollWidth") <= 390


def test_hostile_names_are_inert(quiet: Browser, hostile: list[str], tmp_path: Path) -> None:
    path = tmp_path / "<b>page</b>.html".replace("/", "")
    report_runs(hostile, tmp_path, path, Judgement(), None)
    quiet.open(path, 390)
    quiet.draw_all()
    assert quiet.run("return document.querySelectorAll('body script').length") == 3
    assert quiet.run("return document.images.length") == 0
    assert quiet.run("return [...document.querySelectorAll('a')].map(a => a.hash)") == ["#main"]
    # Shown as it was typed, in texts and in plots.
    assert "<script>alert(1)" in quiet.run("return document.querySelector('.legend').innerText")
    ticks = quiet.run("return document.getElementById('c-0-steps').textContent")
    assert "<script>" in ticks
    assert quiet.run("return document.documentElement.scrollWidth") <= 390


def test_profile_has_a_page(quiet: Browser, sheet: Path, tmp_path: Path) -> None:
    path = tmp_path / "profile.html"
    report_profiles([str(sheet)], path, None)
    for width in (1440, 390):
        quiet.open(path, width, "dark")
        assert quiet.draw_all() >= 5
        assert quiet.run("return document.documentElement.scrollWidth") <= width
