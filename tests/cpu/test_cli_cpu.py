"""The command line on the CPU: what is shown, kept and refused, and how a run is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.examples import slow

pytest.importorskip("torch")
pytest.importorskip("safetensors")

from nexusbench.cli.main import main
from nexusbench.results.reader import RunReader

REPOSITORY = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def mixture(path: Path, count: int = 6, output: int = 6, gap: int = 30) -> Path:
    lines = [
        {"timestamp": gap * i, "input_length": 40 + 90 * (i % 3), "output_length": output + i % 4}
        for i in range(count)
    ]
    return write(path, lines)


CPU = ("--device", "cpu", "--model", "tiny")


@pytest.mark.slow
def test_a_run_is_labelled_measured_and_keeps_its_tokens(call: Call, tmp_path: Path) -> None:
    trace = mixture(tmp_path / "t.jsonl")
    code, out, _ = call("serve-trace", trace, *CPU, "--scheduler", "nexus,vllm")
    assert code == 0
    assert "[MEASURED]" in out
    assert "imulated" not in out
    words = " ".join(out.split())
    assert "RANDOM weights" in words
    for row in ("cores of prefill, mean", "cores undivided, mean", "MFU", "MBU"):
        assert row in words
    folders = sorted(Path("results").iterdir())
    assert [RunReader(folder).manifest.resolved.device for folder in folders] == ["cpu"] * 2
    one, two = (RunReader(folder).tokens() for folder in folders)
    assert one == two
    assert [len(one[i]) for i in range(6)] == [6 + i % 4 for i in range(6)]
    document = json.loads(call("compare", *folders, "--json")[1])
    assert document["runs"][0]["summary"]["metrics"]["mfu"]["value"] > 0
    assert call("rerun", folders[0])[0] == 0


@pytest.mark.slow
def test_time_sharing_is_named_everywhere(call: Call, tmp_path: Path) -> None:
    trace = mixture(tmp_path / "t.jsonl", 3)
    code, out, _ = call("serve-trace", trace, "--device", "cpu:shared", "--model", "tiny")
    assert code == 0
    words = " ".join(out.split())
    assert "cpu:shared: " in words
    assert "TIME-SHARED: a split is a share of their time" in words
    assert "% of time of decode, mean" in words
    (folder,) = Path("results").iterdir()
    assert "cpu-shared" in folder.name
    environment = RunReader(folder).manifest.resolved.environment
    assert environment["splits"] == "time-shared by thread priority"


@pytest.mark.slow
def test_prompts_of_the_trace(call: Call, tmp_path: Path) -> None:
    prompt = list(range(7, 47))
    lines = [
        {"timestamp": i, "input_length": n, "output_length": 5, "token_ids": prompt[:n]}
        for i, n in enumerate((40, 40, 25))
    ]
    trace = write(tmp_path / "t.jsonl", lines)
    assert call("serve-trace", trace, *CPU)[0] == 0
    (folder,) = Path("results").iterdir()
    tokens = RunReader(folder).tokens()
    assert tokens[0] == tokens[1] != tokens[2]
    lines[1]["token_ids"] = [*prompt[:39], 4096]
    write(trace, lines)
    code, _, err = call("serve-trace", trace, *CPU)
    assert code == 2
    assert "token 4096 of request '1' is not in the vocabulary of tiny" in err
    assert "t.jsonl:2" in err


@pytest.mark.slow
def test_flags_of_real_tokens_reach_the_config(call: Call, tmp_path: Path) -> None:
    code, out, _ = call(
        "serve-trace", mixture(tmp_path / "t.jsonl", 2), *CPU, "--load-format", "dummy",
        "--dtype", "float32", "--temperature", 0.5, "--top-p", 0.75, "--stop-at-eos", "--json",
    )  # fmt: skip
    assert code == 0
    (run,) = json.loads(out)["runs"]
    wanted = {
        "load_format": "dummy", "dtype": "float32", "temperature": 0.5, "top_p": 0.75,
        "stop_at_eos": True,
    }  # fmt: skip
    assert {name: run["config"][name] for name in wanted} == wanted
    assert run["resolved"]["model"]["dtypes"]["kv"] == "float32"
    assert run["resolved"]["environment"]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "sim:l20", "--temperature", "0.5"), "--temperature is for devices that"),
        (("--device", "sim:l20", "--dtype", "float32"), "no kernels of 32-bit products"),
        (("--device", "cpu:half", "--model", "tiny"), "--device cpu:half is unknown"),
        ((*CPU, "--dtype", "float64"), "--dtype float64 is unknown"),
        ((*CPU, "--quantization", "fp8"), "--quantization fp8 is for simulated devices"),
        ((*CPU, "--kv-cache-dtype", "fp8"), "--kv-cache-dtype fp8 is for simulated devices"),
        ((*CPU, "--kernel-table", "x"), "--kernel-table is for simulated devices"),
        ((*CPU, "--tensor-parallel-size", "2"), "leave --tensor-parallel-size out"),
        ((*CPU, "--kv-blocks", "999999999"), "Ask for fewer --kv-blocks"),
        (("--device", "cpu", "--model", "llama-3.1-8b"), "--load-format dummy"),
        (
            ("--device", "cpu", "--model", "llama-3.1-70b", "--load-format", "dummy"),
            "of memory are free",
        ),
        ((*CPU, "--top-p", "0"), "It must be finite, above 0 and at most 1"),
    ],
)
def test_what_is_refused(
    call: Call, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = call("serve-trace", mixture(tmp_path / "t.jsonl", 2), *arguments, "--no-save")
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


def in_process(cwd: Path, *arguments: object, python: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, *(("-c", python) if python else ("-m", "nexusbench"))]
    return subprocess.Popen(
        [*command, *map(str, arguments)], cwd=cwd, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def stop(process: subprocess.Popen[str], interrupts: int) -> tuple[float, str]:
    """Ctrl-C some time after the run has begun; seconds to the end, and stderr."""
    assert process.stderr is not None
    assert "started" in process.stderr.readline()
    time.sleep(0.3)
    before = time.monotonic()
    for _ in range(interrupts):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, err = process.communicate(timeout=60)
    return time.monotonic() - before, err


@pytest.mark.slow
def test_ctrl_c_keeps_what_there_is(tmp_path: Path) -> None:
    """While waiting for a request that comes in an hour, and in the middle of steps."""
    idle = write(
        tmp_path / "idle.jsonl",
        [{"timestamp": t, "input_length": 9, "output_length": 3} for t in (0, 3_600_000)],
    )
    busy = mixture(tmp_path / "busy.jsonl", 40, 400, 5)
    for trace in (idle, busy):
        process = in_process(tmp_path, "serve-trace", trace, *CPU)
        took, err = stop(process, 1)
        assert process.returncode == 130
        assert took < 10
        assert "interrupted at" in err
        assert "Traceback" not in err
        (folder,) = [f for f in (tmp_path / "results").iterdir() if trace.stem in f.name]
        reader = RunReader(folder)
        assert reader.status == "interrupted"
        assert len(reader.table("arrived")["request"]) >= 1
        assert len(reader.tokens()) == len(reader.table("ended")["request"])


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    """In the middle of a step that would take very long."""
    long = write(
        tmp_path / "long.jsonl", [{"timestamp": 0, "input_length": 30_000, "output_length": 3}]
    )
    process = in_process(
        tmp_path,
        "serve-trace",
        long,
        *CPU,
        "--max-num-batched-tokens",
        30_000,
        "--scheduler",
        "vllm",
    )
    took, err = stop(process, 2)
    assert process.returncode == 130
    assert took < 15
    assert "Traceback" not in err
    assert "terminate" not in err


HIDE_TORCH = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "torch" else real(name, *a)
from nexusbench.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_without_torch_there_is_one_clear_line(tmp_path: Path) -> None:
    trace = mixture(tmp_path / "t.jsonl", 2)
    process = in_process(tmp_path, "serve-trace", trace, *CPU, "--no-progress", python=HIDE_TORCH)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.count("\n") == 1
    assert "pip install 'nexusbench[torch]'" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [*slow(("--help",), ("list", "devices")), ("serve-trace", "t.jsonl", "--no-save")],
)
def test_what_needs_no_torch_does_not_import_it(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    mixture(tmp_path / "t.jsonl", 2)
    code = (
        "import sys\nfrom nexusbench.cli.main import main\ncode = main(sys.argv[1:])\n"
        "sys.exit(code or 10 * ('torch' in sys.modules))"
    )
    process = in_process(tmp_path, *arguments, python=code)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_keeps_all_but_its_last_seconds(tmp_path: Path, number: int) -> None:
    """Also while it waits for a request that comes in an hour: what ended before is on the disk."""
    trace = write(
        tmp_path / "idle.jsonl",
        [{"timestamp": t, "input_length": 9, "output_length": 3} for t in (0, 10, 3_600_000)],
    )
    process = in_process(tmp_path, "serve-trace", trace, *CPU)
    deadline = time.monotonic() + 60

    def ended() -> int:
        found = list((tmp_path / "results").glob("*/manifest.json"))
        return len(RunReader(found[0].parent).table("ended")["request"]) if found else 0

    while ended() < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in err
    assert ended() == 2
    (folder,) = (tmp_path / "results").iterdir()
    status = RunReader(folder).status
    assert status == ("interrupted" if number == signal.SIGTERM else "killed or still running")
    RunReader(folder).events()
