"""Orders of the waiting queue: what they promise, on every policy that keeps to the queue."""

from __future__ import annotations

import random

import pytest

from nexusbench.core.errors import InputError
from nexusbench.core.state import Limits
from nexusbench.kv.manager import KVCacheManager
from nexusbench.schedulers.base import schedulers
from nexusbench.testing import offer, serve
from nexusbench.testing._harness import Setting, build, make_scheduler
from tests.examples import sample

ONE_SEAT = Limits(1, 64, 1024)
POLICIES = ("vllm", "sglang", "nexus")


def admitted(engine):
    return list(engine.log.tables["admitted"].columns["request"])


def forest(seed, families=6, members=5, shared=6, own=2):
    """Prompts of some families in random order: each begins as its family does."""
    rng = random.Random(seed)
    kin = [family for family in range(families) for _ in range(members)]
    rng.shuffle(kin)
    return [
        offer(
            i, 0, 8 * (shared + own) + 3, 2,
            prefix_ids=(*range(100 * f, 100 * f + shared), *(9000 + 10 * i + n for n in range(3))),
        )
        for i, f in enumerate(kin)
    ]  # fmt: skip


def hit_rate(engine):
    """Cached share of the prompt tokens, each request counted once."""
    first = {}
    columns = engine.log.tables["admitted"].columns
    for index, cached in zip(columns["request"], columns["cached_tokens"], strict=True):
        first.setdefault(index, cached)
    return sum(first.values()) / sum(r.num_prompt_tokens for r in engine.requests)


@pytest.mark.parametrize("name", sample(POLICIES, 3))
@pytest.mark.parametrize("order", ["lpm", "hit-rate"])
def test_a_prefix_forest_hits_the_cache_no_less_often_than_in_order_of_arrival(name, order):
    gains = []
    for seed in range(6):
        setting = Setting(kv_blocks=60, limits=Limits(2, 64, 1024))
        fcfs, other = (
            hit_rate(serve(forest(seed), f"{name}:order={o}", setting=setting))
            for o in ("fcfs", order)
        )
        assert other >= fcfs
        gains.append(other - fcfs)
    assert max(gains) > 0.1


@pytest.mark.parametrize("name", POLICIES)
def test_the_order_follows_the_cache_while_requests_wait(name):
    """Kin of whoever runs pass those who arrived before them, though nothing was cached then."""
    kin = [1, 2, 3, 1, 2, 3]
    requests = [
        offer(i, i, 40, 2, prefix_ids=(10 * f, 10 * f + 1, 10 * f + 2, 90 + i, 190 + i))
        for i, f in enumerate(kin)
    ]
    setting = Setting(limits=ONE_SEAT)
    served = admitted(serve(requests, f"{name}:order=lpm", setting=setting))
    assert served == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(("waiting", "by_prefix"), [(128, True), (129, False)])
def test_lpm_is_fcfs_above_128_waiting(waiting, by_prefix):
    """The last to come shares its prefix with the first, who holds the only seat."""
    kin = (1, 2, 3, 4)
    requests = [
        offer(0, 0, 40, 2, prefix_ids=(*kin, 5)),
        *(offer(i, 1, 8, 1) for i in range(1, waiting)),
        offer(waiting, 1, 40, 2, prefix_ids=(*kin, 6)),
    ]
    engine = serve(requests, "vllm:order=lpm", setting=Setting(limits=ONE_SEAT, audit_every=999))
    assert admitted(engine)[1] == (waiting if by_prefix else 1)


def stream_of_hits(seconds):
    """One prompt that nothing is known of, and more of one family than can be served."""
    known = [offer(i, 20 * i, 40, 2, prefix_ids=(1, 2, 3, 4, 100 + i)) for i in range(50 * seconds)]
    odd = offer(len(known), 200, 40, 2, prefix_ids=tuple(range(9001, 9006)))
    requests = sorted([*known, odd], key=lambda r: r.arrival_ns)
    for index, request in enumerate(requests):
        request.index = index
    return requests, requests.index(odd)


