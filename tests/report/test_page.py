"""The page as text: what is in it, what is not, and how runs are put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outline import Outline, figures_of
from stored import edit_manifest, folders, write_trace

from nexusbench.comparison.rows import make_rows
from nexusbench.comparison.view import Judgement, by_label, view_of_reader
from nexusbench.core.config import RunConfig
from nexusbench.report.build import report_runs
from nexusbench.report.escape import plain, plot_text, script_json
from nexusbench.report.gather import gather, read_runs
from nexusbench.report.page import runs_page
from nexusbench.results.reader import RunReader
from nexusbench.serving.runner import run


def page_of(runs: list[str], judgement: Judgement | None = None) -> str:
    return runs_page(gather(read_runs([RunReader(r) for r in runs], judgement or Judgement())))


@pytest.fixture(scope="module")
def three(results: Path) -> str:
    return page_of(folders(results / "three"))


def test_one_file_of_bearable_size_that_fetches_nothing(three: str) -> None:
    assert len(three.encode()) < 8e6
    outline = Outline(three)
    assert outline.fetching == [("link", "data:,"), ("a", "#main")]
    assert outline.handlers == []
    assert len(outline.scripts) == 3
    assert "default-src &#39;none&#39;" in three or "default-src 'none'" in three


def test_page_shows_the_table_of_serve_trace(three: str, results: Path) -> None:
    views = [view_of_reader(RunReader(folder)) for folder in folders(results / "three")]
    text = " ".join(Outline(three).texts)
    shown = " ".join(text.split())
    for row in make_rows(by_label(views)):
        for cell in row.cells:
            assert cell.text in shown, row
    assert "Simulated: no GPU was used" in shown
    assert "* best of its row" in shown
    for view in views:
        assert view.folder is not None
        assert view.folder.name in shown
        assert view.event_digest in shown


@pytest.mark.slow
def test_same_runs_give_the_same_page(three: str, results: Path) -> None:
    assert page_of(folders(results / "three")) == three


@pytest.mark.slow
def test_every_figure_is_one_that_plotly_takes(three: str) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")

    def coloured(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: coloured(item) for key, item in value.items()}
        return "#000000" if isinstance(value, str) and value.startswith("@") else value

    figures = figures_of(three)
    assert {"0-ttft", "0-tbt", "0-queue", "0-kv", "0-sms-0", "0-steps", "0-belief"} <= set(figures)
    for name, figure in figures.items():
        layouts = [figure["layout"]]
        layouts += [option["layout"] for group in figure["toggles"].values() for option in group]
        for layout in layouts:
            traces = [
                {key: value for key, value in coloured(trace).items() if key != "meta"}
                for trace in figure["data"]
            ]
            graph_objects.Figure(traces, coloured(layout))
        assert figure["data"], name


@pytest.mark.slow
def test_loads_get_settings_rates_and_pooled_seeds(rates: Path) -> None:
    readers = [RunReader(folder) for folder in folders(rates)]
    settings = gather(read_runs(readers, Judgement()))
    assert [setting.title for setting in settings] == ["2 req/s", "20 req/s"]
    for setting in settings:
        assert [entry.column.label for entry in setting.entries] == ["nexus", "vllm"]
        assert all(len(entry.runs) == 2 for entry in setting.entries)
        assert setting.warnings == []
    page = runs_page(settings)
    figures = figures_of(page)
    (line,) = [
        trace for trace in figures["all-rate-ttft"]["data"]
        if trace["name"] == "nexus" and trace["meta"]["view"] == "p95"
    ]  # fmt: skip
    assert line["x"] == pytest.approx([2.0, 20.0], rel=0.3)
    assert line["y"][1] > line["y"][0]
    text = " ".join(" ".join(Outline(page).texts).split())
    assert "2 seeds" in text
    assert "SLO attainment" in text
    assert "± half a 95 % interval over seeds" in text


@pytest.mark.slow
def test_one_scheduler_at_two_rates_is_one_table(rates: Path) -> None:
    found = [folder for folder in folders(rates) if "nexus" in folder]
    (setting,) = gather(read_runs([RunReader(folder) for folder in found], Judgement()))
    assert [entry.tone for entry in setting.entries] == [0, 1]
    labels = [entry.column.label for entry in setting.entries]
    assert labels == ["nexus, rate 2", "nexus, rate 20"]
    assert "all-rate-ttft" in figures_of(runs_page([setting]))


@pytest.mark.slow
def test_runs_that_were_cut_short_are_shown_and_never_best(
    results: Path, tmp_path: Path
) -> None:  # fmt: skip
    made = folders(results / "three")
    copies = []
    for folder in made[:2]:
        copy = tmp_path / Path(folder).name
        copy.symlink_to(folder)
        copies.append(str(copy))
    # A killed run: the manifest still says "running", and the last part is not there.
    import shutil

    killed = tmp_path / "killed"
    shutil.copytree(made[2], killed)
    (killed / "summary.json").unlink()
    edit_manifest(str(killed), status="running", message="")
    failed = tmp_path / "failed"
    shutil.copytree(made[2], failed)
    edit_manifest(str(failed), status="failed", message="policy broke I5", parts=[],
                  event_digest="")  # fmt: skip
    page = page_of([*copies, str(killed), str(failed)])
    text = " ".join(" ".join(Outline(page).texts).split())
    assert "killed or still running" in text
    assert "policy broke I5" in text
    assert "never called best" in text


@pytest.mark.slow
def test_other_bounds_judge_stored_runs(results: Path) -> None:
    page = page_of(folders(results / "three"), Judgement(slo={"ttft": 1.0}))
    assert "SLO attainment" in page
    shapes = figures_of(page)["0-ttft"]["layout"]["shapes"]
    assert shapes[0]["x0"] == pytest.approx(0.001)


@pytest.mark.slow
def test_large_runs_are_thinned_and_say_so(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "long.jsonl", 1500)
    config = RunConfig(trace=str(trace), scheduler="vllm", device="sim:h200", speed=0.5)
    made = run(config, results=tmp_path)
    assert made.folder is not None
    page = page_of([str(made.folder)])
    figures = figures_of(page)
    dots = figures["0-ttft_by_prompt"]["data"][0]
    assert len(dots["x"]) <= 1000
    ttft = made.summary.metrics["ttft"]
    # What is thinned keeps the largest, and meets the table.
    assert max(dots["y"]) == pytest.approx(ttft.max / 1000, rel=1e-3)
    curve = figures["0-ttft"]["data"][0]
    median = np.interp(50, curve["y"], curve["x"])
    assert median == pytest.approx(ttft.p50 / 1000, rel=1e-2)
    assert "of 1,500 requests of a run: evenly spaced by arrival, and the slowest" in page
    assert "exact quantiles" in page
    assert len(page) < 8e6


@pytest.mark.slow
def test_hostile_names_stay_text(hostile: list[str]) -> None:
    page = page_of(hostile)
    outline = Outline(page)
    assert len(outline.scripts) == 3
    assert outline.fetching == [("link", "data:,"), ("a", "#main")]
    assert outline.handlers == []
    assert "\u202e" not in page
    assert "alert(1)" in "".join(outline.texts)
    names = {trace["name"] for trace in figures_of(page)["0-ttft"]["data"]}
    assert all("<" not in name and "%{" not in name for name in names)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\x00c", "a b\ufffdc"),
        ("left\u202eright", "left\ufffdright"),
        ("one\u2028two\u2029three", "one\ufffdtwo\ufffdthree"),
        ("4\u00a0ms", "4\u00a0ms"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_plot_text_and_script_json() -> None:
    assert plot_text("<b>&%{y}") == "&lt;b&gt;&amp;%\u200b{y}"
    hidden = script_json({"a": "</script><!--\u2028&"})
    assert not set("<>&\u2028") & set(hidden)
    assert json.loads(hidden) == {"a": "</script><!--\u2028&"}


def test_nothing_half_written(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    page = tmp_path / "page.html"
    page.write_text("old")
    monkeypatch.setattr("nexusbench.report.build.runs_page", lambda settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report_runs(folders(results / "three"), results, page, Judgement(), None)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("page.html", "old")]
