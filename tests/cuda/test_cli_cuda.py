"""``--device cuda`` on the command line: what is missing, what is shown, kept and refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch
from fake_gpu import FakeGpu, fake_cuda

from nexusbench.cli.main import main
from nexusbench.devices import _cuda_driver
from nexusbench.devices import cuda as module
from nexusbench.devices._cuda_driver import GpuFacts, missing
from nexusbench.devices.base import devices
from nexusbench.devices.cuda import Cuda
from nexusbench.results.reader import RunReader

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    lines = [
        {"timestamp": 30 * i, "input_length": 40 + 90 * (i % 3), "output_length": 6 + i % 4}
        for i in range(6)
    ]
    Path("t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


class Machine:
    """What a machine has, put in place of what this one has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.has(driver=True, bindings=True, build="13.0", gpus=[H200])

    def has(
        self,
        *,
        driver: bool | None = None,
        bindings: bool | None = None,
        build: str | None = "",
        gpus: list[GpuFacts] | None = None,
    ) -> None:
        set_ = self._patch.setattr
        if driver is not None:
            for place in (_cuda_driver, module):
                set_(place, "has_driver", lambda: driver)
        if bindings is not None:
            for place in (_cuda_driver, module):
                set_(place, "has_bindings", lambda: bindings)
        if build != "":
            set_(torch.version, "cuda", build)
        if gpus is not None:
            set_(torch.cuda, "is_available", lambda: bool(gpus))
            set_(torch.cuda, "device_count", lambda: len(gpus))
            set_(_cuda_driver, "read_facts", gpus.__getitem__)


H200 = GpuFacts("NVIDIA H200", 132, (9, 0), 150 << 30, driver=13000)
T4 = GpuFacts("Tesla T4", 40, (7, 5), 15 << 30, driver=13000)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


LACKS = [
    ({"driver": False}, "no NVIDIA driver was found (libcuda.so.1 cannot be loaded)"),
    ({"bindings": False}, "the package cuda-bindings is not installed (pip install"),
    ({"build": None}, "is a build without CUDA (pip install"),
    ({"gpus": []}, "finds no GPU that it can use"),
    ({"gpus": [T4]}, "Tesla T4 is too old: compute capability 7.5, 8.0 is needed"),
    (
        {"gpus": [GpuFacts("NVIDIA A100", 108, (8, 0), 80 << 30, driver=12040)]},
        "the driver speaks CUDA 12.4; partitions need CUDA 12.5 or newer",
    ),
]


def test_a_machine_that_has_all_is_usable(machine: Machine) -> None:
    assert missing() == []
    assert Cuda.usable()
    assert missing(1) == ["there is no GPU 1: torch sees 1"]


def test_torch_is_not_imported_to_say_what_else_is_missing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has(driver=False)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(_cuda_driver, "version", lambda package: "2.9.0+cpu")
    found = missing()
    assert "torch" not in sys.modules
    assert found[0].startswith("no NVIDIA driver")
    assert "torch 2.9.0+cpu is a build without CUDA" in found[-1]


@pytest.mark.parametrize(("change", "words"), LACKS)
def test_one_line_says_what_is_missing_and_how_to_simulate(
    call: Call, machine: Machine, change: dict[str, Any], words: str
) -> None:
    machine.has(**change)
    assert not Cuda.usable()
    code, out, err = call("serve-trace", "t.jsonl", "--device", "cuda", "--no-save")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: --device cuda cannot be used here: ")
    assert words in err
    assert "To simulate a GPU instead: --device sim:h200" in err
    code, out, _ = call("doctor", "--device", "cuda")
    assert code == 1
    assert words in out
    assert "sim:h200" in out


def test_all_that_is_missing_is_named_at_once(call: Call, machine: Machine) -> None:
    machine.has(driver=False, bindings=False, build=None)
    code, out, _ = call("doctor", "--device", "cuda", "--json")
    assert code == 1
    document = json.loads(out)
    assert document["ok"] is False
    assert [finding["check"] for finding in document["findings"]] == ["cuda"] * 3


def test_streams_need_neither_bindings_nor_a_new_driver(machine: Machine) -> None:
    old = GpuFacts("NVIDIA A100", 108, (8, 0), 80 << 30, driver=12040)
    machine.has(bindings=False, gpus=[old])
    assert Cuda.lacks("streams") == []
    assert Cuda.lacks("") != []


