"""Streams that are closed, full or narrow, names with control characters, and outputs beside the
results that cannot be written.
"""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, cast

import pytest
from commandline import Outcome, environment, start, write_trace

from nexusbench.cli.outlet import Outlet
from nexusbench.core.errors import NexusbenchError
from nexusbench.experiments import sweep_table
from nexusbench.report.timeline import TimelineWriter
from nexusbench.results.reader import RunReader, list_runs
from nexusbench.results.store import RunWriter
from tests.examples import sample, slow

Call = Callable[..., Outcome]
MODEL = ("--device", "sim:l20", "--model", "qwen2.5-3b", "--no-progress")
HOSTILE = "a\x1b[31mb\x1b]0;t\x07\x9b2J\u202ec\nerror: made up\r"


def in_a_shell(line: str, **more: str) -> Outcome:
    """A shell's command line, in which NB is ours."""
    done = subprocess.run(
        ["bash", "-c", line.replace("NB", f"{sys.executable} -m nexusbench")],
        env={**environment(), **more}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


STREAMS = [
    ("NB list gpuz >&- 2>&-", 2, "", ""),
    ("NB list gpus | head -1; exit ${PIPESTATUS[0]}", 0, "A100", ""),
    ("NB list gpus >&-", 0, "", ""),
    ("NB list gpus 2>&-", 0, "L20", ""),
    ("NB list gpuz 2>&-", 2, "", ""),
    ("NB list gpus <&-", 0, "L20", ""),
    ("NB list gpus 2>/dev/full", 0, "L20", ""),
    ("NB list gpuz 2>/dev/full", 2, "", ""),
    ("NB list gpus 1</dev/null", 1, "", "cannot write the output"),
]


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    sample(STREAMS, len(STREAMS)),
)
@pytest.mark.slow
def test_streams_that_are_not_there(line: str, code: int, out: str, err: str) -> None:
    done = in_a_shell(line)
    assert done.code == code, done
    assert out in done.out
    assert err in done.err
    assert bool(done.err) == bool(err)  # no traceback, nothing of the interpreter's


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", ["LC_ALL=C", "PYTHONIOENCODING=ascii", "TERM=dumb", "NO_COLOR=1", "TERM="]
)
def test_poor_terminals(tmp_path: Path, names: str) -> None:
    name, _, value = names.partition("=")
    write_trace(tmp_path / "t.jsonl", 5)
    line = f"cd {tmp_path} && NB serve-trace t.jsonl --scheduler nexus,vllm --no-save"
    more = {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"} if value == "C" else {}
    done = in_a_shell(line, **{name: value}, **more)
    assert done.code == 0, done
    assert "SIMULATED" in done.out
    assert "Traceback" not in done.err


@pytest.mark.slow
@pytest.mark.parametrize("width", ["\u00b2", *slow("0", "1", "abc", "-3", "", "99999999999999")])
def test_widths_that_make_no_sense(
    call: Call, monkeypatch: pytest.MonkeyPatch, trace: Path, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("LINES", width)
    done = call("serve-trace", trace, *MODEL, "--no-save", "--scheduler", "nexus,vllm")
    assert done.code == 0, done
    assert "TTFT" in done.out
    longest = max(map(len, done.out.splitlines()))
    assert longest <= (90 if width == "1" else 2_000)
    assert longest > (60 if width != "1" else 20)  # what says nothing is as if it were not set
    assert call("serve-trace", "--help").code == 0


class Broken(io.StringIO):
    """A stream that fails with an error of the system."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.error = OSError(number, os.strerror(number))

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


def test_only_results_must_arrive() -> None:
    for number in (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EPIPE):
        beside = Outlet(cast(TextIO, Broken(number)), vital=False)
        assert beside.write("words") == 5
        beside.flush()
        results = Outlet(cast(TextIO, Broken(number)), vital=True)
        if number == errno.EPIPE:  # the reader has what it wanted
            results.write("words")
            results.flush()
            continue
        with pytest.raises(OSError, match=os.strerror(number)):
            results.write("words")
        with pytest.raises(OSError, match=os.strerror(number)):
            results.flush()


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A trace whose name, ids and tenants all try to control the terminal."""
    path = tmp_path / f"tr{HOSTILE}ace; x.jsonl"
    lines = (
        json.dumps({"timestamp": 50 * i, "input_length": 90 + i, "output_length": 5,
                    "id": f"{HOSTILE}{i}", "tenant": HOSTILE})
        for i in range(6)
    )  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


def clean(done: Outcome) -> Outcome:
    """Nothing on either stream but printable signs and ends of lines, and no line that a name
    began.
    """
    for text in (done.out, done.err):
        assert all(sign.isprintable() or sign in "\n\u00a0" for sign in text), repr(text)
        assert not any(line.startswith("error: made up") for line in text.splitlines())
    return done


@pytest.mark.slow
def test_no_name_controls_the_terminal(call: Call, hostile: Path) -> None:
    done = clean(call("serve-trace", hostile, *MODEL, "--scheduler", "nexus,vllm", "--by", "tenant",
                      "--timeline", "t\x1b[1m.json"))  # fmt: skip
    assert done.code == 0, done
    (first, second) = list_runs(Path("results"))
    assert all(sign.isalnum() or sign in "-_.+" for sign in first + second)
    runs = [f"results/{first}", f"results/{second}"]
    for words in (
        ("compare", *runs), ("compare", *runs, "--by", "tenant"), ("explain", runs[0]),
        ("explain", runs[0], "--request", f"{HOSTILE}2"),
        ("explain", runs[0], "--request", HOSTILE),
        ("trace", "show", hostile), ("compare", f"no\x1b[1m{HOSTILE}"),
        ("timeline", runs[0], "-o", "u\x07.json"), ("list", f"gpus{HOSTILE}"),
        ("serve-trace", hostile, "--scheduler", f"vllm:{HOSTILE}=1"),
        ("serve-trace", hostile, "--device", f"sim:{HOSTILE}"),
        ("serve-trace", hostile, "--model", HOSTILE),
        ("serve-trace", hostile, f"--no{HOSTILE}"), (f"serve{HOSTILE}",),
    ):  # fmt: skip
        clean(call(*words))
    hint = call("explain", runs[0]).out.splitlines()[-1]
    assert hint.startswith(f"next  nexusbench explain {runs[0]} --request $'a\\x1b[31mb")
    found = json.loads(call("explain", runs[0], "--json", "--top", 1).out)
    assert found["slowest"][0]["id"].startswith(HOSTILE)  # exact where no terminal reads it
    for name in ("t\x1b[1m.json", "u\x07.json"):
        assert "\x1b" not in Path(name).read_text()
        json.loads(Path(name).read_bytes())


def no_room(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["add", *slow("close")])
def test_a_timeline_that_fails_costs_only_itself(
    call: Call, trace: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(TimelineWriter, moment, no_room)
    wanted = ("serve-trace", trace, *MODEL, "--scheduler", "vllm,sglang", "--timeline", "t.json")
    done = call(*wanted)
    assert done.code == 1
    assert done.err.startswith("error: --timeline: cannot write t.json: No space left on device")
    assert "vllm" in done.out
    assert "sglang" in done.out
    assert "ui.perfetto.dev" not in done.out
    assert len(list_runs(Path("results"))) == 2
    assert not list(Path().glob("*t.json*"))
    found = json.loads(call(*wanted, "--json").out)
    assert len(found["runs"]) == 2
    assert "No space" in found["not_written"]["t.json"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["flush", *slow("finish", "write_tokens")])
def test_runs_that_a_full_disk_cuts_off_are_shown(
    call: Call, trace: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The first of three finds no room at its end: it is shown, told, and the others run."""
    original, calls = getattr(RunWriter, moment), []

    def fail_once(self: RunWriter, *args: Any, **options: Any) -> Any:
        calls.append(self.path)
        if self.path == calls[0]:
            raise NexusbenchError(f"cannot write {self.path}: No space left on device")
        return original(self, *args, **options)

    monkeypatch.setattr(RunWriter, moment, fail_once)
    wanted = ("serve-trace", trace, *MODEL, "--scheduler", "vllm,sglang,nexus")
    done = call(*wanted)
    assert done.code == 1
    assert "error: vllm (1 of 3): cannot write" in done.err
    assert len(done.err.splitlines()) == 1
    head = next(line for line in done.out.splitlines() if "sglang" in line and "nexus" in line)
    assert "vllm" in head
    states = {run.split("-")[3]: RunReader(f"results/{run}").status for run in list_runs()}
    assert states["sglang"] == states["nexus"] == "complete"
    assert states["vllm"] == ("killed or still running" if moment == "finish" else "failed")
    assert call("compare", *(f"results/{run}" for run in list_runs())).code == 0
    monkeypatch.undo()
    fresh = call(*wanted, "--no-save", "--json")
    rows = [run["summary"]["metrics"] for run in json.loads(fresh.out)["runs"]]
    shown = f"{rows[0]['ttft']['mean']:.1f}"
    assert shown in done.out  # what was measured, whatever became of the files


@pytest.mark.slow
def test_a_table_that_fails_is_told_after_the_sweep_is_shown(
    call: Call, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("s.toml").write_text(
        '[base]\ntrace = "small.jsonl"\ndevice = "sim:l20"\nmodel = "qwen2.5-3b"\n'
        '[grid]\nscheduler = ["vllm", "sglang"]\n'
    )
    monkeypatch.setattr(sweep_table.pq, "write_table", no_room)
    done = call("sweep", "s.toml", "--jobs", 1, "--no-progress")
    assert done.code == 1
    assert "sglang" in done.out
    assert done.err.startswith(
        "error: cannot write results/s.parquet: No space left on device. The"
    )
    assert "table  " not in done.out
    monkeypatch.undo()
    monkeypatch.chdir(trace.parent)
    assert "2 kept, 0 to run" in call("sweep", "s.toml", "--jobs", 1).err


@pytest.mark.slow
def test_a_disk_quota_met_in_the_middle_keeps_what_was_written(tmp_path: Path) -> None:
    """No file may grow beyond 60 KB: the event log of the first run does not fit."""
    import resource

    write_trace(tmp_path / "t.jsonl", 3_000, gap_ms=20, output=60)
    process = start(
        "serve-trace", "t.jsonl", *MODEL, "--scheduler", "vllm,sglang", cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "File too large" in err
    assert "TTFT" in out
    for run in list_runs(tmp_path / "results"):
        reader = RunReader(tmp_path / "results" / run)
        assert reader.status in ("failed", "complete")
        reader.events()
