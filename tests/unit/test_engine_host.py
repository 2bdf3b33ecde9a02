"""Hosts of serving engines: their files, what they add to a step and to a request."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.host import EngineHost
from nexusbench.engine.arrivals import NEVER, arrivals_at
from nexusbench.gates.environment import environment_of
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.host import engine_names, engine_sources, load_engine
from nexusbench.profiling.fingerprint import fingerprint_of
from nexusbench.serving.opening import check_run, open_subject
from nexusbench.serving.runner import run
from nexusbench.testing import offer

MS = 1_000_000
IDEAL = load_engine("ideal")
KEYS = [key for key in EngineHost.__struct_fields__ if key not in ("name", "about")]


def engine(**changes: object) -> EngineHost:
    return msgspec.structs.replace(IDEAL, **changes)


def text(**changes: str) -> str:
    values = {
        "about": "'mine'", "scheduler": "'vllm'", "asynchronous": "true", "gap_us": "1.0",
        "step_us": "2.0", "sequence_us": "3.0", "request_us": "4.0", "prompt_token_us": "5.0",
        "reply_us": "6.0",
    } | changes  # fmt: skip
    lines = [f"{key} = {value}" for key, value in values.items() if value]
    return "\n".join([*lines, "[sources]", *(f"{key} = 'measured'" for key in KEYS)]) + "\n"


def trace(path: Path, count: int, *, gap_ms: float = 0.0) -> Path:
    lines = [
        f'{{"timestamp": {i * gap_ms}, "input_length": 100, "output_length": 4}}\n'
        for i in range(count)
    ]
    path.write_text("".join(lines))
    return path


def test_a_step_waits_for_the_longer_of_both_or_for_their_sum() -> None:
    host = engine(asynchronous=True, gap_us=100.0, step_us=2000.0, sequence_us=10.0)
    assert host.step_ns(5 * MS, 20) == 5.1 * MS
    assert host.step_ns(1 * MS, 20) == 2.2 * MS
    added = msgspec.structs.replace(host, asynchronous=False)
    assert added.step_ns(5 * MS, 20) == 7.3 * MS
    prompts = msgspec.structs.replace(host, prompt_layer_us=50.0)
    assert prompts.step_ns(5 * MS, 20) == 5.1 * MS
    assert prompts.step_ns(5 * MS, 20, 100) == 7.2 * MS


def test_one_front_end_takes_one_request_after_the_other() -> None:
    host = engine(request_us=1000.0, prompt_token_us=10.0, reply_us=500.0)
    requests = [offer(0, 0, 100, 1), offer(1, 0, 300, 1), offer(2, 9, 100, 1)]
    arrivals = arrivals_at(host, requests)
    seen = []
    while arrivals.next_ns != NEVER:
        now = arrivals.next_ns
        assert not list(arrivals.pop_due(now - 1))
        seen += [(request.index, now) for request in arrivals.pop_due(now)]
    assert seen == [(0, 2.5 * MS), (1, 6.5 * MS), (2, 11.5 * MS)]
    assert [request.arrival_ns for request in requests] == [0, 0, 9 * MS]


def test_a_request_waits_for_the_tokens_of_those_that_are_served() -> None:
    host = engine(stream_us=100.0)
    requests = [offer(index, index, 100, 1) for index in range(3)]
    arrivals = arrivals_at(host, requests)
    assert arrivals.chained  # else their ends are not told
    assert [arrivals.next_ns, *arrivals.pop_due(0)] == [0, requests[0]]
    assert arrivals.next_ns == 1.1 * MS
    arrivals.ended(requests[0], MS, finished=True)
    assert arrivals.next_ns == MS


def test_a_host_that_plans_ahead_sees_a_request_one_launch_later(tmp_path: Path) -> None:
    path = tmp_path / "ahead.toml"
    zero = dict.fromkeys(
        ("gap_us", "step_us", "sequence_us", "request_us", "prompt_token_us", "reply_us"), "0"
    )
    begun = {}
    for ahead, how in (
        ("true", {"asynchronous": "true"}), ("false", {"asynchronous": "false"}),
        ("overlapped", {"asynchronous": "false", "overlapped": "true"}),
    ):  # fmt: skip
        path.write_text(text(**how, **zero))
        config = RunConfig(
            trace=str(trace(tmp_path / "t.jsonl", 2, gap_ms=1)), device="sim:h100",
            scheduler="vllm", engine=str(path),
        )  # fmt: skip
        events = run(config).events
        submitted = events.tables["submitted"]["time"]
        begun[ahead] = [int(time) for time in submitted[:3]], events.first_token.tolist()
    # The second arrives while the first's prompt is computed; the plan of the next launch is made.
    assert begun["true"][0][:2] == begun["false"][0][:2]
    assert begun["true"][1][0] == begun["false"][1][0]
    assert begun["true"][1][1] > begun["false"][1][1]
    assert begun["true"][0][2] <= begun["true"][1][1]
    assert begun["overlapped"] == begun["true"]


def test_a_user_who_comes_back_queues_at_the_front_end_again() -> None:
    host = engine(request_us=1000.0)
    requests = [offer(index, 0, 100, 1) for index in range(3)]
    arrivals = arrivals_at(host, requests, 2)
    first = [request for now in (MS, 2 * MS) for request in arrivals.pop_due(now)]
    assert [request.index for request in first] == [0, 1]
    assert arrivals.next_ns == NEVER
    arrivals.ended(first[0], 5 * MS, finished=True)
    assert arrivals.next_ns == 6 * MS
    assert requests[2].arrival_ns == 5 * MS


def test_latency_counts_from_before_the_front_end(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        text(gap_us="0", step_us="0", sequence_us="0", request_us="2000", prompt_token_us="0",
             reply_us="3000")
    )  # fmt: skip
    config = RunConfig(
        trace=str(trace(tmp_path / "t.jsonl", 3, gap_ms=500)), device="sim:h100", scheduler="vllm"
    )
    bare = run(msgspec.structs.replace(config, engine="ideal")).events
    served = run(msgspec.structs.replace(config, engine=str(path))).events
    late = (served.first_token - served.arrival) - (bare.first_token - bare.arrival)
    assert late.tolist() == [5 * MS] * 3


def test_an_engine_without_a_host_is_a_gpu_without_an_overhead(tmp_path: Path) -> None:
    from nexusbench.experiments.neutral import gpu_file, neutral_gpu

    path = tmp_path / "h100.toml"
    path.write_text(gpu_file(neutral_gpu(load_gpu("h100"), "step_overhead_us")))
    config = RunConfig(trace=str(trace(tmp_path / "t.jsonl", 9)), scheduler="vllm", concurrency=3)
    without = run(msgspec.structs.replace(config, device=f"sim:{path}"))
    ideal = run(msgspec.structs.replace(config, device="sim:h100", engine="ideal"))
    assert ideal.event_digest == without.event_digest
    assert ideal.resolved.device == "sim:h100@ideal"
    assert ideal.resolved.host == IDEAL


def test_host_time_of_a_launch_follows_its_sequences(tmp_path: Path) -> None:
    path = tmp_path / "slow.toml"
    path.write_text(
        text(asynchronous="false", gap_us="0", step_us="1000", sequence_us="100", request_us="0",
             prompt_token_us="0", reply_us="0")
    )  # fmt: skip
    config = RunConfig(trace=str(trace(tmp_path / "t.jsonl", 4)), device="sim:h100",
                       scheduler="vllm")  # fmt: skip
    bare = run(msgspec.structs.replace(config, engine="ideal")).events
    slow = run(msgspec.structs.replace(config, engine=str(path))).events
    spent = [
        run.tables["step_done"]["time"] - run.tables["submitted"]["time"] for run in (bare, slow)
    ]
    assert abs(spent[1] - spent[0] - 1.4 * MS).max() < 0.03 * MS  # the noise of 2 %


def test_host_time_of_a_step_with_prompts_follows_its_layers(tmp_path: Path) -> None:
    path = tmp_path / "slow.toml"
    path.write_text(
        text(asynchronous="false", gap_us="0", step_us="0", sequence_us="0", request_us="0",
             prompt_token_us="0", reply_us="0", prompt_layer_us="100")
    )  # fmt: skip
    config = RunConfig(trace=str(trace(tmp_path / "t.jsonl", 4)), device="sim:h100",
                       scheduler="vllm", model="llama-3.1-8b")  # fmt: skip
    bare, slow = (run(msgspec.structs.replace(config, engine=name)).events
                  for name in ("ideal", str(path)))  # fmt: skip
    chunks = slow.tables["submitted"]["chunks"]
    assert list(chunks > 0) == [True, False, False, False]
    spent = [
        run.tables["step_done"]["time"] - run.tables["submitted"]["time"] for run in (bare, slow)
    ]
    added = spent[1] - spent[0]
    assert added[0] == pytest.approx(32 * 0.1 * MS, rel=0.03)  # the noise of 2 %
    assert not added[1:].any()


def test_gates_and_profiles_tell_engines_apart_by_their_constants(tmp_path: Path) -> None:
    config = RunConfig(
        trace=str(trace(tmp_path / "t.jsonl", 1)), device="sim:h100", scheduler="vllm"
    )
    written = {"one": text(), "same": text(about="'another text'"), "other": text(step_us="9.0")}
    gated, profiled = {}, {}
    for name, content in written.items():
        path = tmp_path / name / "mine.toml"
        path.parent.mkdir()
        path.write_text(content)
        asked = msgspec.structs.replace(config, engine=str(path))
        result = run(asked)
        gated[name] = environment_of(result.config, result.resolved, simulated=True)
        subject = open_subject(asked)
        profiled[name] = fingerprint_of(subject.device, subject.model)
    assert gated["one"] == gated["same"]
    assert gated["one"]["device"] == "sim:h100@mine"
    assert gated["one"]["device_sha256"] != gated["other"]["device_sha256"]
    assert profiled["one"] == profiled["same"]
    assert profiled["one"].device_sha256 != profiled["other"].device_sha256


@pytest.mark.parametrize("name", engine_names())
def test_every_constant_of_a_shipped_engine_has_a_source(name: str) -> None:
    assert sorted(engine_sources(name)) == sorted(KEYS)
    for source in engine_sources(name).values():
        assert len(source) > 20 or source in [f"As {key}." for key in KEYS]
    assert load_engine(name.upper()).name == name


@pytest.mark.parametrize(
    ("written", "field", "problem"),
    [
        (text(gap_us="-1.0"), "gap_us", ">= 0"),
        (text(gap_us="inf"), "gap_us", "is inf"),
        (text(step_us="2e6"), "step_us", "<= 1000000"),
        (text(asynchronous="1"), "asynchronous", "bool"),
        (text(reply_us=""), None, "reply_us"),
        (text(about="''"), "about", "length >= 1"),
        (text(speed="1.0"), None, "speed"),
        (text(name="'x'"), "name", "called as its file is"),
        (text().replace("gap_us = 'measured'\n", ""), "sources.gap_us", "where gap_us is from"),
        (text() + "swap_us = 'x'\n", "sources.swap_us", "is no constant"),
    ],
)
def test_a_fault_in_an_engine_file_is_named(
    written: str, field: str | None, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(written)
    with pytest.raises(InputError, match=problem) as fault:
        load_engine(str(path))
    assert "mine.toml" in str(fault.value)
    if field is not None:
        assert fault.value.field == field


def test_an_engine_that_there_is_not_is_a_typo() -> None:
    with pytest.raises(InputError, match=r"no engine called 'vlm-0.19'.*vllm-0.19"):
        load_engine("vlm-0.19")


@pytest.mark.parametrize(
    ("device", "problem"),
    [("cpu", "--device cpu has a host of its own"), ("cuda", "--engine is for simulated")],
)
def test_a_real_device_has_a_host_of_its_own(device: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        check_run(RunConfig(trace="", device=device, model="tiny", engine="ideal"))


def test_requests_of_a_bare_device_arrive_as_before() -> None:
    assert arrivals_at(None, [offer(0, 5, 9, 1)]).next_ns == 5 * MS
