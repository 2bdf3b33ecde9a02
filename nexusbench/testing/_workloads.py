"""Small workloads that find what is wrong with a policy: hand-made corners and seeded mixtures."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec

from nexusbench.core.kv_layout import KvGroup, KvLayout
from nexusbench.core.request import Request
from nexusbench.core.state import Limits
from nexusbench.testing._harness import Setting, offer


class RandomWorkload(msgspec.Struct, frozen=True):
    """Requests in order of arrival, and where they are served."""

    name: str
    requests: list[Request]
    setting: Setting = Setting()


def _limits(max_num_seqs: int = 8, budget: int = 64) -> Limits:
    return Limits(max_num_seqs, budget, 1024)


def hand_made() -> Iterator[RandomWorkload]:
    """The corners: each is one thing that policies get wrong."""
    mixed = [(7, 5), (40, 3), (150, 8), (16, 16), (64, 1), (3, 20), (90, 9), (24, 12)]
    yield RandomWorkload("empty trace", [])
    yield RandomWorkload("single request", [offer(0, 5, 30, 6)])
    yield RandomWorkload("one prompt token, one output token", [offer(0, 0, 1, 1)])
    yield RandomWorkload("all at once", [offer(i, 0, *mixed[i % 8]) for i in range(20)])
    yield RandomWorkload(
        "one-token outputs", [offer(i, 4 * i, 5 + 11 * (i % 6), 1) for i in range(16)]
    )
    yield RandomWorkload(
        "long prompts over the budget", [offer(i, 15 * i, 300, 6) for i in range(5)]
    )
    bursts = [offer(i, 250 * (i // 7), *mixed[i % 7]) for i in range(21)]
    yield RandomWorkload("bursts", bursts)
    yield RandomWorkload("large gaps", [offer(i, 60_000 * i, 50, 4) for i in range(4)])
    one_seat = [offer(i, 9 * i, *mixed[i % 8]) for i in range(8)]
    yield RandomWorkload("max_num_seqs 1", one_seat, Setting(limits=_limits(max_num_seqs=1)))
    tight = [offer(i, 12 * i, 20 + 9 * (i % 5), 14 + 6 * (i % 3)) for i in range(14)]
    yield RandomWorkload("tight KV", tight, Setting(kv_blocks=28))
    yield RandomWorkload(
        "tight KV without prefix caching", tight, Setting(kv_blocks=24, prefix_caching=False)
    )
    one_fits = [offer(i, 0, 60, 20) for i in range(5)]
    yield RandomWorkload("KV for one request", one_fits, Setting(kv_blocks=20))
    chunks = [offer(i, 10 * i, 100 + 7 * i, 12) for i in range(6)]
    yield RandomWorkload(
        "tight KV and long prompts", chunks, Setting(kv_blocks=48, limits=_limits(budget=16))
    )
    shared = [offer(i, 8 * i, 61, 5, prefix_ids=(1, 2, 3, 4, 5, 6, 7, 10 + i)) for i in range(8)]
    yield RandomWorkload("shared prefixes", shared, Setting(kv_blocks=40))
    groups = KvGroup("full", 64.0), KvGroup("window", 128.0, 24), KvGroup("state", 500.0)
    yield RandomWorkload(
        "windows and states in tight KV", tight, Setting(kv_blocks=70, layout=KvLayout(groups))
    )
    tiny = [offer(i, 3 * i, *mixed[i % 8]) for i in range(10)]
    yield RandomWorkload("a budget of one token", tiny[:4], Setting(limits=_limits(budget=1)))


def seeded(seed: int, count: int) -> Iterator[RandomWorkload]:
    """``count`` random mixtures; the same seed gives the same ones."""
    for number in range(count):
        yield random_workload(random.Random(f"workload {seed} {number}"), f"random {seed}.{number}")


def random_workload(rng: random.Random, name: str) -> RandomWorkload:
    """Arrivals in bursts, prompts with shared prefixes, and a pool that is often tight."""
    requests: list[Request] = []
    now = 0.0
    longest = 0
    for index in range(rng.randint(4, 24)):
        now += rng.choice((0.0, 0.0, rng.expovariate(1 / 20), rng.expovariate(1 / 200)))
        prompt = rng.choice((rng.randint(1, 30), rng.randint(1, 120), rng.randint(80, 300)))
        output = rng.choice((1, rng.randint(1, 8), rng.randint(4, 40)))
        shared = rng.randint(0, -(-prompt // 8)) if rng.random() < 0.4 else 0
        family = 100 * rng.randint(1, 2)
        own = range(1000 * (index + 1), 1000 * (index + 1) + -(-prompt // 8) - shared)
        ids = (*range(family, family + shared), *own) if shared else ()
        requests.append(offer(index, now, prompt, output, prefix_ids=ids))
        longest = max(longest, prompt + output)
    block = rng.choice((1, 2, 4, 8))
    least = -(-longest // block)
    room = rng.choice((1.0, 1.3, 2.0, 10.0))
    return RandomWorkload(
        name,
        requests,
        Setting(
            kv_blocks=int(least * room) + rng.randint(0, 2),
            block_size=block,
            prefix_caching=rng.random() < 0.7,
            limits=_limits(rng.choice((1, 2, 5, 16)), rng.choice((8, 32, 64, 256))),
        ),
    )
