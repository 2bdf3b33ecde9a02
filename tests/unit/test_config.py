"""A config made in Python is checked like one from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import nexusbench
from nexusbench import RunConfig, run
from nexusbench.core.config import check_config
from nexusbench.core.errors import InputError, UsageError
from nexusbench.devices.sim import Sim

TRACE = str(Path(__file__).parents[2] / "workloads" / "mixed.jsonl")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("gpu_memory_utilization", 90, "at most 1"),
        ("gpu_memory_utilization", float("nan"), "finite"),
        ("seed", -4, "at least 0"),
        ("max_num_seqs", 0, "at least 1"),
        ("max_num_seqs", "8", "int"),
        ("limit", "ten", "int"),
        ("trace", 5, "str"),
        ("block_size", 0, "at least 1"),
        ("too_long", "truncate", "truncate"),
        ("speed", 0, "above 0"),
        ("warmup_s", -5, "at least 0"),
    ],
)
def test_a_bad_field_is_named(field, value, said):
    with pytest.raises(UsageError) as caught:
        nexusbench.run(nexusbench.RunConfig(**{"trace": TRACE, field: value}))
    assert f"field '{field}'" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("size", [3, 5, 33, 64, 1000])
def test_heads_that_cannot_be_split(size):
    config = nexusbench.RunConfig(trace=TRACE, device="sim:h100", tensor_parallel_size=size)
    with pytest.raises(UsageError, match="1, 2, 4, 8, 16, 32 ways"):
        nexusbench.run(config)


def test_a_gpu_is_not_a_device():
    with pytest.raises(UsageError, match="write sim:h200"):
        nexusbench.run(nexusbench.RunConfig(trace=TRACE, device="h200"))


def test_any_block_size_where_no_prefix_is_named():
    config = nexusbench.RunConfig(trace=TRACE, limit=5, block_size=7)
    assert nexusbench.run(config).summary.metrics["finished"].value == 5


def test_a_bound_that_is_none_is_told_before_a_device_is_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From Python nothing has looked at ``goodput`` before: the command line checks its own."""
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 10, "output_length": 2}\n')
    opened: list[object] = []
    monkeypatch.setattr(Sim, "open", lambda *arguments: opened.append(arguments))
    for goodput, says in (
        ({"foo": 1.0}, "no SLO called 'foo'"),
        ({"ttft": -5.0}, "SLO 'ttft' is -5.0; give a bound in ms above 0"),
        ({"tbt": float("inf")}, "SLO 'tbt' is inf"),
    ):
        with pytest.raises(UsageError, match=says):
            run(RunConfig(trace=str(trace), device="sim:l20", goodput=goodput))
    assert not opened


def test_a_key_of_the_wrong_type_names_its_field() -> None:
    with pytest.raises(InputError, match="str") as caught:
        check_config(RunConfig(trace="t", goodput={1: 2.0}))  # type: ignore[dict-item]
    assert caught.value.field == "goodput"


def test_what_a_run_gives_is_read_by_field_and_by_key() -> None:
    """The second way is that of the first releases; a key that is none is told as by a dict."""
    result = run(RunConfig(trace=TRACE, scheduler="vllm", device="sim:l20", limit=3))
    assert result.summary["metrics"]["ttft"]["mean"] == result.summary.metrics["ttft"].mean
    assert result.summary["simulated"] is True
    assert result.resolved["trace"]["requests"] == 3
    assert dict(result.resolved["belief"] or {}) == {}
    assert dict(result.summary["warmup"]) == {"seconds": 0.0, "requests": 0}
    with pytest.raises(KeyError, match="gpu_name"):
        result.resolved["gpu_name"]
