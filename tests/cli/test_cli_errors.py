"""Broken inputs: one clear line on stderr, the right exit code, nothing on stdout."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from commandline import Outcome, environment

from tests.examples import sample, slow

Call = Callable[..., Outcome]
LINE = '{"timestamp": %s, "input_length": %s, "output_length": %s}'
GPU = (files("nexusbench.data") / "gpus" / "l20.toml").read_text()
MODEL = (files("nexusbench.data") / "models" / "llama-3.1-8b.json").read_text()

FLAGS: list[tuple[str, str]] = [
    ("--max-num-seqs 0", "--max-num-seqs"),
    ("--max-num-seqs many", "--max-num-seqs"),
    ("--max-num-batched-tokens -5", "--max-num-batched-tokens"),
    ("--gpu-memory-utilization 0", "--gpu-memory-utilization"),
    ("--gpu-memory-utilization 1.5", "--gpu-memory-utilization"),
    ("--gpu-memory-utilization nan", "--gpu-memory-utilization"),
    ("--speed 0", "--speed"),
    ("--speed inf", "--speed"),
    ("--rate nan", "--rate"),
    ("--request-rate -2", "--request-rate"),
    ("--burstiness 1", "--burstiness"),
    ("--rate 1 --burstiness -1", "--burstiness"),
    ("--device \udcff", r"field 'device': '\udcff' is not UTF-8"),
    ("--profile \udcff --scheduler vllm,nexus", "field 'profile'"),
    ("--limit 0", "--limit"),
    (f"--limit {'9' * 30}", "--limit"),
    (f"--seed {'9' * 400}", "--seed"),
    ("--window 5", "--window"),
    ("--window 9:5", "--window"),
    ("--warmup -1", "--warmup"),
    ("--seeds 0", "--seeds"),
    ("--seed -1", "--seed"),
    ("--kv-blocks 0", "--kv-blocks"),
    ("--block-size 0", "--block-size"),
    ("--tensor-parallel-size 0", "--tensor-parallel-size"),
    ("--max-tokens soon", "--max-tokens"),
    ("--max-tokens 0", "--max-tokens"),
    ("--too-long rejct", "Did you mean 'reject'?"),
    ("--spread-ties all", "--spread-ties"),
    ("--goodput ttft", "--goodput"),
    ("--goodput ttft:nan", "--goodput"),
    ("--goodput ttft:-3", "--goodput"),
    ("--goodput tfft:500", "Did you mean 'ttft'?"),
    ("--goodput ttft:5 ttft:6", "twice"),
    ("--goodput tbt:5,itl:6", "twice"),
    ("--scheduler nexsu", "Did you mean 'nexus'?"),
    ("--scheduler vllm,", "--scheduler"),
    ("--scheduler vllm:order=zzz", "fcfs or spf"),
    ("--scheduler vllm:ordr=spf", "Did you mean 'order'?"),
    ("--scheduler vllm:gamma=fast", "gamma"),
    ("--scheduler vllm:gamma=nan", "gamma"),
    ("--scheduler vllm:gamma", "has no value"),
    ("--scheduler vllm:gamma=1,gamma=2", "twice"),
    ("--scheduler vllm --partitioner fixed", "--partitioner fixed cannot serve scheduler 'vllm'"),
    ("--scheduler vllm,nexus,nexus --partitioner whole,fixed", "2 partitioners for 3 schedulers"),
    ("--scheduler nexus --partitioner nexsu", "Did you mean 'nexus'?"),
    ("--scheduler nexus --partitioner fixed:prefill=200", "prefill"),
    ("--cost-model rofline", "Did you mean 'roofline'?"),
    ("--device sim", "sim:l20"),
    ("--device sim:l21", "Did you mean 'l20'?"),
    ("--device simm:l20", "Did you mean 'sim'?"),
    ("--device sim:none.toml", "none.toml"),
    ("--model lama-3.1-8b", "Did you mean 'llama-3.1-8b'?"),
    ("--model llama-3.1-70b --device sim:l20", "does not fit"),
    ("--kv-blocks 2", "--kv-blocks"),
    ("--max-model-len 999999", "the context of llama-3.1-8b has 131,072 tokens. Give at most"),
    ("--scheduler vllm --partitioner nexus", "which runs on partition all. It can have: whole"),
    ("--max-model-len 50 --too-long error", "--too-long error: "),
    ("--max-model-len 50 --too-long skip", "longer context"),
    ("--results small.jsonl", "small.jsonl"),
    ("--results small.jsonl/below", "small.jsonl"),
    ("--unknown-flag", "--unknown-flag"),
    ("--max-num-seq 5", "--max-num-seqs"),
]  # fmt: skip


def check(done: Outcome, code: int, words: str) -> None:
    assert done.code == code, done
    assert words in done.err
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1
    assert done.out == ""
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("line", "words"), sample(FLAGS, 3))
def test_flags(call: Call, trace: Path, line: str, words: str) -> None:
    check(call("serve-trace", trace, *line.split()), 2, words)
    assert not list(Path().glob("results/*"))


TRACES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "blank": (b"\n \n", "white space"),
    "truncated gzip": (gzip.compress(LINE.encode() * 99)[:30], "truncated"),
    "binary": (b"\x00\x01\x02", "binary"),
    "no format": (b"hello world\n", "no known trace format"),
    "negative length": ((LINE % (0, -5, 3)).encode(), ":1: field 'input_length'"),
    "not a number": ((LINE % ("NaN", 5, 3)).encode(), ":1:"),
    "wrong type": ((LINE % (0, '"x"', 3)).encode(), ":1: field 'input_length'"),
    "back in time": (
        "\n".join([LINE % (9, 5, 3), LINE % (2, 5, 3)]).encode(), ":2: field 'timestamp'",
    ),
    "same id twice": (
        b"\n".join([
            b'{"timestamp": 0, "input_length": 5, "output_length": 3, "id": "a"}',
            b'{"timestamp": 1, "input_length": 5, "output_length": 3, "id": "a"}',
        ]),
        ":2: field 'id'",
    ),
    "unknown field": (
        b'{"timestamp": 0, "input_length": 5, "output_length": 3, "prioriti": 1}', "prioriti",
    ),
    "cut line": (b'{"timestamp": 0, "input_length": 5, "outp', ":1:"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACES)
def test_traces(call: Call, tmp_path: Path, name: str) -> None:
    content, words = TRACES[name]
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    done = call("serve-trace", path)
    check(done, 2, words)
    assert "broken.jsonl" in done.err


def test_missing_trace_and_folder(call: Call, tmp_path: Path) -> None:
    check(call("serve-trace", "small.jsonl", "--results", ""), 2, "--results")
    check(call("serve-trace", "nowhere.jsonl"), 2, "nowhere.jsonl: no such file")
    check(call("serve-trace", tmp_path), 2, "folder")
    check(call("serve-trace"), 2, "TRACE")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_sms = 92", "num_sms = -1", "field 'num_sms'"),
        ("num_sms = 92", "num_sms = 'many'", "field 'num_sms'"),
        ("num_sms = 92", "num_smms = 92", "Did you mean 'num_sms'?"),
        ("num_sms = 92", "num_sms = ", "TOML"),
        ("num_sms = 92", "", "is missing"),
    ],
)
def test_gpu_files(call: Call, trace: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GPU
    (tmp_path / "mine.toml").write_text(GPU.replace(old, new, 1))
    done = call("serve-trace", trace, "--device", "sim:mine.toml")
    check(done, 2, words)
    assert "mine.toml" in done.err


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("hidden_size", -1, "field 'hidden_size'"),
        ("model_type", "gpt9", "gpt9"),
        ("num_hidden_layers", None, "is missing"),
        ("num_key_value_heads", 7, "does not divide"),
    ],
)
def test_model_files(
    call: Call, trace: Path, tmp_path: Path, field: str, value: object, words: str
) -> None:
    content = json.loads(MODEL)
    content[field] = value
    (tmp_path / "mine.json").write_text(json.dumps(content))
    check(call("serve-trace", trace, "--model", "mine.json"), 2, words)
    (tmp_path / "mine.json").write_text(MODEL[: len(MODEL) // 2])
    check(call("serve-trace", trace, "--model", "mine.json"), 2, "not valid JSON")


@pytest.mark.parametrize("command", ["compare", "rerun", "explain"])
def test_runs_that_are_not_there(call: Call, trace: Path, tmp_path: Path, command: str) -> None:
    check(call(command, "nothing"), 2, "no such run")
    check(call(command, trace), 2, "not a run folder")
    check(call(command, tmp_path), 2, "manifest.json")
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text("{")
    check(call(command, run), 2, "not valid JSON")
    check(call(command), 2, "RUN")


def test_commands(call: Call) -> None:
    check(call("serve-trac"), 2, "serve-trace")
    check(call("list", "schedulrs"), 2, "Did you mean 'schedulers'?")
    check(call("list"), 2, "FAMILY")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "words",
    ["list gpus", *slow("list schedulers --json", "--help")],
)
def test_a_full_disk_is_one_line(tmp_path: Path, words: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nexusbench", *words.split()],
            cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write the output: ")
    assert len(done.stderr.splitlines()) == 1


def test_an_error_that_quotes_a_long_value_stays_one_short_line(call: Call) -> None:
    code, out, err = call("list", "a" * 200_000)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 2000
    assert err.endswith("--help\n")
