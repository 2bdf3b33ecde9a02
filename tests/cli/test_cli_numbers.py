"""Numeric flags of serve-trace at the values at which arithmetic breaks: refused by name and exit
code 2, or served to the end; in a run made in Python, the same by field.
"""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

import nexusbench
from nexusbench.cli.main import app
from nexusbench.core.errors import NexusbenchError, UsageError

HOSTILE = ("-1", "1e-300", "1e308", str(2**63), "nan")
MORE = ("0", "1e-7", "1e13", str(2**64), str(10**12), "inf", "-inf")
FLAGS = {
    "--kv-blocks": "kv_blocks",
    "--block-size": "block_size",
    "--max-num-seqs": "max_num_seqs",
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--max-model-len": "max_model_len",
    "--gpu-memory-utilization": "gpu_memory_utilization",
    "--swap-space": "swap_space",
    "--tensor-parallel-size": "tensor_parallel_size",
    "--speed": "speed",
    "--rate": "request_rate",
    "--burstiness": "burstiness",
    "--quantize-arrivals": "quantize_arrivals",
    "--limit": "limit",
    "--concurrency": "concurrency",
    "--warmup": "warmup_s",
    "--price-per-hour": "price_per_hour",
    "--watts": "watts",
    "--seed": "seed",
    "--temperature": "temperature",
    "--top-p": "top_p",
}
# What else an error may name: what lacks for a huge number, or what became of the trace.
ALSO = {
    "--block-size": ("--kv-blocks",),
    "--swap-space": ("host",),
    "--rate": ("rate",),
    "--burstiness": ("arrivals redrawn",),
    "--speed": ("replayed",),
    "--quantize-arrivals": ("arrivals rounded",),
    "--seeds": (),
}


@pytest.fixture
def trace(tmp_path):
    lines = [
        {"timestamp": 40 * i, "input_length": 50 + 30 * i, "output_length": 1 + 3 * i}
        for i in range(4)
    ]
    path = tmp_path / "four.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def numbers(value):
    """The number a text stands for in a config: an int where it is one."""
    try:
        return int(value)
    except ValueError:
        return float(value)


@pytest.mark.slow
@pytest.mark.parametrize("flag", [*FLAGS, "--seeds", "--goodput", "--window", "--max-tokens"])
def test_a_flag_is_refused_by_its_name_or_right_at_more_values(flag, trace):
    check_flag(flag, trace, MORE)


@pytest.mark.parametrize("flag", [*FLAGS, "--seeds", "--goodput", "--window", "--max-tokens"])
def test_a_flag_is_refused_by_its_name_or_right(flag, trace):
    check_flag(flag, trace, HOSTILE)


def check_flag(flag, trace, values):
    for value in values:
        text = {"--goodput": f"ttft:{value}", "--window": f"0:{value}"}.get(flag, value)
        more = ["--rate", "5"] if flag == "--burstiness" else []
        ran = CliRunner().invoke(
            app,
            ["serve-trace", str(trace), "--device", "sim:l20", "--scheduler", "vllm", "--no-save",
             "--no-progress", f"{flag}={text}", *more],
        )  # fmt: skip
        code = ran.exit_code
        if ran.exception is not None and not isinstance(ran.exception, SystemExit):
            assert isinstance(ran.exception, NexusbenchError), (value, ran.exception)
            code, said = ran.exception.exit_code, str(ran.exception)
        else:
            said = ran.stderr
        if code:
            assert code == 2, (value, said)
            known = (flag, FLAGS.get(flag, flag), flag.strip("-"), *ALSO.get(flag, ()))
            assert any(word in said for word in known), (value, said)
        else:
            assert "requests finished" in ran.stdout, value
            assert value not in ("nan", "-1", "-inf"), value


@pytest.mark.slow
@pytest.mark.parametrize("field", FLAGS.values())
def test_a_field_is_refused_by_its_name_or_right(field, trace):
    for value in map(numbers, (*HOSTILE, *MORE)):
        more = {"request_rate": 5.0} if field == "burstiness" else {}
        config = {"trace": str(trace), "device": "sim:l20", "scheduler": "vllm", **more}
        try:
            made = nexusbench.run(nexusbench.RunConfig(**{**config, field: value}))
        except UsageError as error:
            said = str(error)
        else:
            assert made.summary is not None
            assert math.isfinite(value)
            continue
        flag = next(flag for flag, name in FLAGS.items() if name == field)
        assert any(word in said for word in (f"'{field}'", flag, *ALSO.get(flag, ()))), (
            value,
            said,
        )


def test_a_pool_costs_what_of_it_is_used(trace):
    made = nexusbench.run(
        nexusbench.RunConfig(
            trace=str(trace), device="sim:l20", scheduler="nexus:preemption=swap",
            kv_blocks=10**9, swap_space=1e6,
        )
    )  # fmt: skip
    assert made.summary is not None


@pytest.mark.parametrize(
    "shaping",
    [["--speed", "1e-6"], ["--rate", "1e-6"], ["--rate", "1e-6", "--burstiness", "1"],
     ["--quantize-arrivals", "1e9"]],
)  # fmt: skip
def test_a_trace_that_would_outlast_the_clock_is_refused(shaping, tmp_path):
    """A day of arrivals, a million times as slow, is 2,700 years: more than 63 bits of ns."""
    path = tmp_path / "day.jsonl"
    line = '{{"timestamp": {}, "input_length": 5, "output_length": 2}}\n'
    path.write_text("".join(line.format(8_640 * i) for i in range(10_001)), encoding="utf-8")
    if "--quantize-arrivals" in shaping:
        path.write_text("".join(line.format(2 * 10**12 * i) for i in range(3)), encoding="utf-8")
    ran = CliRunner().invoke(
        app, ["serve-trace", str(path), "--device", "sim:l20", "--no-save", *shaping]
    )
    said = ran.stderr + str(ran.exception)
    assert ran.exit_code
    assert "years, more than the 100 that can be served" in said
