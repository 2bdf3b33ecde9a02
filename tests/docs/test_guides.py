"""Each guide's example, installed from a package of its own through its entry point, works."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from nexusbench import testing
from nexusbench.cli.main import main
from nexusbench.testing.__main__ import main as check
from tests.examples import sample

DOCS = Path(__file__).parents[2] / "docs"
# Guide, entry-point group, name of the plug-in, what the check is given, and family of the check.
GUIDES = {
    "scheduler": ("nexusbench.schedulers", "longest-first", "longest-first", "schedulers"),
    "partitioner": ("nexusbench.partitioners", "steady-gap", "steady-gap", "partitioners"),
    "cost-model": ("nexusbench.costs", "per-token", "per-token", "cost-models"),
    "metric": ("nexusbench.metrics", "waiting-share", "waiting_share", "metrics"),
    "device": ("nexusbench.devices", "metronome", "metronome:l20", "devices"),
    "gpu": ("nexusbench.data.gpus", "a10", "a10", "gpus"),
    "model-family": ("nexusbench.models.families", "chatglm", "chatglm", "model-families"),
    "trace-format": ("nexusbench.workloads.readers", "tabbed", "tabbed", "formats"),
}
SECTIONS = (r"This is a whole one", r"Check it", r"## What you have", r"## What .* hold.* to")


def guide(family: str) -> str:
    return (DOCS / f"adding-a-{family}.md").read_text(encoding="utf-8")


def example(family: str) -> str:
    return re.findall(r"^```(?:python|toml)\n(.*?)^```", guide(family), re.M | re.S)[0]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory):
    """A distribution outside the repository that brings every example."""
    place = tmp_path_factory.mktemp("scratch")
    package = place / "guide_examples"
    package.mkdir()
    (package / "__init__.py").write_text('"""Examples of the guides."""\n')
    groups: list[str] = []
    for family, (group, name, _, _) in GUIDES.items():
        module = name.replace("-", "_")
        suffix = ".toml" if family == "gpu" else ".py"
        (package / f"{name if family == 'gpu' else module}{suffix}").write_text(example(family))
        value = "guide_examples" if family == "gpu" else f"guide_examples.{module}"
        groups.append(f"[{group}]\n{name} = {value}\n")
    info = place / "guide_examples-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guide_examples\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(groups))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        importlib.invalidate_caches()
        yield place
    for name in [name for name in sys.modules if name.partition(".")[0] == "guide_examples"]:
        del sys.modules[name]


@pytest.mark.parametrize("family", GUIDES)
def test_guides_have_one_form(family: str) -> None:
    text = guide(family)
    found = [re.search(words, text) for words in SECTIONS]
    assert None not in found, SECTIONS[found.index(None)]
    starts = [match.start() for match in found]
    assert starts == sorted(starts)
    assert f"python -m nexusbench.testing {family} " in text
    assert GUIDES[family][0] in text


@pytest.mark.parametrize("family", GUIDES)
def test_examples_are_listed(installed: Path, family: str, capsys) -> None:
    _, name, tag, listed = GUIDES[family]
    assert main(["list", listed, "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["entries"]}
    (mine,) = entries.keys() & {name, tag}
    assert "error" not in entries[mine]


@pytest.mark.parametrize("family", sample(GUIDES, 7))
def test_examples_keep_the_contract(installed: Path, family: str) -> None:
    assert check([family, GUIDES[family][2], "--examples", "1"]) == 0
    assert hasattr(testing, f"check_{family.replace('-', '_')}")


def test_the_metric_has_its_row(installed: Path, tmp_path: Path, capsys) -> None:
    trace = tmp_path / "two.jsonl"
    line = '{"timestamp": %d, "input_length": 900, "output_length": 8}\n'
    trace.write_text("".join(line % at for at in (0, 100)))
    device = ["--device", "sim:l20", "--no-save"]
    assert main(["serve-trace", str(trace), "--scheduler", "vllm", *device]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    at = next(number for number, row in enumerate(rows) if row[:2] == ["waiting,", "%"])
    assert rows[at][2] == "mean"
    assert rows[at + 1][0] == "p95"
