"""``nexusbench trace``, sessions on the command line, groups and prices."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import REPOSITORY, Outcome

Call = Callable[..., Outcome]

SPEC = """
[workload]
name = "chats"
num_requests = 60
seed = 1
[arrivals]
process = "poisson"
rate = 4.0
[[classes]]
name = "short"
weight = 2
input = { law = "lognormal", median = 120, sigma = 0.6 }
output = { law = "fixed", value = 30 }
[[classes]]
name = "long"
input = { law = "fixed", value = 3000 }
output = { law = "fixed", value = 30 }
[sessions]
turns = { quantiles = [[0, 1], [1, 4]] }
think_time = { law = "fixed", value = 500 }
[timeouts]
share = 0.2
after = { law = "fixed", value = 300 }
"""


@pytest.fixture
def chats(call: Call, tmp_path: Path) -> Path:
    (tmp_path / "chats.toml").write_text(SPEC)
    done = call("trace", "make", "chats.toml")
    assert done.code == 0, done.err
    assert done.out == ""
    assert done.err.startswith("chats.jsonl: generated, 60 requests")
    return tmp_path / "chats.jsonl"


@pytest.mark.slow
def test_make_gives_the_shipped_traces(call: Call, tmp_path: Path) -> None:
    for name in ("mixed", "ldc", "arxiv", "sharegpt"):
        done = call("trace", "make", REPOSITORY / f"workloads/{name}.toml", "-o", "o.jsonl")
        assert done.code == 0, done.err
        shipped = (REPOSITORY / f"workloads/{name}.jsonl").read_bytes()
        assert (tmp_path / "o.jsonl").read_bytes() == shipped


def test_another_seed_is_another_trace(call: Call, chats: Path, tmp_path: Path) -> None:
    assert call("trace", "make", "chats.toml", "-o", "two.jsonl", "--seed", 2).code == 0
    assert call("trace", "make", "chats.toml", "-o", "one.jsonl", "--seed", 1).code == 0
    assert (tmp_path / "one.jsonl").read_bytes() == chats.read_bytes()
    assert (tmp_path / "two.jsonl").read_bytes() != chats.read_bytes()


def test_show(call: Call, chats: Path) -> None:
    shown = call("trace", "show", chats)
    assert shown.code == 0, shown.err
    for words in ("60", "CV of the gaps", "index of dispersion", "a cache without limits",
                  "follow the end of the turn before", "timeouts, after 0.3 s", "short",
                  "input tokens", "output tokens", "arrivals over time", "█"):  # fmt: skip
        assert words in shown.out, words
    facts = json.loads(call("trace", "show", chats, "--json").out)
    assert facts["command"] == "trace show"
    assert facts["requests"] == 60
    assert facts["sessions"]["following"] == 60 - facts["sessions"]["sessions"]
    assert facts["arrivals"]["n"] == facts["sessions"]["sessions"]
    assert set(facts["output_tokens"].values()) == {30}


def test_show_of_a_closed_loop_and_of_nothing_shared(call: Call, tmp_path: Path) -> None:
    line = '{"input_length": 1, "output_length": 1, "concurrency": 2}\n'
    (tmp_path / "t.jsonl").write_text(line * 3)
    shown = call("trace", "show", "t.jsonl")
    assert "closed loop of 2 users" in shown.out
    assert "nothing is known to be shared" in shown.out
    assert json.loads(call("trace", "show", "t.jsonl", "--json").out)["arrivals"] is None


def test_convert(call: Call, chats: Path, tmp_path: Path) -> None:
    done = call(
        "trace", "convert", REPOSITORY / "workloads/mixed.jsonl", "m.csv", "--format", "azure"
    )
    assert done.code == 0, done.err
    assert "tenants of 600 requests dropped" in done.err
    assert call("trace", "show", "m.csv").code == 0
    assert call("trace", "convert", chats, "again.jsonl").code == 0
    assert (tmp_path / "again.jsonl").read_bytes() == chats.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["trace", "make", "none.toml"], 2, "no such file"),
        (["trace", "make", "chats.toml", "-o", "none/o.jsonl"], 2, "cannot write"),
        (["trace", "show", "none.jsonl"], 2, "no such file"),
        (["trace", "convert", "chats.jsonl", "o", "--format", "azur"], 2, "Did you mean 'azure'"),
        (["trace", "convert", "chats.jsonl", "o", "--format", "azure"], 2, "wait for an earlier"),
        (["serve-trace", "chats.jsonl", "--by", "length"], 2, "--by 'length' is unknown"),
        (["serve-trace", "chats.jsonl", "--concurrency", "2", "--rate", "3"], 2, "Choose one"),
        (["serve-trace", "chats.jsonl", "--watts", "-1"], 2, "above 0"),
    ],
)
def test_errors_are_one_line(
    call: Call, chats: Path, arguments: list[str], code: int, says: str
) -> None:
    done = call(*arguments)
    assert done.code == code
    assert says in done.err
    assert done.err.count("\n") == 1


@pytest.mark.slow
def test_sessions_are_served_and_compared(call: Call, chats: Path) -> None:
    done = call(
        "serve-trace", chats, "--scheduler", "nexus,vllm", "--by", "prompt-length,tenant",
        "--goodput", "ttft:200", "--price-per-hour", 2.5, "--watts", 300, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    runs = json.loads(done.out)["runs"]
    for run in runs:
        metrics = run["summary"]["metrics"]
        assert metrics["offered"]["value"] == 60
        assert metrics["cancelled"]["value"] + metrics["finished"]["value"] == 60
        assert metrics["cancelled"]["value"] > 0
        assert metrics["cost_per_mtok"]["value"] > 0
        assert metrics["joules_per_token"]["value"] > 0
        assert run["resolved"]["trace"]["following"] > 0
        assert run["config"]["price_per_hour"] == 2.5
        for grouping in ("prompt-length", "tenant"):
            assert sum(row["offered"] for row in run["groups"][grouping]) == 60
    folders = [run["folder"] for run in runs]
    shown = call("compare", *folders, "--by", "tenant", "--price-per-hour", 5)
    assert shown.code == 0, shown.err
    for words in ("by tenant", "short", "long", "TTFT p95", "cancelled", "$/M output tok",
                  "first turns/s"):  # fmt: skip
        assert words in shown.out, words
    document = json.loads(call("compare", *folders, "--price-per-hour", 5, "--json").out)
    for before, after in zip(runs, document["runs"], strict=True):
        cost = before["summary"]["metrics"]["cost_per_mtok"]["value"]
        assert after["summary"]["metrics"]["cost_per_mtok"]["value"] == pytest.approx(2 * cost)
        assert "groups" not in after
    again = call("rerun", folders[0])
    assert again.code == 0, again.err
    assert "identical" in again.out


def test_explain_a_turn_that_never_came(call: Call, tmp_path: Path) -> None:
    lines = [
        {"timestamp": 0, "input_length": 4000, "output_length": 9, "session": "a", "turn": 0,
         "timeout": 1},
        {"input_length": 5000, "output_length": 9, "session": "a", "turn": 1},
        {"timestamp": 0, "input_length": 4000, "output_length": 9},
    ]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    done = call("serve-trace", "t.jsonl", "--json")
    assert done.code == 0, done.err
    folder = json.loads(done.out)["runs"][0]["folder"]
    shown = call("explain", folder, "--request", 1)
    assert "cancelled (earlier turn did not finish), 0.0 ms from arrival to its end" in shown.out
    assert "prompt tokens of others" not in shown.out
    assert "cancelled (timeout)" in call("explain", folder, "--request", 0).out


@pytest.mark.slow
def test_later_turns_come_later_under_a_slower_scheduler(call: Call, chats: Path) -> None:
    """The arrivals of the later turns are the run's, those of the first turns the trace's."""
    import nexusbench
    from nexusbench.core.config import RunConfig

    events = [
        nexusbench.run(
            RunConfig(trace=str(chats), device="sim:l20", scheduler="vllm", max_num_seqs=seats)
        ).events
        for seats in (64, 1)
    ]
    first = events[0].requests["arrival"] >= 0
    assert (events[0].arrival[first] == events[1].arrival[first]).all()
    both = ~first & (events[0].outcome == 0) & (events[1].outcome == 0)
    assert (events[0].arrival[both] < events[1].arrival[both]).all()


def test_any_trace_as_a_closed_loop(call: Call, trace: Path) -> None:
    done = call("serve-trace", trace, "--concurrency", 3, "--no-save", "--scheduler", "vllm")
    assert done.code == 0, done.err
    assert "3 users in a closed loop" in done.out
    document = json.loads(call("serve-trace", trace, "--concurrency", 3, "--no-save", "--json").out)
    assert document["runs"][0]["summary"]["metrics"]["finished"]["value"] == 40


def test_files_that_hang_or_would_be_lost_are_usage_errors(call: Call, tmp_path: Path) -> None:
    line = '{"timestamp": 0, "input_length": 10, "output_length": 2}\n'
    (tmp_path / "t.jsonl").write_text(line)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "t.jsonl")
    os.mkfifo(tmp_path / "pipe")
    for arguments, says in (
        (("show", "pipe"), "pipe: this is a pipe or a device"),
        (("show", "/dev/zero"), "/dev/zero: this is a pipe or a device"),
        (("make", "pipe"), "pipe: this is a pipe or a device"),
        (("convert", "t.jsonl", "t.jsonl"), "the same file as t.jsonl"),
        (("convert", "t.jsonl", "link.jsonl"), "the same file as t.jsonl"),
        (("convert", "link.jsonl", "t.jsonl"), "the same file as link.jsonl"),
        (("convert", "t.jsonl", "pipe"), "a device or a pipe"),
        (("make", "t.jsonl", "-o", "t.jsonl"), "not valid TOML"),
    ):
        done = call("trace", *arguments)
        assert done.code == 2, done.err
        assert says in " ".join(done.err.split())
        assert (tmp_path / "t.jsonl").read_text() == line


def test_show_of_a_trace_that_lasts_a_century(call: Call, tmp_path: Path) -> None:
    """No table of empty windows: that would take gigabytes."""
    fields = {"input_length": 10, "output_length": 2}
    lines = [json.dumps({"timestamp": time, **fields}) for time in (0, 3 * 10**12)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    facts = json.loads(call("trace", "show", "t.jsonl", "--json").out)
    assert facts["arrivals"]["dispersion"]["1s"] == pytest.approx(1)


def test_a_limit_says_what_was_read(call: Call, tmp_path: Path) -> None:
    fields = {"input_length": 10, "output_length": 2, "tenant": "x" * 500}
    lines = [json.dumps({"timestamp": index, **fields}) for index in range(4000)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    done = call(
        "serve-trace", "t.jsonl", "--limit", 3, "--device", "sim:l20", "--scheduler", "vllm",
        "--no-save", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "first 3 requests, the file goes on" in done.out
    assert "only the order of times looked at" in done.out
