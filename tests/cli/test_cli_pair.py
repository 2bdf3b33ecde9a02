"""A run on a pair of GPUs through every command that looks at runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Outcome

Call = Callable[..., Outcome]
LINE = '{{"timestamp": {0}, "input_length": 300, "output_length": 20}}'


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "few.jsonl"
    file.write_text("\n".join(LINE.format(40 * i) for i in range(30)) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("flags", "device", "each"),
    [
        ((), "2 GPUs of 92 SMs each", "GPU"),
        (("--tensor-parallel-size", 2), "4 GPUs of 92 SMs each", "group of 2 GPUs"),
    ],
)
def test_the_header_of_a_pair_says_what_its_numbers_count(
    call: Call, trace: Path, flags: tuple[object, ...], device: str, each: str
) -> None:
    pair = ("--device", "sim:l20", "--scheduler", "vllm-pd", "--kv-blocks", 1000, "--no-save")
    told = " ".join(call("serve-trace", trace, *pair, *flags).out.split())
    assert f"NVIDIA L20, {device} " in told
    assert f"2,000 blocks of 16 tokens = 32,000 tokens, 1,000 blocks on each {each};" in told
    assert "max_num_seqs 256 on both GPUs together, max_num_batched_tokens 2,048, " in told
    single = (*pair[:2], "--scheduler", "vllm", "--no-save")
    assert "together" not in call("serve-trace", trace, *single).out


@pytest.mark.slow
def test_a_pair_beside_one_gpu(call: Call, trace: Path, tmp_path: Path) -> None:
    kept = tmp_path / "runs"
    done = call(
        "serve-trace", str(trace), "--device", "sim:l20", "--scheduler",
        "vllm,vllm-pd,adrenaline:ratio=0.5", "--results", str(kept),
    )  # fmt: skip
    assert done.code == 0
    assert "not all use the same number of GPUs" in done.out
    assert "vllm-pd 2 (sim:l20+l20" in " ".join(done.out.split())
    assert "per GPU" in done.out
    runs = {p.name.split("few-")[1].split("-sim")[0]: p for p in kept.iterdir() if p.is_dir()}
    manifest = json.loads((runs["vllm-pd"] / "manifest.json").read_text(encoding="utf-8"))
    resolved = manifest["resolved"]
    assert (resolved["gpus"], resolved["pools"], resolved["homes"]) == (2, ["gpu0", "gpu1"], [0, 1])
    assert resolved["num_sms"] == 184

    compared = call("compare", *[str(path) for path in runs.values()])
    assert compared.code == 0
    assert "per GPU" in compared.out
    for name in ("vllm-pd", "adrenaline"):
        assert call("explain", str(runs[name])).code == 0
        assert call("explain", str(runs[name]), "--request", "3").code == 0
        assert call("rerun", str(runs[name]), "--results", str(kept)).code == 0
    assert " m kv copy " in call("explain", str(runs["vllm-pd"]), "--request", "3").out
    assert call("report", *map(str, runs.values()), "-o", str(tmp_path / "page.html")).code == 0

    timeline = tmp_path / "line.json"
    assert call("timeline", str(runs["adrenaline"]), "-o", str(timeline)).code == 0
    events = json.loads(timeline.read_text(encoding="utf-8"))["traceEvents"]
    threads = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"partition prefill on gpu0", "partition decode on gpu1", "KV copies"} <= threads
    copies = [e for e in events if e.get("cat") == "copy"]
    assert {e["name"] for e in copies} == {"gpu0 to gpu1"}
    assert [e["ph"] for e in copies].count("b") == [e["ph"] for e in copies].count("e") > 0


@pytest.mark.slow
def test_kv_use_is_of_both_gpus_kept_or_not(call: Call, trace: Path, tmp_path: Path) -> None:
    use = []
    for kept in (["--results", str(tmp_path / "runs")], ["--no-save"]):
        done = call(
            "serve-trace", str(trace), "--device", "sim:l20", "--scheduler", "vllm-pd", "--json",
            "--kv-blocks", "100", *kept,
        )  # fmt: skip
        (run,) = json.loads(done.out)["runs"]
        assert run["resolved"]["kv_blocks"] == 200
        use.append(run["summary"]["metrics"]["kv_use_peak"]["value"])
    assert use[0] == use[1]
    assert 0 < use[0] <= 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "sim:l20+l20", "--scheduler", "vllm"], "runs on one GPU"),
        (["--device", "sim:l20", "--scheduler", "vllm-pd", "--partitioner", "nexus"],
         "divides 1 GPU, "),
        (["--device", "sim:l20", "--scheduler", "nexus", "--partitioner", "adrenaline"],
         "divides 2 GPUs"),
        (["--device", "cpu", "--scheduler", "adrenaline", "--model", "llama-3.1-8b"],
         "needs 2 GPUs, cpu is one device"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_said(
    call: Call, trace: Path, arguments: list[str], words: str
) -> None:
    done = call("serve-trace", str(trace), *arguments, "--no-save")
    assert done.code == 2
    assert words in " ".join(done.err.split())


def test_list_says_who_needs_two(call: Call) -> None:
    assert "of 2 GPUs, default partitioner adrenaline" in " ".join(
        call("list", "schedulers").out.split()
    )
