"""serve-trace: the table, the JSON document, several schedulers and seeds, failures among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Outcome, finish, start

from nexusbench.devices.base import devices
from nexusbench.results.reader import RunReader, list_runs

Call = Callable[..., Outcome]


@pytest.mark.slow
def test_three_schedulers_side_by_side(call: Call, trace: Path) -> None:
    done = call("serve-trace", trace, "--scheduler", "nexus,vllm,sglang", "--goodput", "ttft:500")
    assert done.code == 0
    assert "SIMULATED" in done.out
    assert "\x1b" not in done.out
    head = next(line for line in done.out.splitlines() if "nexus" in line and "sglang" in line)
    assert "vllm" in head
    for row in ("TTFT", "queueing", "service", "TBT", "TPOT", "output throughput", "goodput"):
        assert row in done.out
    for statistic in ("mean", "p50", "p95", "p99"):
        assert statistic in done.out
    assert "Simulated:" in done.out
    assert "40 requests" in done.out
    assert "nexusbench explain results" in done.out
    assert len(list_runs(Path("results"))) == 3
    # Progress never mixes with results.
    assert "started" not in done.out
    assert "40 of 40 requests" in done.err


def test_nothing_on_stderr_without_progress(call: Call, trace: Path) -> None:
    done = call("serve-trace", trace, "--no-progress", "--no-save")
    assert done.err == ""
    assert "--no-save" in done.out
    assert not Path("results").exists()


def test_json_is_one_document(call: Call, trace: Path) -> None:
    done = call("serve-trace", trace, "--scheduler", "vllm", "--scheduler", "nexus", "--json")
    document = json.loads(done.out)
    assert document["simulated"] is True
    assert [run["label"] for run in document["runs"]] == ["vllm", "nexus"]
    first = document["runs"][0]
    assert first["status"] == "complete"
    assert first["summary"]["metrics"]["finished"]["value"] == 40
    assert first["resolved"]["kv_blocks"] > 0
    assert RunReader(first["folder"]).manifest.event_digest == first["event_digest"]


def test_a_kernel_table_that_is_not_there(call: Call, trace: Path) -> None:
    done = call("serve-trace", trace, "--device", "sim:rtx4090", "--kernel-table", "nowhere")
    assert done.code == 2
    assert "nowhere" in done.err


def test_every_flag_reaches_the_config(call: Call, trace: Path) -> None:
    done = call(
        "serve-trace", trace, "--device", "sim:h200", "--model", "qwen2.5-3b",
        "--scheduler", "nexus:order=fcfs,gamma=3", "--partitioner", "fixed:prefill=40",
        "--cost-model", "roofline", "--recalibrate", "--tensor-parallel-size", 2,
        "--engine", "ideal",
        "--dtype", "float16", "--quantization", "fp8", "--kv-cache-dtype", "fp8",
        "--gpu-memory-utilization", 0.5, "--kv-blocks", 900, "--block-size", 32,
        "--no-enable-prefix-caching", "--max-num-seqs", 7,
        "--max-num-batched-tokens", 300, "--max-model-len", 4000, "--too-long", "skip",
        "--speed", 2, "--request-rate", 3, "--burstiness", 0.5, "--limit", 30, "--window", "0:100",
        "--spread-ties", "uniform", "--quantize-arrivals", 0.5, "--max-tokens", 9,
        "--warmup", 1, "--goodput", "ttft:500", "tbt:50", "--seed", 4,
        "--price-per-hour", 2, "--watts", 300, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    config = json.loads(done.out)["runs"][0]["config"]
    assert config == {
        "trace": str(trace), "device": "sim:h200", "model": "qwen2.5-3b",
        "scheduler": "nexus:order=fcfs,gamma=3", "partitioner": "fixed:prefill=40",
        "cost_model": "roofline", "profile": None, "force_profile": False, "recalibrate": True,
        "kernel_table": None, "tensor_parallel_size": 2, "data_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "enable_expert_parallel": False,
        "gpu_memory_utilization": 0.5,
        "kv_blocks": 900, "block_size": 32, "prefix_caching": False, "max_num_seqs": 7,
        "max_num_batched_tokens": 300, "max_model_len": 4000, "too_long": "skip", "speed": 2.0,
        "request_rate": 3.0, "burstiness": 0.5, "limit": 30, "window": "0:100",
        "spread_ties": "uniform", "quantize_arrivals": 0.5, "max_tokens": "9",
        "warmup_s": 1.0,
        "goodput": {"ttft": 500.0, "tbt": 50.0}, "seed": 4, "concurrency": None,
        "price_per_hour": 2.0, "watts": 300.0, "swap_space": None, "engine": "ideal",
        "dtype": "float16", "quantization": "fp8", "kv_cache_dtype": "fp8",
        # Those of devices that compute: tests/cpu/test_cli_cpu.py.
        "load_format": "auto", "temperature": 0.0, "top_p": 1.0,
        "stop_at_eos": False, "graphs": True,
    }  # fmt: skip


def test_degrees_have_vllms_short_names(call: Call, trace: Path) -> None:
    done = call(
        "serve-trace", trace, "--device", "sim:h200", "--model", "qwen2.5-3b", "--scheduler",
        "vllm", "-tp", 2, "-pp", 2, "-dp", 2, "--limit", 5, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (made,) = json.loads(done.out)["runs"]
    degrees = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    assert [made["config"][name] for name in degrees] == [2, 2, 2]
    assert made["resolved"]["gpus"] == 8
    refused = call("serve-trace", trace, "--device", "cpu", "--model", "tiny", "-dp", 2)
    assert refused.code == 2
    assert "--data-parallel-size is for simulated devices" in refused.err


@pytest.mark.parametrize(
    "words",
    [
        ["--goodput", "ttft:500", "tbt:50"],
        ["--goodput", "ttft:500,itl:50"],
        ["--goodput", "ttft:500", "--goodput", "tbt:50"],
        ["--goodput=ttft:500", "tbt:50"],
    ],
)
@pytest.mark.parametrize("trace_last", [True, False])
def test_goodput_in_all_its_forms(
    call: Call, trace: Path, words: list[str], trace_last: bool
) -> None:
    order = [*words, trace] if trace_last else [trace, *words]
    done = call("serve-trace", *order, "--limit", 5, "--json", "--no-save")
    assert json.loads(done.out)["runs"][0]["config"]["goodput"] == {"ttft": 500, "tbt": 50}


@pytest.mark.slow
def test_partitioners_per_scheduler(call: Call, trace: Path) -> None:
    done = call(
        "serve-trace", trace, "--scheduler", "nexus,vllm,nexus", "--partitioner",
        "fixed:prefill=30,min_interval_ms=5,whole,nexus", "--json", "--no-save",
    )  # fmt: skip
    assert done.code == 0, done.err
    runs = json.loads(done.out)["runs"]
    assert [run["resolved"]["partitioner"] for run in runs] == ["fixed", "whole", "nexus"]
    assert runs[0]["resolved"]["partitioner_options"]["prefill"] == 30
    assert len({run["label"] for run in runs}) == 3


@pytest.mark.slow
def test_seeds(call: Call, trace: Path) -> None:
    arguments = ("serve-trace", trace, "--scheduler", "nexus,vllm", "--seeds", 3, "--no-save")
    shown = call(*arguments)
    assert shown.code == 0
    assert "±" in shown.out
    assert "paired by seed" in shown.out
    assert "step-time noise" in shown.out
    document = json.loads(call(*arguments, "--json").out)
    assert [run["config"]["seed"] for run in document["runs"]] == [0, 1, 2, 0, 1, 2]
    assert document["over_seeds"]["nexus"]["ttft"]["mean"]["n"] == 3
    assert document["paired"]["base"] == "nexus"
    assert document["paired"]["differences"]["vllm"]["ttft"]["mean"]["low"] is not None


@pytest.mark.slow
def test_warmup_header_and_formulas(call: Call, trace: Path) -> None:
    done = call("serve-trace", trace, "--warmup", 1, "--formulas", "--no-save")
    assert "10 requests of the first 1 s out" in done.out
    assert "f_i - a_i, i in G" in done.out


def test_rejections_say_why(call: Call, trace: Path) -> None:
    pool = call("serve-trace", trace, "--kv-blocks", 20, "--max-model-len", 320, "--no-save")
    assert pool.code == 0
    assert "of 40 requests rejected: exceeds max_model_len 320. Raise --max-model-len" in pool.out
    arguments = ("serve-trace", trace, "--kv-blocks", 20, "--scheduler", "nexus,vllm", "--no-save")
    both = call(*arguments)
    text = " ".join(both.out.split())
    assert "rejected: exceeds the KV pool of 20 blocks (320 tokens). Give it more with" in text
    assert text.count("WARNING") == 1
    run = json.loads(call(*arguments, "--json").out)["runs"][0]
    rejected = run["summary"]["metrics"]["rejected"]["value"]
    assert run["rejections"] == {"exceeds the KV pool of 20 blocks": rejected}
    assert f"{rejected} of 40 requests rejected" in text


@pytest.mark.parametrize(
    "several", [("--scheduler", "vllm-pd"), ("--scheduler", "vllm", "-dp", 3)], ids=["pair", "dp"]
)
def test_a_rejection_names_the_tokens_of_one_pool(
    call: Call, trace: Path, several: tuple[str | int, ...]
) -> None:
    done = call("serve-trace", trace, "--kv-blocks", 20, *several, "--no-save")
    assert "exceeds the KV pool of 20 blocks (320 tokens). Give" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--max-model-len 50", "all of 40 requests rejected, exceeds max_model_len 50"),
        ("--warmup 100", "all began in the --warmup of 100 s"),
    ],
)
def test_nothing_measured_is_an_error(call: Call, trace: Path, flags: str, words: str) -> None:
    done = call("serve-trace", trace, *flags.split(), "--no-progress")
    assert done.code == 1
    assert done.err.startswith("error: nexus: ")
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert len(list_runs(Path("results"))) == 1


def test_one_request_and_an_honest_device(call: Call, trace: Path) -> None:
    done = call("serve-trace", trace, "--limit", 1, "--no-save")
    assert "small: 1 request. " in done.out
    assert "1 of 1 request, " in done.err
    if not devices.load("cuda").usable():
        assert "(--device auto; no usable CUDA GPU here)" in done.out


SABOTEUR = '''
"""A scheduler that stops planning."""
from nexusbench.core.batch import Plan
from nexusbench.schedulers.base import Scheduler


class Saboteur(Scheduler):
    """Plans nothing, or breaks."""

    work_conserving = False

    def schedule(self, ctx):
        """Never anything."""
        if self.options.order == "spf":
            raise ZeroDivisionError("broken policy")
        return Plan()
'''


@pytest.fixture
def saboteur(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nexusbench.schedulers as package

    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "saboteur.py").write_text(SABOTEUR)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "plugins")])


@pytest.mark.slow
@pytest.mark.usefixtures("saboteur")
def test_a_failed_run_keeps_the_others(call: Call, trace: Path) -> None:
    done = call("serve-trace", trace, "--scheduler", "vllm,saboteur,nexus")
    assert done.code == 1
    assert "error: saboteur (2 of 3): I10" in done.err
    assert "vllm" in done.out
    assert "nexus" in done.out
    statuses = {RunReader(run, Path("results")).status for run in list_runs(Path("results"))}
    assert statuses == {"complete", "failed"}
    document = json.loads(
        call("serve-trace", trace, "--scheduler", "saboteur,vllm", "--json", "--no-save").out
    )
    assert [failure["label"] for failure in document["failed"]] == ["saboteur"]
    assert [run["label"] for run in document["runs"]] == ["vllm"]


@pytest.mark.usefixtures("saboteur")
def test_a_broken_policy_is_one_line(call: Call, trace: Path) -> None:
    done = call("serve-trace", trace, "--scheduler", "saboteur:order=spf", "--no-progress")
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("error: scheduler 'saboteur' failed: ")
    assert "saboteur.py:15: ZeroDivisionError: broken policy" in done.err
    assert len(done.err.splitlines()) == 1
    debug = call("serve-trace", trace, "--scheduler", "saboteur:order=spf", "--debug")
    assert "Traceback" in debug.err
    several = call("serve-trace", trace, "--scheduler", "saboteur:order=spf,vllm", "--no-save")
    assert several.code == 1
    assert "ZeroDivisionError" in several.err
    assert "vllm" in several.out


@pytest.mark.slow
def test_reader_that_leaves_is_no_traceback(tmp_path: Path, trace: Path) -> None:
    process = start("serve-trace", trace, "--no-progress", "--no-save", cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.wait(timeout=60)
    assert errors == ""


@pytest.mark.slow
def test_stdout_and_stderr_of_a_process(tmp_path: Path, trace: Path) -> None:
    done = finish(start("serve-trace", trace, "--json", cwd=tmp_path))
    assert done.code == 0
    assert json.loads(done.out)["command"] == "serve-trace"
    assert "40 of 40" in done.err
