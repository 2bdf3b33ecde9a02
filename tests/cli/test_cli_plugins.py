"""Plug-ins that break: named, disabled, and never the end of a run that was served."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from commandline import Outcome

from nexusbench.results.reader import RunReader, list_runs
from tests.examples import sample, slow

Call = Callable[..., Outcome]
_NUMBER = count()

SCHEDULER = '''
from nexusbench.core.batch import Plan
from nexusbench.schedulers.vllm import VllmScheduler

class Mine(VllmScheduler):
    """Mine."""
    name = "mine"
    steps = 0
    def schedule(self, ctx):
        self.steps += 1
        if self.steps < 5:
            return super().schedule(ctx)
        {body}
'''
METRIC = '''
from nexusbench.metrics.base import Scalar

class Mine(Scalar):
    """Mine."""
    tag, unit, direction, title, formula = "mine", "s", "lower", "my own", "1"
    def value(self, run):
        {body}
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Installs a distribution with one plug-in called ``mine``; returns the module's name."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    made: list[str] = []

    def install(family: str, code: str, attribute: str = ":Mine") -> str:
        module = f"broken_plugin_{next(_NUMBER)}"
        made.append(module)
        (place / f"{module}.py").write_text(code)
        folder = place / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        entry = f"[nexusbench.{family}]\nmine = {module}{attribute}\n"
        (folder / "entry_points.txt").write_text(entry)
        return module

    yield install
    for module in made:
        sys.modules.pop(module, None)


@pytest.mark.parametrize(
    ("code", "attribute", "says"),
    sample([
        ("import nothing_like_it\n", ":Mine", "ModuleNotFoundError"),
        ("def (\n", ":Mine", "SyntaxError"),
        ("raise SystemExit(0)\n", ":Mine", "it ends the process"),
        ("raise GeneratorExit\n", ":Mine", "GeneratorExit"),
        ("x = 1\n", ":Mine", "is not there"),
        ("Mine = 5\n", ":Mine", "is no subclass of Scheduler"),
        ("class Mine: pass\n", ":Mine", "is no subclass of Scheduler"),
        ("x = 1\n", "", "exactly one subclass of Scheduler, found 0"),
        (SCHEDULER.format(body="pass") + "    Options = 7\n", ":Mine", "Options is no msgspec"),
        (
            SCHEDULER.format(body="pass") + "    def __init__(self, options=None): 1 / 0\n",
            ":Mine",
            "cannot be made: ",
        ),
    ], 4),
)  # fmt: skip
def test_a_scheduler_that_does_not_load(
    call: Call, trace: Path, plugin: Callable[..., str], code: str, attribute: str, says: str
) -> None:
    module = plugin("schedulers", code, attribute)
    done = call("serve-trace", trace, "--device", "sim:l20", "--scheduler", "mine")
    assert done.code == 2
    assert says in done.err
    assert module in done.err or "'mine'" in done.err
    assert "unexpected" not in done.err
    # It disables itself and nothing else.
    done = call("serve-trace", trace, "--device", "sim:l20", "--scheduler", "vllm", "--no-save")
    assert done.code == 0, done.err


def test_what_is_broken_is_listed(call: Call, plugin: Callable[..., str]) -> None:
    module = plugin("schedulers", "raise SystemExit(0)\n")
    metric = plugin("metrics", "1 / 0\n", "")
    for command in ("list schedulers", "list metrics"):
        assert "BROKEN" in call(*command.split()).out
    entries = json.loads(call("list", "schedulers", "--json").out)["entries"]
    assert {entry["name"]: entry.get("error", "") for entry in entries}["mine"].count(module)
    done = call("doctor", "--no-speed")
    lines = [line for line in done.out.splitlines() if line.startswith("broken")]
    assert done.code == 1
    assert [line.split()[1] for line in lines] == ["schedulers", "metrics"]
    assert module in done.out
    assert metric in done.out


@pytest.mark.parametrize(
    ("body", "says"),
    sample([
        ("raise KeyError('x')", "KeyError"),
        ("raise SystemExit(0)", "it ends the process"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("return None", "returns NoneType from schedule, not a Plan"),
        ("return 'nothing'", "returns str from schedule, not a Plan"),
        ("return Plan(batches=('x',))", "launches str, no Batch"),
        ("return Plan(wake_at=float('nan'))", "wants to wake at nan"),
        ("return Plan(batches=7)", "TypeError"),
    ], 3),
)  # fmt: skip
def test_a_scheduler_that_breaks_while_it_serves(
    call: Call, trace: Path, plugin: Callable[..., str], body: str, says: str
) -> None:
    plugin("schedulers", SCHEDULER.format(body=body))
    done = call("serve-trace", trace, "--device", "sim:l20", "--scheduler", "mine")
    assert done.code == 1
    assert "'mine'" in done.err
    assert says in done.err
    assert "unexpected" not in done.err
    (run,) = list_runs(Path("results"))
    reader = RunReader(run, Path("results"))
    assert reader.status == "failed"
    assert says in reader.manifest.message
    assert len(reader.table("submitted")["step"]) == 4  # what it had done is kept


@pytest.mark.parametrize("value", ["float('nan')", "'first'", "None"])
@pytest.mark.slow
def test_an_order_that_is_none(
    call: Call, trace: Path, plugin: Callable[..., str], value: str
) -> None:
    code = SCHEDULER.format(body="return super().schedule(ctx)")
    plugin("schedulers", code + f"    def order_key(self, request): return {value}\n")
    done = call("serve-trace", trace, "--device", "sim:l20", "--scheduler", "mine")
    assert done.code == 1
    assert "policy 'mine' gives" in done.err
    assert "as order_key" in done.err


@pytest.mark.parametrize(
    ("body", "says"),
    sample([
        ("raise ZeroDivisionError('no requests')", "ZeroDivisionError: no requests"),
        ("raise SystemExit(3)", "it ends the process (SystemExit: 3)"),
        ("return float('inf')", "'mine' gave inf"),
        ("return 'many'", "'mine' gave str"),
    ], 2),
)  # fmt: skip
def test_a_metric_that_fails_ruins_no_run(
    call: Call, trace: Path, plugin: Callable[..., str], body: str, says: str
) -> None:
    plugin("metrics", METRIC.format(body=body), "")
    done = call("serve-trace", trace, "--device", "sim:l20", "--scheduler", "vllm")
    assert done.code == 0, done.err
    assert "metric mine FAILED and has no value" in done.out
    assert says in " ".join(done.out.split())
    (run,) = list_runs(Path("results"))
    reader = RunReader(run, Path("results"))
    summary = reader.summary()
    assert reader.status == "complete"
    assert summary is not None
    assert says in summary["failed"]["mine"]
    assert summary["metrics"]["finished"]["value"] == 40
    assert summary["metrics"]["mine"]["value"] is None
    shown = call("compare", run)
    assert shown.code == 0
    assert "metric mine FAILED" in shown.out


DEVICE = """
from nexusbench.devices.sim import Sim

