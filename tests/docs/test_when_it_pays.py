"""docs/when-it-pays.md shows the committed survey, and its sentences are true of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexusbench.core.errors import InputError
from nexusbench.experiments.paying.spec import load_map
from nexusbench.experiments.paying.survey import Survey
from nexusbench.experiments.paying.survey_files import read_manifest
from nexusbench.experiments.paying.tables import cells_of
from nexusbench.experiments.paying.verdicts import Cell, Verdict, verdict
from nexusbench.metrics.slo import preset
from tests.docs import when_it_pays as page

TEXT = page.DOCUMENT.read_text()


@pytest.fixture(scope="module")
def survey() -> Survey:
    return page.committed()


def cells(survey: Survey, traffic: str, slo: str = "") -> list[Cell]:
    (found,) = [t for t in survey.spec.traffic if t.name == traffic]
    return [cell for cell in cells_of(survey, found) if cell.slo == (slo or cell.slo)]


def answer(survey: Survey, cell: Cell, question: str) -> Verdict:
    found = verdict(survey, cell, question)
    assert found is not None, f"no rows for {cell}"
    return found


def test_tables_are_those_of_the_survey(survey: Survey) -> None:
    assert page.rendered(TEXT, survey) == TEXT, (
        "docs/when-it-pays.md is old; refresh it with: python -m tests.docs.when_it_pays"
    )


def test_everything_is_called_simulated() -> None:
    assert "**Everything on it is simulated**" in TEXT
    assert read_manifest(page.RESULTS)["simulated"] is True
    for name in ("loads", "grid"):
        assert "SIMULATED" in (page.RESULTS / f"{name}.svg").read_text()


def test_every_run_came_to_its_end(survey: Survey) -> None:
    assert {row.error for row in survey.rows.values()} == {""}


def test_presets_are_described_as_they_are() -> None:
    assert preset("guidellm-chat").slo == "ttft:p99<200,tbt:p99<50"
    assert preset("llama3.1-8b").slo == "ttft:p99<2000,tpot:p99<100"
    assert preset("llama3.1-405b").slo == "ttft:p99<6000,tpot:p99<175"


def test_a_survey_of_another_spec_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((page.RESULTS / "manifest.json").read_bytes())
    spec = load_map(page.SPEC)
    other = type(spec)(
        **{name: getattr(spec, name) for name in spec.__struct_fields__ if name != "sha256"},
        sha256="other",
    )
    with pytest.raises(InputError, match="another version"):
        page.read_survey(tmp_path, other)
