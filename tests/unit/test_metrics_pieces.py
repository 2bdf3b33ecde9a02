"""A chunk that went through its layers in several launches counts once."""

from __future__ import annotations

import pytest

from nexusbench.cli._neighbours import neighbours_of
from nexusbench.metrics.base import load_metrics
from nexusbench.metrics.explain import explain
from nexusbench.metrics.launches import chunk_numbers, continued, later_layers
from nexusbench.metrics.run_events import RunEvents
from nexusbench.testing import offer, serve
from tests.sim.pieces import pieces

FACTS = {
    "simulated": True, "num_sms": 16, "kv_blocks": 512, "block_size": 4,
    "partitions": ("prefill", "decode"), "splits": ((8, 8),),
}  # fmt: skip


def run_of(engine):
    requests = engine.requests
    columns = {
        "request": [r.index for r in requests],
        "id": [r.id for r in requests],
        "tenant": [r.tenant for r in requests],
        "arrival": [r.arrival_ns for r in requests],
        "prompt_tokens": [r.num_prompt_tokens for r in requests],
        "output_tokens": [r.stop_len - r.num_prompt_tokens for r in requests],
        "max_tokens": [r.max_tokens for r in requests],
    }
    return RunEvents.from_log(engine.log, columns, FACTS)


@pytest.fixture(scope="module")
def layered():
    """A prompt of two chunks, one of one, each chunk in four launches; then four decode steps."""
    offers = [offer(0, 0, 40, 3), offer(1, 0, 10, 3)]
    return run_of(serve(offers, pieces(1, 1, 24), "whole"))


def test_every_row_after_the_first_layer_is_a_later_one(layered):
    assert later_layers(layered).tolist() == [False, True, True, True] * 3
    numbers = chunk_numbers(layered)
    assert len(set(numbers.tolist())) == 3
    assert all(len(set(numbers[i : i + 4].tolist())) == 1 for i in (0, 4, 8))
    assert continued(layered).sum() == 9


def test_tokens_per_step_counts_a_chunk_once(layered):
    values = load_metrics()["tokens_per_step"].values(layered)
    assert sorted(values[values > 2].tolist()) == [10, 16, 24]


def test_explain_counts_chunks_and_all_of_their_time(layered):
    first = explain(layered, 0)
    assert first.chunks == 2
    assert sum(first.parts.values()) == first.total_ns
    assert first.parts["compute"] + first.parts["contention"] > 0.9 * first.total_ns


def test_neighbours_count_the_tokens_of_others_once(layered):
    assert neighbours_of(layered, 1).prefill_tokens == 40


def test_a_chunk_begun_again_after_a_preemption_counts_again(layered):
    offers = [offer(i, 0, 30, 12) for i in range(4)]
    whole = run_of(serve(offers, "semi-pd"))
    assert not later_layers(whole).any()
    tables = {name: dict(columns) for name, columns in layered.tables.items()}
    time = int(tables["submitted"]["time"][2])
    tables["preempted"] = {"request": [0], "time": [time], "kind": [0], "lost_tokens": [0]}
    tables["token"] = {"request": [t for part in layered.token_parts() for t in part.tolist()]}
    again = RunEvents(tables, layered.requests, layered.facts)
    assert later_layers(again).tolist()[:4] == [False, True, False, True]
