"""Green contexts: work stays on its SMs, two sides run at once, switching leaks nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu import machine

SWITCHES = 1000


@pytest.fixture(scope="module")
def probes() -> Any:
    from tests.gpu import probes

    return probes


def test_every_legal_split_confines_both_sides_to_sets_without_a_common_sm(
    partitions: Any, probes: Any
) -> None:
    every = probes.sms_of(partitions.whole.stream)
    assert len(every) == partitions.num_sms
    splits = machine.disjoint_splits(partitions, 100)
    assert splits
    for split in splits:
        sides = partitions.streams(split)
        seen = {name: probes.sms_of(side.stream) for name, side in sides.items()}
        assert {name: len(sms) for name, sms in seen.items()} == dict(
            zip(split.partitions, split.sms, strict=True)
        ), split
        assert not seen["prefill"] & seen["decode"], split
        assert seen["prefill"] | seen["decode"] <= every, split


def test_the_primary_context_is_confined_to_nothing(partitions: Any, probes: Any) -> None:
    """Why the undivided GPU has a green context too, and no work may stay on torch's own stream."""
    import torch

    partitions.streams(machine.disjoint_splits(partitions, 3)[1])
    assert len(probes.sms_of(torch.cuda.current_stream())) == partitions.num_sms


def test_a_side_keeps_its_sms_while_the_other_computes(partitions: Any, probes: Any) -> None:
    import torch

    sides = partitions.streams(machine.disjoint_splits(partitions, 3)[1])
    alone = {name: probes.sms_of(side.stream) for name, side in sides.items()}
    traces = {name: probes.new_trace() for name in sides}
    torch.cuda.synchronize()
    for name, side in sides.items():
        with torch.cuda.stream(side.stream):
            probes.launch(traces[name], spins=20_000)
    torch.cuda.synchronize()
    assert {name: trace.seen() for name, trace in traces.items()} == alone


def test_two_sides_overlap_in_time(partitions: Any, probes: Any) -> None:
    import torch

    sides = partitions.streams(machine.disjoint_splits(partitions, 3)[1])
    for side in sides.values():
        probes.sms_of(side.stream)  # compiled and loaded
    traces = [probes.new_trace() for _ in sides]
    torch.cuda.synchronize()
    for trace, side in zip(traces, sides.values(), strict=True):
        with torch.cuda.stream(side.stream):
            probes.launch(trace, spins=50_000)
    torch.cuda.synchronize()
    (a0, a1), (b0, b1) = (trace.span() for trace in traces)
    shared = min(a1, b1) - max(a0, b0)
    assert shared > 0.5 * min(a1 - a0, b1 - b0)


def test_a_graph_replays_on_its_own_sms_from_any_stream(partitions: Any, probes: Any) -> None:
    import torch

    split = machine.disjoint_splits(partitions, 3)[1]
    sides = partitions.streams(split)
    own = {name: probes.sms_of(side.stream) for name, side in sides.items()}
    for name, side in sides.items():
        trace, graph = probes.new_trace(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(side.stream):
            graph.capture_begin(capture_error_mode="thread_local")
            probes.launch(trace)
            graph.capture_end()
        other = next(each.stream for key, each in sides.items() if key != name)
        for stream in (side.stream, other, torch.cuda.default_stream()):
            trace.sms.fill_(-1)
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                graph.replay()
            torch.cuda.synchronize()
            assert trace.seen() == own[name], (name, stream)


def test_a_thousand_switches_leak_no_memory(partitions: Any) -> None:
    import torch

    splits = machine.disjoint_splits(partitions, 4)
    weight = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
    states = {name: torch.randn_like(weight) for name in ("prefill", "decode")}

    def switch(number: int) -> None:
        sides = partitions.streams(splits[number % len(splits)])
        before = partitions.streams(splits[(number - 1) % len(splits)])
        for name, side in sides.items():
            side.stream.wait_event(before[name].stream.record_event())
            with torch.cuda.stream(side.stream):
                states[name].copy_(states[name] @ weight * 0.02)

    torch.cuda.synchronize()
    for number in range(2 * len(splits)):  # workspaces, one per stream
        switch(number)
    torch.cuda.synchronize()
    contexts, used = partitions.num_contexts, torch.cuda.memory_reserved()
    free = torch.cuda.mem_get_info()[0]
    for number in range(SWITCHES):
        switch(number)
    torch.cuda.synchronize()
    assert partitions.num_contexts == contexts
    assert torch.cuda.memory_reserved() == used
    assert free - torch.cuda.mem_get_info()[0] < 32 << 20  # other processes may move it a little
    assert all(bool(torch.isfinite(state).all()) for state in states.values())
