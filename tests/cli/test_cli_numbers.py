"""Numeric flags of every command at the values at which arithmetic breaks: refused by name and
exit code 2, or served to the end; in a run made in Python, the same by field.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import get_type_hints

import pytest
import typer
from typer.testing import CliRunner

import nexusbench
from nexusbench.cli.main import app
from nexusbench.core.errors import NexusbenchError, UsageError
from tests.examples import sample, slow

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
    "--data-parallel-size": "data_parallel_size",
    "--pipeline-parallel-size": "pipeline_parallel_size",
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


@pytest.mark.parametrize(
    "flag", sample([*FLAGS, "--seeds", "--goodput", "--window", "--max-tokens"], 24)
)
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
    [["--speed", "1e-6"],
     *slow(["--rate", "1e-6"], ["--rate", "1e-6", "--burstiness", "1"]),
     ["--quantize-arrivals", "1e9"]],
)  # fmt: skip
@pytest.mark.slow
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


# -- the other commands ----------------------------------------------------------------------------

SMALL = " --device sim:l20 --scheduler vllm --seeds 1 -j 1 --no-progress --cache probes"
CAPACITY = "capacity four.jsonl --goodput ttft:p99<2000 --precision 30" + SMALL
ADVISE = "advise four.jsonl --goodput ttft:2000 --chunks 512 --effort 100" + SMALL
MEMORY = (
    "--tensor-parallel-size", "--gpu-memory-utilization", "--kv-blocks", "--swap-space",
    "--max-num-seqs", "--max-model-len", "--limit", "--burstiness", "--attainment", "--seed",
    "--seeds", "--jobs",
)  # fmt: skip
# What is typed, and its numeric flags; {} stands for the number where text surrounds it.
OTHERS = {
    CAPACITY: (
        *MEMORY, "--max-num-batched-tokens", "--precision", "--over-ranges",
        "--data-parallel-size", "--pipeline-parallel-size", "--goodput=ttft:p99<{}",
    ),
    ADVISE: (
        *MEMORY, "--rate", "--effort", "--max-seeds", "--over-ranges", "--chunks",
        "--chunks=512,{}",
    ),
    "sweep mini.toml --dry-run --no-progress": ("--jobs",),
    "regret four.jsonl --device sim:l20 --no-progress --sample 4": (
        "--rate", "--limit", "--sample", "--seed",
    ),
    "compare RUN": ("--price-per-hour", "--watts", "--goodput=ttft:{}"),
    "report RUN -o page.html": ("--price-per-hour", "--watts", "--goodput=ttft:{}"),
    "explain RUN": ("--top",),
    "timeline RUN -o t.json": ("--window=0:{}", "--window={}:"),
    "gate check RUN --baseline base.json": ("--alpha",),
    "trace make small.toml -o made.jsonl": ("--seed",),
}  # fmt: skip
# Those that need a profile, weights, a recording or a server, or that would take minutes; what they
# take is tried with values that must be refused before anything is opened.
UNOPENED = {
    "pays map.toml": ("--jobs",),
    "reproduce nexus": ("--jobs",),
    "check-model .": ("--new-tokens", "--seed"),
    "profile -o made": (
        "--seed", "--tensor-parallel-size", "--gpu-memory-utilization", "--block-size",
        "--max-num-seqs", "--max-num-batched-tokens", "--max-model-len",
    ),
    "validate run . --device sim:l20": ("--seed",),
    "validate fit l20 .": ("--evaluations",),
    "validate serving points.csv": (
        "--rounds", "--range-ratio", "--max-num-batched-tokens", "--jobs", "--every",
    ),
    "serve-trace four.jsonl --endpoint http://127.0.0.1:1": ("--vocab-size", "--timeout"),
}  # fmt: skip
FEW = ("0", "-1", "1e-300", "1e308", str(2**63), "nan", "inf")
# A flag that an error may name otherwise.
BY_OTHER_NAMES = {"--goodput": ("bound", "ttft"), "--window": ("window",)}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with what the commands are given."""
    folder = tmp_path_factory.mktemp("numbers")
    lines = [
        {"timestamp": 40 * i, "input_length": 50 + 30 * i, "output_length": 1 + 3 * i}
        for i in range(4)
    ]
    (folder / "four.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "mini.toml").write_text(
        '[base]\ntrace = "four.jsonl"\ndevice = "sim:l20"\n[grid]\nscheduler = ["vllm"]\n'
    )
    (folder / "small.toml").write_text(
        '[workload]\nname = "small"\nnum_requests = 3\nseed = 1\n'
        '[arrivals]\nprocess = "poisson"\nrate = 2.0\n'
        '[[classes]]\nname = "all"\n[classes.input]\nmean = 20\nquantiles = [[0, 10], [1, 30]]\n'
        "[classes.output]\nmean = 20\nquantiles = [[0, 10], [1, 30]]\n"
    )
    before = Path.cwd()
    os.chdir(folder)
    try:
        said(["serve-trace", "four.jsonl", "--device", "sim:l20", "--scheduler", "vllm",
              "--no-progress", "--seeds", "2"])  # fmt: skip
        runs = sorted(str(path) for path in (folder / "results").iterdir() if path.is_dir())
        said(["gate", "baseline", "save", *runs, "-o", "base.json"])
    finally:
        os.chdir(before)
    return folder, runs[0]


