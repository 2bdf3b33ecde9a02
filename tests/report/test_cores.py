"""A CPU has cores and no SMs, on every screen, page, plot and timeline."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from outline import figures_of
from stored import edit_manifest, folders

from nexusbench.cli.main import main
from nexusbench.core.batch import Split
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.parts import parts_of, unit_of
from nexusbench.core.specs import DeviceSpec
from nexusbench.costs.base import Target, cost_models
from nexusbench.devices._cpu_shares import core_splits
from nexusbench.partitioners.base import disjoint_splits
from nexusbench.profiles.profile import check_fingerprint, load_profile, write_profile


@pytest.fixture
def cpu_sheet(sheet: Path, tmp_path: Path) -> Path:
    """The profile as if a CPU had been measured."""
    folder = shutil.copytree(sheet, tmp_path / "cpu")
    profile = load_profile(folder)
    of_cpu = msgspec.structs.replace(profile.fingerprint, device="cpu", simulated=False)
    write_profile(folder, msgspec.structs.replace(profile, fingerprint=of_cpu))
    return folder


@pytest.fixture
def cpu_run(results: Path, tmp_path: Path) -> Path:
    """A run of two partitions as if a CPU had served it."""
    folder = shutil.copytree(folders(results / "three")[0], tmp_path / "run")
    edit_manifest(str(folder), resolved={"device": "cpu"})
    return folder


@pytest.mark.parametrize("device", ["cpu", "sim:profile(cpu)"])
def test_one_place_says_what_a_device_is_made_of(device: str) -> None:
    assert (unit_of(device), parts_of(device)) == ("cores", "cores")
    assert (unit_of("cpu:shared"), parts_of("cpu:shared")) == ("% of time", "shares of time")
    assert unit_of("sim:l20-x2") == parts_of("cuda") == "SMs"


@pytest.mark.slow
def test_tables_of_a_profile(cpu_sheet: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "show", str(cpu_sheet)]) == 0
    shown = capfd.readouterr().out
    assert "Where more cores stop paying: fewest of 92 cores" in shown
    assert "cores prefill/decode" in shown
    assert not re.search(r"\bSMs?\b|GPU\b", re.sub(r"NVIDIA.*", "", shown)), shown


def test_page_of_a_profile(cpu_sheet: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(cpu_sheet), "-o", str(page)]) == 0
    text = page.read_text()
    assert "Cores that suffice" in text
    assert "Latency over cores" in text
    assert "cores, %" in json.dumps(figures_of(text))
    # The sources of the GPU that it is made of may say SMs; what is drawn and its headings may not.
    headings = " ".join(re.findall(r"<h[1-4][^>]*>[^<]*|<p[ >][^<]*", text))
    assert not re.search(r"\bSMs\b", headings + json.dumps(figures_of(text)))


@pytest.mark.slow
def test_page_and_timeline_of_a_run(cpu_run: Path, tmp_path: Path) -> None:
    page, timeline = tmp_path / "page.html", tmp_path / "t.json"
    assert main(["report", str(cpu_run), "-o", str(page)]) == 0
    assert "Cores of nexus" in page.read_text()
    assert not re.search(r"\bSMs\b", json.dumps(figures_of(page.read_text())))
    assert main(["timeline", str(cpu_run), "-o", str(timeline)]) == 0
    assert "cores prefill" in timeline.read_text()
    assert not re.search(r"\bSMs\b", timeline.read_text())


def test_error_lines(cpu_sheet: Path) -> None:
    profile = load_profile(cpu_sheet)
    now = msgspec.structs.replace(profile.fingerprint, num_sms=8)
    (line,) = check_fingerprint(profile, now)
    assert line == "it is of cpu (92 cores), this run uses cpu"
    whole = Split(("all",), (1,))
    one = DeviceSpec("cpu", "cpu", False, 1, core_splits(1), whole, 1, 0.0, 1)
    with pytest.raises(UsageError, match="its 1 cores do not make two partitions"):
        disjoint_splits(one, "nexus")
    cls = cost_models.load("roofline")
    with pytest.raises((InputError, UsageError), match="on shares of two or more sizes"):
        cls.fit([], Target(profile.gpu, profile.model), cls.Options())


@pytest.mark.slow
def test_check_up_of_a_cpu(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main(["doctor", "--device", "cpu"]) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if " GiB" in line]
    assert " cores, " in line
    assert "GPU" not in line
