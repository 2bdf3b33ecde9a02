"""The invariants hold for every policy on random workloads, audited after every step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.testing._harness import make_scheduler
from nexusbench.testing._log import check_log
from nexusbench.testing._twins import check_twins, twins
from nexusbench.testing.scheduler import observed_run
from tests.examples import examples
from tests.sim.strategies import POLICIES, workloads


@settings(max_examples=examples(250))
@given(POLICIES, workloads(), st.integers(0, 3))
def test_every_invariant_of_a_run(policy, workload, seed):
    scheduler, partitioner = policy
    engine = observed_run(workload, lambda: make_scheduler(scheduler), partitioner, seed)
    check_log(engine)
    assert engine.kv.num_used == 0
    assert {r.num_tokens for r in engine.requests} == {r.stop_len for r in engine.requests}


@settings(max_examples=examples(40))
@given(POLICIES, workloads())
def test_same_seed_same_log(policy, workload):
    scheduler, partitioner = policy
    logs = [
        observed_run(workload, lambda: make_scheduler(scheduler), partitioner).log.digest()
        for _ in range(2)
    ]
    assert logs[0] == logs[1]


@settings(max_examples=examples(30))
@given(POLICIES, st.integers(0, 10**6))
@pytest.mark.slow
def test_nothing_depends_on_the_future(policy, seed):
    scheduler, partitioner = policy
    *_, pair = twins(seed, 1)

    def run(workload):
        return observed_run(workload, lambda: make_scheduler(scheduler), partitioner)

    check_twins(pair, run)


@settings(max_examples=examples(30))
@given(POLICIES, workloads(max_requests=6), st.data())
def test_requests_that_can_never_fit_are_rejected_and_harm_nobody(policy, workload, data):
    from nexusbench.testing import offer, serve

    at = data.draw(st.integers(0, len(workload.requests) - 1))
    setting = workload.setting
    giant = offer(at, 0, 2000, 5)
    giant.arrival_ns = workload.requests[at].arrival_ns
    requests = [*workload.requests[:at], giant, *workload.requests[at:]]
    for index, request in enumerate(requests):
        request.index, request.id = index, f"r{index}"
    engine = serve(requests, policy[0], policy[1], setting=setting)
    ended = engine.log.tables["ended"].columns
    outcomes = dict(zip(ended["request"], ended["outcome"], strict=True))
    assert outcomes == {i: int(i == at) for i in range(len(requests))}  # 0 finished, 1 rejected