class Mine(Sim):
    \"\"\"Mine.\"\"\"
    @classmethod
    def {name}(cls, *arguments):
        raise {error}
"""


@pytest.mark.parametrize("name", ["describe", "open", *slow("usable", "lacks")])
@pytest.mark.parametrize("error", ["KeyError('x')", *slow("SystemExit(0)", "GeneratorExit")])
@pytest.mark.slow
def test_a_device_that_breaks_when_it_is_asked(
    call: Call, trace: Path, plugin: Callable[..., str], name: str, error: str
) -> None:
    plugin("devices", DEVICE.format(name=name, error=error))
    done = call("serve-trace", trace, "--device", "mine:l20", "--scheduler", "vllm", "--no-save")
    if done.code:  # what is asked of a device depends on the command
        assert done.code == 1
        assert "'mine' of devices failed: " in done.err
    assert "unexpected" not in done.err
    assert "Traceback" not in done.err
    assert call("list", "devices").code == 0


def test_metrics_that_do_not_load_ruin_no_run(
    call: Call, trace: Path, plugin: Callable[..., str]
) -> None:
    module = plugin("metrics", "raise SystemExit(0)\n", "")
    clash = plugin("metrics", METRIC.format(body="return 1.0").replace('"mine"', '"ttft"'), "")
    done = call("serve-trace", trace, "--device", "sim:l20", "--scheduler", "vllm", "--json")
    assert done.code == 0, done.err
    (run,) = json.loads(done.out)["runs"]
    assert set(run["summary"]["failed"]) == {module, f"{clash}.Mine"}
    assert run["summary"]["metrics"]["ttft"]["p99"] > 0