@pytest.mark.slow
@pytest.mark.parametrize("name", sample(POLICIES, 3))
def test_hit_rate_order_does_not_starve_who_hits_nothing(name):
    requests, odd = stream_of_hits(6)
    setting = Setting(limits=ONE_SEAT, audit_every=999)

    def overtaken(options):
        served = admitted(serve(requests, f"{name}:order=hit-rate,{options}", setting=setting))
        before = served[: served.index(odd)]
        return max(requests[i].arrival_ns - requests[odd].arrival_ns for i in before) / 1e9

    # A family member hits 32 of its 40 tokens, so it is worth 0.8 of a full hit.
    assert 1.3 < overtaken("ageing_s=2") <= 1.6
    assert overtaken("ageing_s=0") > 5


@pytest.mark.parametrize("name", sample(POLICIES, 3))
def test_spf_with_the_papers_gamma_bounds_how_long_an_adversary_can_overtake(name):
    """Nexus, section 5: gamma 15. Prompts of one token beat one of 150 for 149 / 15 seconds."""
    long, every_ms = offer(0, 5, 150, 1), 40
    short = [offer(1 + i, 5 + every_ms * i, 1, 6) for i in range(14_000 // every_ms)]
    setting = Setting(limits=ONE_SEAT, audit_every=9999)
    policy = make_scheduler(f"{name}:order=spf,gamma=15")
    engine = serve([offer(0, 0, 1, 40), *renumbered([long, *short])], policy, setting=setting)
    served = admitted(engine)
    before = served[: served.index(1)]
    latest = max(engine.requests[i].arrival_ns for i in before)
    assert 8 < (latest - 5e6) / 1e9 <= 149 / 15
    fair = admitted(
        serve(
            [offer(0, 0, 1, 40), *renumbered([long, *short])],
            f"{name}:order=spf,gamma=0", setting=setting,
        )
    )  # fmt: skip
    assert fair[-1] == 1, "without ageing it is the last"


def renumbered(requests):
    for index, request in enumerate(requests, 1):
        request.index = index
    return requests


@pytest.mark.parametrize("name", schedulers.names())
@pytest.mark.parametrize("order", ["lpm", "hit-rate"])
def test_nobody_starves_where_nothing_is_shared(name, order):
    requests = [offer(i, 5 * i, 20 + 9 * (i % 5), 8) for i in range(12)]
    engine = serve(requests, f"{name}:order={order}", setting=Setting(kv_blocks=60))
    assert {r.outcome for r in engine.requests} == {0}


def test_counting_many_finds_what_looking_up_each_one_finds():
    rng = random.Random(5)
    for _ in range(40):
        kv = KVCacheManager(40, 4, hash_block=8)
        chains = [forest(rng.random(), 3, 3, rng.randint(1, 5), 2)[i] for i in range(9)]
        for request in chains:
            request.num_tokens = request.num_prompt_tokens = rng.randint(1, 30)
        for request in rng.sample(chains, 5):
            tokens = rng.randint(1, request.num_tokens)
            if kv.allocate(request, tokens, []) is not None:
                request.num_computed_tokens = tokens
                kv.publish(request)
                kv.free(request)
        found = [4 * len(kv.find_prefix(request)) for request in chains]
        assert kv.count_cached(chains) == found


def test_orders_that_know_no_cache_never_look_at_it(monkeypatch):
    def refuse(self, requests):
        raise AssertionError("looked")

    monkeypatch.setattr(KVCacheManager, "count_cached", refuse)
    for order in ("fcfs", "spf"):
        assert build([], make_scheduler(f"vllm:order={order}")).journal.order is None
        serve(forest(1), f"vllm:order={order}")
    with pytest.raises(AssertionError, match="looked"):
        serve(forest(1), "vllm:order=lpm")


def test_negative_ageing_is_refused():
    with pytest.raises(InputError, match="ageing_s"):
        make_scheduler("vllm:order=hit-rate,ageing_s=-1")
