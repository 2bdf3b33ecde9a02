"""The GPU benchmark without a GPU: its counting, its targets, and every call it would time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import gpu_kernels, gpu_work
from tests.gpu import machine


def test_work_is_counted_from_shapes() -> None:
    assert gpu_work.decode(64, 4096).num_bytes == 64 * 4096 * 4096 + 64 * 2 * 32 * 128 * 2
    assert gpu_work.decode(2, 100) == gpu_work.decode_of([150, 50])
    whole, first, second = gpu_work.prefill(8, 0), gpu_work.prefill(5, 0), gpu_work.prefill(3, 5)
    assert whole.flops == first.flops + second.flops == 4 * 36 * 32 * 128
    assert gpu_work.dense(3, 5, 7).flops == 2 * 3 * 5 * 7
    assert gpu_work.copy(1000, 2).gbps(1.0) == pytest.approx(0.004)
    assert gpu_work.dense(8192, 8192, 8192).tflops(1.0) == pytest.approx(1099.5, rel=1e-4)


def test_a_target_that_was_not_measured_is_not_met() -> None:
    rows: list[dict[str, Any]] = [
        {"partition": "all", "kernel": "decode", "case": "64 x 4096", "of_copy": 0.81},
        {"partition": "prefill", "kernel": "prefill", "case": "8192 after 0", "of_gemm": 0.9},
        {"partition": "all", "kernel": "prefill", "case": "8192 after 0", "error": "no memory"},
    ]
    decode, prefill = gpu_work.targets(rows)
    assert (decode["met"], decode["found"]) == (True, "81.0%")
    assert (prefill["met"], prefill["found"]) == (False, "not measured")


def test_without_a_gpu_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "missing", lambda: "torch finds no GPU")
    monkeypatch.setattr(sys, "argv", ["gpu_kernels", "--output", "/nowhere/x.json"])
    assert gpu_kernels.main() == 2
    assert capsys.readouterr().err == "gpu_kernels needs an NVIDIA GPU: torch finds no GPU\n"


@pytest.mark.slow
def test_everything_it_times_can_be_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On tiny shapes of the CPU, with kernels interpreted and clocks that always say 1 ms."""
    pytest.importorskip("torch")
    pytest.importorskip("triton", reason="needs the package triton (extra 'triton')")
    if machine.missing() is None:
        pytest.skip("there is a GPU: run the benchmark itself")

    def once(self: Any, call: Any) -> tuple[float, str]:
        call()
        return 1.0, "graph"

    monkeypatch.setattr(machine, "missing", lambda: None)
    monkeypatch.setattr(machine, "identity", lambda: {"num_sms": 2})
    monkeypatch.setattr(machine, "missing_for_partitions", lambda: "no driver")
    monkeypatch.setattr(gpu_kernels.Bench, "ms", once)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr(gpu_work, "HEADS", (2, 1, 16))
    monkeypatch.setattr(gpu_work, "LAYERS", {"qkv": (8, 4)})
    tiny = {
        "DEVICE": "cpu", "RING_BYTES": 1, "COPY_VALUES": 64, "GEMM_SIDE": 8, "RAGGED": [3, 20],
        "DECODES": ((2, 20),), "PREFILLS": ((5, 0), (3, 9)), "ROWS": (2,),
        "TARGET_DECODE": (0, 0), "TARGET_PREFILL": (0, 0),
    }  # fmt: skip
    for name, value in tiny.items():
        monkeypatch.setattr(gpu_kernels, name, value)
    monkeypatch.setattr(sys, "argv", ["gpu_kernels", "--output", str(tmp_path / "new" / "x.json")])
    assert gpu_kernels.main() == 0
    found = json.loads((tmp_path / "new" / "x.json").read_text())
    assert not [row for row in found["rows"] if "error" in row]
    assert [row["kernel"] for row in found["rows"]] == [
        "copy", "GEMM", "decode", "SDPA decode", "decode",
        *["prefill", "SDPA prefill"] * 2, "dense",
    ]  # fmt: skip
    assert found["partitions_skipped"] == "no driver"
    captured = capsys.readouterr()
    assert "MISSED" in captured.out
    assert "no partitions: no driver" in captured.err
