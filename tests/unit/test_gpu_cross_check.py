"""What the counters' cross-check calls right, on values made up for it; and that it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexusbench.counters.cupti import CuptiCounters, CuptiOptions
from tests.gpu import cross_check, machine

BYTES, SECONDS, SHARE = 10**12, 0.5, 0.8
TRUE = {
    "cupti.dram_read": 1.05e12, "cupti.dram_write": 0.95e12, "cupti.sm_elapsed": 1e9,
    "cupti.sm_active": 9.5e8, "nvml.power": 600.0, "nvml.energy": 300.0, "nvml.sm_clock": 1.9e9,
    "nvml.dram_util": 0.75, "nvml.sm_util": 0.99, "nvml.tensor_util": 0.0,
}  # fmt: skip


def judged(**changed: float | None) -> dict[str, bool | None]:
    values: dict[str, float | None] = {
        **TRUE,
        **{k.replace("_", ".", 1): v for k, v in changed.items()},
    }
    found = cross_check.judge(values, BYTES, SECONDS, SHARE)
    return {check["counter"]: check["right"] for check in found}


def test_true_counters_are_right() -> None:
    found = judged()
    assert len(found) == 9
    assert set(found.values()) == {True}


@pytest.mark.parametrize("value", [1.11e12, 0.89e12, 0.0, 2e12])
def test_dram_bytes_must_be_within_ten_percent(value: float) -> None:
    found = judged(cupti_dram_read=value)
    assert [name for name, right in found.items() if not right] == ["cupti.dram_read"]


def test_what_cannot_be_read_is_neither_right_nor_wrong() -> None:
    found = judged(cupti_dram_write=None, cupti_sm_active=None, nvml_dram_util=None)
    unread = {name for name, right in found.items() if right is None}
    assert unread == {"cupti.dram_write", "cupti.sm_share", "nvml.dram_util"}


def test_it_runs_and_says_why_a_counter_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if machine.missing() is None:
        pytest.skip("there is a GPU: run the cross-check itself")

    class Load:
        count, num_bytes = 3, BYTES

        def run(self, count: int) -> float:
            return SECONDS

    recording = Path(__file__).parents[1] / "data" / "cupti_made_up.json"
    monkeypatch.setattr(cross_check, "CopyLoad", Load)
    monkeypatch.setattr(machine, "identity", lambda: {"gpu": "made up"})
    monkeypatch.setattr(
        cross_check, "CuptiCounters", lambda: CuptiCounters(CuptiOptions(recording=str(recording)))
    )
    found = cross_check.cross_check(4800.0, tmp_path / "kept.json")
    rights = {check["counter"]: check["right"] for check in found["checks"]}
    assert rights["cupti.dram_read"] is False  # a recording of another load
    assert rights["nvml.power"] is None
    assert found["reasons"]["nvml.power"].startswith("nvml is off: ")
    assert found["copy_gbps"] == pytest.approx(4000)
    assert '"3 copies of 1 GiB on made up"' in (tmp_path / "kept.json").read_text()