def test_auto_simulates_without_a_gpu_and_says_so(call: Call, machine: Machine) -> None:
    machine.has(driver=False)
    code, out, _ = call("serve-trace", "t.jsonl", "--no-save", "--scheduler", "vllm")
    assert code == 0
    assert "no usable CUDA GPU here" in out
    assert "SIMULATED" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "cuda:x"), "--device cuda:x is unknown: write cuda, cuda:N"),
        (("--device", "sim:l20", "--no-graphs"), "--no-graphs is for --device cuda"),
        (("--device", "cpu", "--model", "tiny", "--no-graphs"), "cpu has none. Leave it out"),
    ],
)
def test_what_is_refused(call: Call, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = call("serve-trace", "t.jsonl", "--no-save", *arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


@pytest.fixture
def on_paper(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """``--device cuda`` opens an H200 on paper; what was opened is in the list."""
    opened: list[Any] = []

    def open_(argument: str, model: Any, options: Any) -> Cuda:
        opened.append((fake_cuda(FakeGpu(), options.model_name, graphs=options.graphs), options))
        return opened[-1][0]

    cls = devices.load("cuda")
    monkeypatch.setattr(cls, "open", open_)
    monkeypatch.setattr(cls, "describe", lambda argument: fake_cuda().gpu)
    return opened


ON = ("--device", "cuda", "--model", "tiny", "--dtype", "float32")


@pytest.mark.slow
def test_a_run_is_measured_and_keeps_its_gaps(call: Call, on_paper: list[Any]) -> None:
    code, out, err = call("serve-trace", "t.jsonl", *ON, "--scheduler", "nexus,vllm")
    assert code == 0, err
    assert "[MEASURED]" in out
    folders = sorted(Path("results").iterdir())
    for folder in folders:
        resolved = RunReader(folder).manifest.resolved
        assert resolved.device == "cuda"
        assert resolved.environment["decode"] == "CUDA graphs"
        assert resolved.environment["splits"] == "15 of green contexts"
        assert sum(gap.count for gap in resolved.host_gaps.values()) > 5
    document = json.loads(call("compare", *folders, "--json")[1])
    for run in document["runs"]:
        metrics = run["summary"]["metrics"]
        assert 0 < metrics["host_gap"]["value"] <= metrics["host_gap_longest"]["value"]
    one, two = (RunReader(folder).tokens() for folder in folders)
    assert one == two
    assert [options.graphs for _, options in on_paper] == [True, True]


@pytest.mark.slow
def test_without_keeping_the_gap_is_there_too(call: Call, on_paper: list[Any]) -> None:
    code, out, _ = call("serve-trace", "t.jsonl", *ON, "--no-graphs", "--no-save", "--json")
    assert code == 0
    (run,) = json.loads(out)["runs"]
    assert run["summary"]["metrics"]["host_gap"]["value"] > 0
    assert run["config"]["graphs"] is False
    assert run["resolved"]["environment"]["decode"] == "without CUDA graphs"
    code, out, _ = call("serve-trace", "t.jsonl", "--device", "sim:h200", "--no-save", "--json")
    entry = json.loads(out)["runs"][0]["summary"]["metrics"]["host_gap"]
    assert entry["value"] is None
    assert entry["reason"] == "this device does not measure when a partition stands still"


def test_a_pool_beyond_the_gpu_is_refused(call: Call, on_paper: list[Any]) -> None:
    code, _, err = call("serve-trace", "t.jsonl", *ON, "--kv-blocks", 999_999_999)
    assert code == 2
    assert "the GPU has" in err
    assert "Ask for fewer --kv-blocks" in err


def test_a_gpu_that_hangs_ends_the_run_with_one_line(
    call: Call, on_paper: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Cuda.start

    def hang(self: Any) -> None:
        start(self)
        self._runtime.hangs = True

    monkeypatch.setattr(Cuda, "start", hang)
    code, _, err = call("serve-trace", "t.jsonl", *ON, "--scheduler", "vllm", "--no-progress")
    assert code == 1
    assert "has not ended in 120 s: the GPU hangs" in err
    assert "step 0 on partition 'all' (132 SMs)" in err
    (folder,) = Path("results").iterdir()
    assert RunReader(folder).status == "failed"