def said(words):
    """Exit code, and what was said on stderr or raised."""
    ran = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        assert isinstance(ran.exception, NexusbenchError), (words, ran.exception)
        return ran.exception.exit_code, str(ran.exception)
    return ran.exit_code, ran.stderr


def typed(flag, value):
    return flag.format(value) if "{}" in flag else f"{flag}={value}"


def check_named(line, flag, values, there, monkeypatch, *, opens=True):
    folder, run = there
    monkeypatch.chdir(folder)
    words = [run if word == "RUN" else word for word in line.split()]
    name = flag.partition("=")[0]
    known = (name, name.strip("-"), name.strip("-").replace("-", "_"))
    for value in values:
        code, text = said([*words, typed(flag, value)])
        if code:
            assert code == 2, (flag, value, code, text)
            names = (*known, *BY_OTHER_NAMES.get(name, ()))
            assert any(word in text for word in names), (flag, value, text)
        else:
            assert opens, (flag, value)
            assert value not in ("nan", "-1", "-inf"), (flag, value)


PLACES = [(line, flag) for line, flags in OTHERS.items() for flag in flags]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "flag"), PLACES)
def test_every_commands_flag_is_refused_by_its_name_or_right_at_more_values(
    line, flag, there, monkeypatch
):
    check_named(line, flag, dict.fromkeys((*FEW, *MORE)), there, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("line", sample(OTHERS, 12))
def test_every_commands_flags_are_refused_by_name_or_right(line, there, monkeypatch):
    """One hostile value for each flag here, in turn; all of them in the whole suite."""
    for turn, flag in enumerate(OTHERS[line]):
        check_named(line, flag, [FEW[turn % len(FEW)]], there, monkeypatch)


@pytest.mark.slow
def test_a_window_of_a_timeline_may_end_later_than_any_run(there, monkeypatch):
    for value in ("1e308", "inf", str(2**63)):
        check_named("timeline RUN -o t.json", "--window=0:{}", [value], there, monkeypatch)
    code, text = said(["timeline", there[1], "-o", "t.json", "--window", "1e308:"])
    assert (code, "ends at" in text) == (2, True)


@pytest.mark.slow
def test_a_chunk_size_beyond_the_bounds_of_a_budget_is_refused_by_its_flag(there, monkeypatch):
    monkeypatch.chdir(there[0])
    code, text = said([*ADVISE.split(), "--chunks", f"512,{2**63}"])
    assert (code, text.startswith(f"--chunks {2**63} is out of bounds. It must be")) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("line", sample(UNOPENED, 8))
def test_what_is_no_number_is_refused_before_anything_is_opened(line, there, monkeypatch):
    for flag in UNOPENED[line]:
        values = ["nan", "-1", "1e-300", "inf", *([] if flag == "--seed" else ["0"])]
        values += [str(2**63)] if flag in ("--seed", "--evaluations") else []
        check_named(line, flag, values, there, monkeypatch, opens=False)


def commands(command, name=""):
    """Every command with its name, groups that take flags of their own too."""
    if command.callback is not None:
        yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {word}".strip())


def test_every_numeric_flag_of_every_command_is_tried():
    """A new one is a line above; those that take text with a number in it are there too."""
    tried = {("serve-trace", flag) for flag in (*FLAGS, "--seeds")}
    for lines in (OTHERS, UNOPENED):
        for line, flags in lines.items():
            tried |= {(line, flag.partition("=")[0]) for flag in flags}
    lacking = []
    for name, command in commands(typer.main.get_command(app)):
        kinds = get_type_hints(command.callback)
        for parameter in command.params:
            if kinds.get(parameter.name) in (int, float, int | None, float | None):
                known = any(
                    line.startswith(name) and flag in parameter.opts for line, flag in tried
                )
                lacking += [] if known else [(name, parameter.opts)]
    assert not lacking
