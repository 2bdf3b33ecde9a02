"""Help, version, list, doctor, and what importing the command line may not import."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import REPOSITORY, Outcome, environment

import nexusbench
from nexusbench.cli._argv import expand_goodput
from nexusbench.cli.list_plugins import FAMILIES
from tests.examples import slow

Call = Callable[..., Outcome]

HELP_IMPORTS = """
import sys
from nexusbench.cli.main import main
code = main(sys.argv[1:])
heavy = {"pandas", "scipy", "torch", "matplotlib", "pyarrow", "numpy"} & set(sys.modules)
assert code == 0 and not heavy, (code, heavy)
"""


@pytest.mark.parametrize(
    "arguments",
    [["serve-trace", "--help"], *slow(["--help"], ["compare", "-h"], ["--version"])],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_IMPORTS, *arguments],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_and_version(call: Call) -> None:
    shown = call("--help")
    assert shown.code == 0
    assert "simulated GPUs" in shown.out
    assert "4 nothing for rerun to compare with" in " ".join(shown.out.split())
    for command in ("serve-trace", "compare", "rerun", "explain", "list", "doctor"):
        assert command in shown.out
    assert call("--version").out == f"nexusbench {nexusbench.__version__}\n"
    bare = call()
    assert bare.code == 2
    assert "serve-trace" in bare.out + bare.err
    assert "2 is faster" in call("serve-trace", "--help").out


@pytest.mark.parametrize("family", FAMILIES)
def test_list(call: Call, family: str) -> None:
    shown = call("list", family)
    assert shown.code == 0
    assert "BROKEN" not in shown.out
    document = json.loads(call("list", family, "--json").out)
    assert document["family"] == family
    names = [entry["name"] for entry in document["entries"]]
    assert names
    assert all(name in shown.out for name in names)


def test_list_tells_sources_and_options(call: Call) -> None:
    entries = json.loads(call("list", "schedulers", "--json").out)["entries"]
    nexus = next(entry for entry in entries if entry["name"] == "nexus")
    assert "2507.06608" in nexus["source"]
    order = next(option for option in nexus["options"] if option["name"] == "order")
    assert order["default"] == "spf"
    assert order["type"] == "fcfs|spf|lpm|hit-rate"


def test_list_tells_units_of_counters(call: Call) -> None:
    entries = json.loads(call("list", "counters", "--json").out)["entries"]
    assert [entry["name"] for entry in entries] == ["cupti", "nvml", "process", "sim"]
    facts = {fact for entry in entries for fact in entry["facts"]}
    assert "nvml.energy [joules, total] energy of the board" in facts
    assert "read in repetitions of its own" in entries[0]["facts"]
    assert entries[0]["options"][0]["type"] == "int"


def test_a_dropped_in_plugin_is_listed_even_if_broken(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nexusbench.schedulers as package

    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrecked.py").write_text("import nothing_of_that_name\n")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "plugins")])
    shown = call("list", "schedulers")
    assert shown.code == 0
    assert "BROKEN:" in shown.out
    assert "ModuleNotFoundError" in shown.out
    assert "vllm" in shown.out
    checked = call("doctor")
    assert checked.code == 1
    assert "wrecked" in checked.out


def test_doctor_knows_every_optional_package(call: Call) -> None:
    """What an extra of pyproject.toml brings is either listed with its version, or as missing."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = {re.split(r"[<>=]", need)[0] for name in extras if name != "test"
             for need in extras[name]}  # fmt: skip
    document = json.loads(call("doctor", "--json").out)
    (optional,) = (f["text"] for f in document["findings"] if f["check"] == "optional")
    assert all(name in optional for name in named)


def test_doctor(call: Call) -> None:
    shown = call("doctor")
    assert shown.code == 0
    assert "The core works." in shown.out
    assert not Path("results").exists()
    document = json.loads(call("doctor", "--json").out)
    assert document["schema"] == 1
    assert document["ok"] is True
    checks = {finding["check"]: finding for finding in document["findings"]}
    assert checks["engine"]["state"] == "ok"
    assert checks["numpy"]["state"] == "ok"
    assert checks["counter process"]["state"] == "ok"
    assert checks["counter sim"]["state"] == "note"
    assert "no device is attached" in checks["counter sim"]["text"]
    Path("results").write_text("in the way")
    blocked = call("doctor")
    assert blocked.code == 0
    assert "choose another --results" in blocked.out


@pytest.mark.parametrize(
    ("line", "expanded"),
    [
        ("t --goodput a:1 b:2", "t --goodput a:1 --goodput b:2"),
        ("--goodput a:1 b:2 t.jsonl c:3", "--goodput a:1 --goodput b:2 t.jsonl c:3"),
        ("--goodput=a:1 b:2 --seed 1", "--goodput=a:1 --goodput b:2 --seed 1"),
        ("--goodput a:1 --goodput b:2 c:3", "--goodput a:1 --goodput b:2 --goodput c:3"),
        ("--window 1:2 a:1", "--window 1:2 a:1"),
        ("--goodput a:1 -- b:2", "--goodput a:1 -- b:2"),
    ],
)
def test_expand_goodput(line: str, expanded: str) -> None:
    assert expand_goodput(line.split()) == expanded.split()
