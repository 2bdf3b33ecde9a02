"""Help, version, list, doctor, and what importing the command line may not import."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from commandline import REPOSITORY, Outcome, environment

import nexusbench
from nexusbench.cli.list_plugins import FAMILIES
from nexusbench.cli.main import app, expand_goodput, plain_names
from tests.examples import sample, slow

Call = Callable[..., Outcome]

HELP_IMPORTS = """
import sys
from nexusbench.cli.main import main
code = main(sys.argv[1:])
heavy = {"pandas", "scipy", "torch", "matplotlib", "pyarrow", "numpy"} & set(sys.modules)
assert code == 0 and not heavy, (code, heavy)
"""


def leaves(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every command that can be run."""
    below = getattr(command, "commands", {})
    own = [] if below else [path]
    return own + [leaf for name, one in below.items() for leaf in leaves(one, (*path, name))]


LEAVES = leaves(typer.main.get_command(app))


@pytest.mark.parametrize(
    "path", [(), ("profile",), *sample([(path,) for path in LEAVES], 5)], ids=" ".join
)
@pytest.mark.slow
def test_help_on_80_columns(
    call: Call, monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...]
) -> None:
    """Nothing is cut off, nothing in brackets is lost, and there is an example."""
    monkeypatch.setenv("COLUMNS", "80")
    done = call(*path, "--help")
    assert done.code == 0
    assert "…" not in done.out, done.out
    assert max(map(len, done.out.splitlines())) <= 80
    shown = " ".join(done.out.replace("│", " ").split())
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    texts = [command.help, *(getattr(one, "help", None) for one in command.params)]
    for bracket in re.findall(r"\[+[^\]]+\]+", " ".join(filter(None, texts))):
        assert bracket in shown, bracket
    if path:
        assert f" nexusbench {' '.join(path)} " in shown.partition("[OPTIONS]")[2]


def test_help_fills_the_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line breaks of the source are none of a paragraph's."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = call("capacity", "--help").out.splitlines()
    (first,) = [line for line in lines if line.startswith(" Each seed draws")]
    assert len(first.rstrip()) > 70
    below = lines[lines.index(first) + 1]
    assert len(below.rstrip()) > 70


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (["--no-enable-prefix-caching"], ["--no-prefix-caching"]),
        (["--enable-prefix-caching", "--", "--enable-prefix-caching"],
         ["--prefix-caching", "--", "--enable-prefix-caching"]),
    ],
)  # fmt: skip
def test_vllms_names_of_flags_work(given: list[str], plain: list[str]) -> None:
    assert plain_names(given) == plain


CTRL_C = """
import os, signal, sys
if "ignored" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "nexusbench.cli.gate":  # among the last that the command line imports
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:  # as an import does that has another way
                pass

sys.meta_path.insert(0, Hook())
sys.argv[1:] = ["--version"]
from nexusbench.__main__ import entry
entry()
"""


def test_ctrl_c_while_the_command_line_is_imported_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.slow
def test_ctrl_c_that_a_shell_has_ignored_stays_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C, "ignored"],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("nexusbench ")


def test_the_console_script_begins_where_ctrl_c_is_caught() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["nexusbench"] == "nexusbench.__main__:entry"


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


@pytest.mark.parametrize("columns", ["80", *slow("120")])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_list_fits_the_terminal(
    call: Call, monkeypatch: pytest.MonkeyPatch, family: str, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = call("list", family).out
    assert max(map(len, shown.splitlines())) <= int(columns)
    document = json.loads(call("list", family, "--json").out)
    for entry in document["entries"]:
        # A metric has its formula, all of which stand in docs/metrics.md.
        assert entry.get("source") or family == "metrics", entry["name"]
        for option in entry.get("options", []):
            assert set(option) == {"name", "type", "default"}
            assert "Optional" not in option["type"], option
        assert not entry["about"].endswith(":")


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
    checked = call("doctor", "--no-speed")
    assert checked.code == 1
    assert "wrecked" in checked.out


def test_doctor_knows_every_optional_package(call: Call) -> None:
    """What an extra of pyproject.toml brings is either listed with its version, or as missing."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = {re.split(r"[<>=]", need)[0] for name in extras if name != "test"
             for need in extras[name]}  # fmt: skip
    document = json.loads(call("doctor", "--no-speed", "--json").out)
    (optional,) = (f["text"] for f in document["findings"] if f["check"] == "optional")
    assert all(name in optional for name in named)


def test_doctor(call: Call) -> None:
    shown = call("doctor", "--no-speed")
    assert shown.code == 0
    assert "The core works." in shown.out
    assert not Path("results").exists()
    document = json.loads(call("doctor", "--no-speed", "--json").out)
    assert document["schema"] == 1
    assert document["ok"] is True
    checks = {finding["check"]: finding for finding in document["findings"]}
    assert checks["engine"]["state"] == "ok"
    assert checks["numpy"]["state"] == "ok"
    assert checks["counter process"]["state"] == "ok"
    assert checks["counter sim"]["state"] == "note"
    assert "no device is attached" in checks["counter sim"]["text"]
    Path("results").write_text("in the way")
    blocked = call("doctor", "--no-speed")
    assert blocked.code == 0
    assert "choose another --results" in blocked.out


@pytest.mark.slow
def test_doctor_measures_the_limits_of_the_cpu(call: Call) -> None:
    pytest.importorskip("torch")
    assert "(float32); all usable cores" in " ".join(call("doctor").out.split())


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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_stop_is_one_line_and_its_own_code(
    call: Call, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(signal, name)

    def struck() -> None:
        signal.raise_signal(number)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr("nexusbench.cli.main._command", lambda: lambda *_, **__: struck())
    before = signal.getsignal(number)
    done = call("list", "gpus")
    assert done == Outcome(128 + number, "", "error: interrupted\n")
    assert signal.getsignal(number) is before
    signal.signal(number, signal.SIG_IGN)  # as nohup leaves it
    try:
        monkeypatch.setattr(
            "nexusbench.cli.main._command", lambda: lambda *_, **__: signal.raise_signal(number)
        )
        assert call("list", "gpus").code == 0
    finally:
        signal.signal(number, before)
