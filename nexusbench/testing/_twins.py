"""Twins: two workloads that are equal in all visible fields up to a certain time, for I9."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import msgspec

from nexusbench.core.request import Request
from nexusbench.core.state import Limits
from nexusbench.engine.engine import Engine
from nexusbench.testing._errors import ConformanceError
from nexusbench.testing._harness import Setting, offer
from nexusbench.testing._log import end_of, first_difference
from nexusbench.testing._workloads import RandomWorkload

Run = Callable[[RandomWorkload], Engine]


class Twins(msgspec.Struct, frozen=True):
    """Workloads that differ only in true output lengths and in what arrives at or after a time."""

    one: RandomWorkload
    two: RandomWorkload

    @property
    def name(self) -> str:
        """For messages."""
        return self.one.name


def _other(requests: list[Request], lengths: list[int], later: list[Request]) -> list[Request]:
    """The same offers with other true lengths, and another future."""
    same = [
        msgspec.structs.replace(r, stop_len=r.num_prompt_tokens + length)
        for r, length in zip(requests, lengths, strict=True)
    ]
    return [*same, *later]


def twins(seed: int, count: int) -> Iterator[Twins]:
    """Contention for seats, for KV blocks, for nothing; then seeded mixtures of all."""
    yield _seats()
    yield _memory()
    yield _future()
    for number in range(count):
        rng = random.Random(f"twins {seed} {number}")
        yield _mixture(rng, f"random twins {seed}.{number}")


def _seats() -> Twins:
    """Fillers hold all sequence slots and end one by one; the order of the next requests must not
    depend on true output lengths.
    """
    fillers = [offer(i, 0, 8, 4 + 3 * i) for i in range(4)]
    queue = [offer(4 + i, 5 + i, 16, 24) for i in range(8)]
    lengths = [60, 52, 25, 56, 27, 48, 23, 24]
    setting = Setting(limits=Limits(4, 64, 1024))
    keep = [r.stop_len - r.num_prompt_tokens for r in fillers]
    one = _other([*fillers, *queue], [*keep, *reversed(lengths)], [])
    two = _other([*fillers, *queue], [*keep, *lengths], [])
    name = "twins: which gets the next seat"
    return Twins(RandomWorkload(name, one, setting), RandomWorkload(name, two, setting))


def _memory() -> Twins:
    """All requests run and KV blocks run out; which one is preempted must not depend on true output
    lengths.
    """
    requests = [offer(i, 2 * i, 16, 30) for i in range(6)]
    setting = Setting(kv_blocks=40, limits=Limits(8, 64, 1024))
    one = _other(requests, [60, 55, 50, 40, 38, 36], [])
    two = _other(requests, [36, 38, 40, 50, 55, 60], [])
    name = "twins: which is preempted"
    return Twins(RandomWorkload(name, one, setting), RandomWorkload(name, two, setting))


def _future() -> Twins:
    """The same beginning; then many requests arrive, or none."""
    requests = [offer(i, 30 * i, 20 + 13 * (i % 4), 12) for i in range(10)]
    lengths = [12] * len(requests)
    rush = [offer(10 + i, 320 + 5 * i, 6, 3) for i in range(12)]
    name = "twins: what comes next"
    setting = Setting(limits=Limits(4, 64, 1024))
    return Twins(
        RandomWorkload(name, _other(requests, lengths, rush), setting),
        RandomWorkload(name, _other(requests, lengths, []), setting),
    )


def _mixture(rng: random.Random, name: str) -> Twins:
    now = 0.0
    requests: list[Request] = []
    for index in range(rng.randint(6, 16)):
        now += rng.choice((0.0, rng.expovariate(1 / 15)))
        requests.append(offer(index, now, rng.randint(1, 90), 1))
    fillers = len(requests) // 3
    same = [rng.randint(1, 20) for _ in range(fillers)]
    rest = len(requests) - fillers
    first = same + [rng.randint(15, 60) for _ in range(rest)]
    second = same + [rng.randint(15, 60) for _ in range(rest)]
    later = [
        [offer(len(requests) + i, now + 300 + d * i, rng.randint(1, 50), 4) for i in range(d)]
        for d in (3, 7)
    ]
    block = rng.choice((2, 4))
    setting = Setting(
        kv_blocks=int(rng.choice((1.2, 2.0, 9.0)) * 152 / block),
        block_size=block,
        limits=Limits(rng.choice((2, 4, 9)), rng.choice((16, 64)), 1024),
    )
    return Twins(
        RandomWorkload(name, _other(requests, first, later[0]), setting),
        RandomWorkload(name, _other(requests, second, later[1]), setting),
    )


def check_twins(pair: Twins, run: Run) -> None:
    """Serve both; until something differs that may be seen, the logs must be the same.

    Raises ConformanceError (I9).
    """
    one, two = run(pair.one), run(pair.two)
    until = horizon(one, two)
    difference = first_difference(one.log, two.log, until)
    if difference is not None:
        problem = (
            "plans depend on what cannot be known yet (true output lengths or later arrivals): "
            f"two traces that look the same until {until / 1e6:.3f} ms differ {difference}"
        )
        raise ConformanceError("I9", problem, pair.name)


def horizon(one: Engine, two: Engine) -> int:
    """The first time (ns) at which anything visible differs between two twins' runs.

    A true length shows when the shorter of the two ends; an arrival shows when it happens.
    """
    times: list[int] = []
    shared = min(len(one.requests), len(two.requests))
    for a, b in zip(one.requests, two.requests, strict=False):
        if a.arrival_ns != b.arrival_ns or a.num_prompt_tokens != b.num_prompt_tokens:
            times.append(min(a.arrival_ns, b.arrival_ns))
        elif a.stop_len != b.stop_len:
            shorter = one if a.stop_len < b.stop_len else two
            times.append(end_of(shorter, a.index))
    for engine in (one, two):
        times += [r.arrival_ns for r in engine.requests[shared:]]
    return min(times, default=1 << 62)
