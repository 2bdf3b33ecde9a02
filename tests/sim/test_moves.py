"""Swaps and pairs of GPUs: the invariants on random workloads, and what a refused plan leaves."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.testing._harness import build, make_scheduler
from nexusbench.testing._log import check_log
from nexusbench.testing.scheduler import observed_run
from tests.examples import examples
from tests.sim.strategies import MOVING, workloads
from tests.sim.test_rollback import Hesitant


@settings(max_examples=examples(60))
@given(MOVING, workloads(max_requests=10), st.integers(0, 3))
def test_every_invariant_of_a_run_with_moves(policy, workload, seed):
    """Books are audited after each step; every request is served to its end, on whatever GPU."""
    engine = observed_run(workload, lambda: make_scheduler(policy[0]), policy[1], seed)
    check_log(engine)
    assert all(pool.num_used == 0 for pool in engine.pools)
    assert {r.num_tokens for r in engine.requests} == {r.stop_len for r in engine.requests}


@pytest.mark.slow
@settings(max_examples=examples(60))
@given(MOVING, workloads(max_requests=8), st.integers(0, 10**6))
def test_rollback_of_moves_leaves_no_trace(policy, workload, seed):
    hesitant = Hesitant(make_scheduler(policy[0]), random.Random(seed))
    engine = build(workload.requests, hesitant, policy[1], setting=workload.setting)
    engine.run()
    assert all(pool.num_used == 0 for pool in engine.pools)
