"""Random runs under the independent log checker, and what the checker must notice."""

from __future__ import annotations

import copy
import random
from itertools import islice

import pytest

from nexusbench.testing import offer
from nexusbench.testing._harness import Setting
from tests.benchmarks.random_runs import Coverage
from tests.examples import sample, slow
from tests.sim.log_checker import FREE, check
from tests.sim.random_runs import (
    Case,
    breaches,
    cases,
    columns,
    facts,
    offers,
    pairs,
    serve,
    turns,
)

# Runs whose logs are damaged below: one stream and two, copies to the host and between GPUs.
DAMAGED = (
    ("vllm:preemption=swap", "whole", 20),
    ("sglang", "whole", 20),
    ("fastserve:quantum_ms=1", "whole", 20),
    ("nexus:preemption=swap", "nexus:idle=reserve", 20),
    ("semi-pd:preemption=recompute", "fixed:prefill=80", 20),
    ("vllm-pd", "whole", 20),
)


@pytest.mark.parametrize("first", [0, *slow(20, 40)])
def test_random_runs_break_no_book_and_never_stall(first):
    for number, one in enumerate(islice(cases(7, first + 20), first, None), first):
        assert not breaches(one), (number, one.scheduler, one.partitioner)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_random_runs_break_no_book_and_never_stall(seed):
    for number, one in enumerate(cases(100 + seed, 150)):
        assert not breaches(one), (number, one.scheduler, one.partitioner)


@pytest.mark.slow
def test_every_combination_of_plugins_orders_and_preemptions_has_its_turn():
    seen = Coverage()
    for one in cases(1, len(turns())):
        seen.add(one)
    found = {(scheduler, partitioner) for scheduler, partitioner, *_ in seen.combinations}
    assert found == set(pairs())
    assert not seen.missing()
    assert len(seen.combinations) == len(pairs()) * 8
    assert seen.counts["order"].keys() == {"fcfs", "spf", "lpm", "hit-rate"}
    assert seen.counts["preemption"].keys() == {"swap", "recompute"}
    assert seen.counts["GPUs"]["a pair"] >= 30
    assert seen.counts["pool"]["for one request"] > seen.counts["pool"]["for more"] > 0


# -- what the checker notices ----------------------------------------------------------------------


def logged(one):
    """A run's log, and what the checker needs beside it: ``check(tables, *rest)``."""
    engine = serve(one)
    splits = [split.sms for split in engine.splits]
    return columns(engine), (splits, facts(engine, one), offers(one))


def crowd(scheduler, partitioner, blocks):
    """Four requests, of which two have room to the end: most policies preempt one."""
    requests = [offer(i, 3 * i, 24, 11 + i) for i in range(4)]
    setting = Setting(kv_blocks=blocks, prefix_caching=False, audit_every=1 << 40)
    return Case(scheduler, partitioner, requests, setting, 0)


def family():
    """Prompts with a common beginning."""
    requests = [offer(i, 40 * i, 30, 4, prefix_ids=(1, 2, 3, 90 + i)) for i in range(4)]
    return Case("vllm", "whole", requests, Setting(kv_blocks=40, audit_every=1 << 40), 0)


def places(table, most, rng):
    count = len(next(iter(table.values())))
    return sorted(rng.sample(range(count), min(count, most)))


@pytest.fixture(params=sample([(given,) for given in DAMAGED], 3), ids=lambda given: given[0])
def log(request):
    tables, rest = logged(crowd(*request.param))
    assert check(tables, *rest) == []
    return tables, rest


def test_the_damaged_logs_have_rows_of_every_kind():
    seen = set()
    for given in DAMAGED:
        tables, _ = logged(crowd(*given))
        seen |= {name for name, table in tables.items() if next(iter(table.values()))}
    assert seen == set(tables)


def test_a_row_too_few_or_too_many_is_told(log):
    tables, rest = log
    rng = random.Random(1)
    for name, table in tables.items():
        for at in places(table, 4, rng):
            if name != "kv_blocked":  # one that is missing was not blocked, as far as is known
                lacking = copy.deepcopy(tables)
                for values in lacking[name].values():
                    del values[at]
                assert check(lacking, *rest), f"a row less in {name}: {at}"
            double = copy.deepcopy(tables)
            for values in double[name].values():
                values.insert(at, values[at])
            assert check(double, *rest), f"a row twice in {name}: {at}"


def test_rows_in_another_order_are_told(log):
    """But for rows of one moment whose order says nothing: ends, preemptions, chunks of a step."""
    tables, rest = log
    rng = random.Random(2)
    for name, table in tables.items():
        if name == "token" and rest[1].reorders:
            continue
        moment = {"chunk": "step", "token": "request"}.get(name, "time")
        for at in places(table, 6, rng):
            if at + 1 == len(table[moment]) or table[moment][at] == table[moment][at + 1]:
                continue
            swapped = copy.deepcopy(tables)
            for values in swapped[name].values():
                values[at], values[at + 1] = values[at + 1], values[at]
            assert check(swapped, *rest), f"{name}: rows {at} and {at + 1} swapped"


def test_a_value_that_is_off_by_one_is_told(log):
    tables, rest = log
    rng = random.Random(3)
    for name, table in tables.items():
        for column in table:
            if column in FREE.get(name, ()) or (name, column) == ("kv_blocked", "request"):
                continue
            for at in places(table, 4, rng):
                for step in (-1, 1):
                    off = copy.deepcopy(tables)
                    off[name][column][at] += step
                    assert check(off, *rest), f"{name}.{column}[{at}] {step:+d}"


def test_a_hit_on_a_prefix_that_was_never_published_is_told():
    tables, (splits, where, requests) = logged(family())
    at = next(i for i, n in enumerate(tables["admitted"]["cached_tokens"]) if n)
    who = tables["admitted"]["request"][at]
    requests[who] = type(requests[who])(
        **{**vars(requests[who]), "ids": tuple(-1 - i for i in range(40))}
    )
    said = check(tables, splits, where, requests)
    assert any("never published" in problem for problem in said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seats": 0}, "seats"),
        ({"budget": 1}, "the budget is 1"),
        ({"pools": (3,)}, "blocks"),
        ({"legal": ()}, "is not legal"),
        ({"num_sms": 2}, "SMs"),
        ({"caching": False}, "without a cache"),
    ],
)
def test_a_run_beyond_its_limits_is_told(change, said):
    tables, (splits, where, requests) = logged(family())
    narrow = type(where)(**{**vars(where), **change})
    assert any(said in problem for problem in check(tables, splits, narrow, requests))
